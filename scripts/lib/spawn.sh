#!/usr/bin/env bash
# spawn.sh PID_FILE LOG COMMAND...: the child becomes COMMAND, and PID_FILE names it.
#
# A file of its own, run by setsid, so that no trap, lock or open file of scripts/brokers gets
# into a broker: a pipe held open would keep the caller's reader waiting, a lock would stay taken.
set -euo pipefail

pid_file=$1
log=$2
shift 2
exec </dev/null >>"$log" 2>&1
for fd in /proc/self/fd/*; do
  fd=${fd##*/}
  # 255 is where bash reads this script; it is closed by the exec below.
  if ((fd > 2 && fd != 255)); then exec {fd}>&-; fi
done

launch() {
  echo "$BASHPID" >"$pid_file"
  exec "$@"
}
launch "$@" &

until [[ -s $pid_file ]] && [[ $(<"$pid_file") == "$!" ]]; do sleep 0.01; done
