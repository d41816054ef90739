# shellcheck shell=bash
# The brokers as processes of this machine.

# Starts the named brokers side by side; one that fails leaves the others up.
native_up() {
  local name job jobs=() failed=0
  command -v setsid flock timeout >/dev/null && [[ -d /proc/self ]] ||
    die "without a docker engine this needs Linux with util-linux and coreutils"
  for name in "$@"; do
    with_lock "$name" native_ensure "$name" &
    jobs+=("$!")
  done
  for job in "${jobs[@]}"; do wait "$job" || failed=1; done
  ((failed)) || native_together "$@"
  return "$failed"
}

# Nodes that were asked for together have to see each other.
native_together() {
  local first
  for first in rabbitmq-1 rabbitmq4-1; do
    if [[ " $* " == *" $first "*" ${first%1}2 "*" ${first%1}3 "* ]]; then
      rabbitmq_tool "$first" --timeout "$deadline" --quiet await_online_nodes 3 >&2 ||
        die "the nodes of ${first%-1} are up, and no cluster"
    fi
  done
}

native_ensure() {
  local name=$1 pid
  if pid=$(pid_of "$name"); then
    if is_frozen "$pid"; then signal "$name" CONT; fi
  else
    "$(kind_of "$name")_prepare" "$name"
    free_port "$(port_of "$name")"
    "$(kind_of "$name")_launch" "$name"
  fi
  native_wait "$name"
}

native_answers() {
  local name=$1
  grep -qsF "$(ready_line_of "$name")" "$(log_of "$name")" && "$(kind_of "$name")_speaks" "$(port_of "$name")"
}

native_wait() {
  local name=$1 end=$((SECONDS + deadline)) why='' gone=0
  until native_answers "$name"; do
    # A process that turns into another program has no command line for a moment, and looks gone.
    if pid_of "$name" >/dev/null; then gone=0; else gone=$((gone + 1)); fi
    if ((gone >= 20)); then
      why='ended while it started'
    elif ((SECONDS >= end)); then
      why="did not answer within $deadline s"
    fi
    if [[ $why ]]; then
      tail -n 40 "$(log_of "$name")" >&2 || true
      die "$name $why; the end of its log is above"
    fi
    sleep 0.1
  done
}

native_state() {
  local name=$1 pid
  if ! pid=$(pid_of "$name"); then
    echo down
  elif is_frozen "$pid"; then
    echo frozen
  elif native_answers "$name"; then
    echo up
  else
    echo starting
  fi
}

native_kill() {
  local name
  for name in "$@"; do slay "$name"; done
}

# As long as it may take to start.
native_stop() {
  local name pid end=$((SECONDS + deadline))
  for name in "$@"; do signal "$name" TERM || true; done
  for name in "$@"; do
    pid=$(cat "$(pid_file "$name")" 2>/dev/null) || continue
    until is_gone "$pid"; do
      ((SECONDS < end)) || die "$name does not end within $deadline s"
      sleep 0.05
    done
  done
}

native_freeze() {
  local name pid
  for name in "$@"; do
    pid=$(pid_of "$name") && kill -STOP "$pid" || die "$name is not running"
    # The signal is on its way when kill returns; who called counts on a broker that is silent.
    until is_frozen "$pid" || is_gone "$pid"; do sleep 0.005; done
  done
}

native_thaw() {
  local name
  for name in "$@"; do signal "$name" CONT || die "$name is not running"; done
}

native_down() {
  local name
  for name in "$@"; do with_lock "$name" native_remove "$name"; done
}

# The data goes with it, so there is nothing to gain from an orderly stop.
native_remove() {
  local name=$1
  slay "$name"
  rm -f "$(pid_file "$name")"
  rm -rf "$(dir_of "$name")"
  if [[ $(kind_of "$name") == rabbitmq ]]; then with_lock epmd rabbitmq_forget_shared; fi
}

native_tool() {
  local name=$1
  shift
  "$(kind_of "$name")_tool" "$name" "$@"
}
