# shellcheck shell=bash
# Processes that outlive the shell, known by a pid file and a mark in their arguments.

pid_file() { echo "$run_dir/$1.pid"; }

# A pid can be reused by the system, so it counts only while the process carries the mark.
# Prints the pid; fails where there is no such process (a zombie has no arguments left).
pid_of() {
  local process=$1 mark pid arguments
  mark=$(mark_of "$process")
  pid=$(cat "$(pid_file "$process")" 2>/dev/null) || return 1
  [[ $pid =~ ^[0-9]+$ ]] || return 1
  arguments=$(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline") || return 1
  [[ " $arguments" == *" $mark "* ]] && echo "$pid"
}

# What the arguments of a process must contain; each is unique to this set.
mark_of() {
  case $1 in
    epmd) echo "-port $ANYQUEUE_EPMD_PORT" ;;
    # Python takes any option of this letter.
    sns) echo "-Xanyqueue.broker=sns-$set_id" ;;
    *) echo "-Danyqueue.broker=$1-$set_id" ;;
  esac
}

# spawn PROCESS LOG COMMAND...: runs it in a session of its own, holding on to nothing of the
# caller. An older log is kept under another name, because readiness is read from this one.
spawn() {
  local process=$1 log=$2
  shift 2
  [[ ! -e $log ]] || mv -f "$log" "$log.previous"
  setsid --wait bash "${root:?}/scripts/lib/spawn.sh" "$(pid_file "$process")" "$log" "$@"
}

is_frozen() {
  local state
  state=$(sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null) || return 1
  [[ $state == T || $state == t ]]
}

# signal PROCESS SIGNAL: fails where the process does not run.
signal() {
  local pid
  pid=$(pid_of "$1") && kill "-$2" "$pid" 2>/dev/null
}

# Ends a process at once and returns when it is gone and its ports are free.
slay() {
  local process=$1 pid tries=500
  pid=$(pid_of "$process") || return 0
  kill -KILL "$pid" 2>/dev/null || true
  until is_gone "$pid"; do
    ((tries-- > 0)) || die "$process does not die"
    sleep 0.02
  done
}

# A process that ends loses its arguments before its files: until the last thread is gone its
# ports are taken. What is left then may stay as a zombie where nobody collects it.
is_gone() {
  local threads=("/proc/$1/task"/*)
  [[ ! -d /proc/$1 ]] && return
  ((${#threads[@]} <= 1)) && grep -qs '^State:[[:space:]]*[ZX]' "/proc/$1/status"
}
