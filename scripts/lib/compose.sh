# shellcheck shell=bash
# The brokers as containers, where a docker engine answers. A killed container keeps its file
# system, so `start` finds the data; `down` removes container and volumes.

compose() {
  docker compose --project-name "anyqueue-$set_id" --file "${root:?}/compose.yaml" "$@"
}

compose_up() {
  local name end
  for name in "$@"; do
    [[ -z $(cluster_of "$name") ]] || die "a cluster needs ANYQUEUE_BROKERS_MODE=native"
    if [[ $(compose_state "$name") == frozen ]]; then compose unpause "$name" >&2; fi
  done
  compose up --detach "$@" >&2
  end=$((SECONDS + deadline))
  for name in "$@"; do
    until compose_answers "$name"; do
      if ((SECONDS >= end)) || [[ $(compose_state "$name") == down ]]; then
        compose logs --no-color --tail 40 "$name" >&2 || true
        die "$name did not answer within $deadline s; the end of its log is above"
      fi
      sleep 0.2
    done
  done
}

# A container keeps the log of its former lives, so only this life's part may tell.
compose_answers() {
  local name=$1 container started
  container=$(compose ps --quiet "$name") && [[ $container ]] || return 1
  started=$(docker inspect --format '{{.State.StartedAt}}' "$container") || return 1
  docker logs --since "$started" "$container" 2>&1 | grep -F "$(ready_line_of "$name")" >/dev/null &&
    "$(kind_of "$name")_speaks" "$(port_of "$name")"
}

compose_state() {
  local name=$1 state
  state=$(compose ps --all --format '{{.State}}' "$name" 2>/dev/null) || state=''
  case $state in
    running) if compose_answers "$name"; then echo up; else echo starting; fi ;;
    paused) echo frozen ;;
    *) echo down ;;
  esac
}

compose_kill() { compose kill --signal SIGKILL "$@" >&2; }
compose_stop() { compose stop --timeout "$deadline" "$@" >&2; }
compose_freeze() { compose pause "$@" >&2; }
compose_thaw() { compose unpause "$@" >&2; }

compose_down() {
  # A paused container would sit out the time that is given to end in good order.
  compose unpause "$@" >/dev/null 2>&1 || true
  compose rm --force --stop --volumes "$@" >&2
  # The network goes with the last container.
  if [[ -z $(compose ps --all --quiet) ]]; then compose down --volumes >&2; fi
}

compose_tool() {
  local name=$1
  shift
  case $name in
    rabbitmq*) compose exec -T "$name" rabbitmqctl "$@" ;;
    kafka) compose exec -T kafka /opt/kafka/bin/kafka-run-class.sh "$@" ;;
    sqs) sqs_tool ;;
    sns) sns_tool ;;
  esac
}
