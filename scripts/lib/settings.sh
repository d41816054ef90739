# shellcheck shell=bash
# What the environment can override, and what follows from it.

ANYQUEUE_RABBITMQ_PORT=${ANYQUEUE_RABBITMQ_PORT:-5672}
ANYQUEUE_RABBITMQ4_PORT=${ANYQUEUE_RABBITMQ4_PORT:-$((ANYQUEUE_RABBITMQ_PORT + 2))}
ANYQUEUE_EPMD_PORT=${ANYQUEUE_EPMD_PORT:-$((ANYQUEUE_RABBITMQ_PORT + 20001))}
ANYQUEUE_KAFKA_PORT=${ANYQUEUE_KAFKA_PORT:-9092}
ANYQUEUE_KAFKA_CONTROLLER_PORT=${ANYQUEUE_KAFKA_CONTROLLER_PORT:-$((ANYQUEUE_KAFKA_PORT + 1))}
ANYQUEUE_KAFKA_SESSION=${ANYQUEUE_KAFKA_SESSION:-3000}
ANYQUEUE_SQS_PORT=${ANYQUEUE_SQS_PORT:-9324}
ANYQUEUE_SNS_PORT=${ANYQUEUE_SNS_PORT:-$((ANYQUEUE_SQS_PORT + 2))}
ANYQUEUE_KAFKA_VERSION=${ANYQUEUE_KAFKA_VERSION:-4.2.0}
ANYQUEUE_ELASTICMQ_VERSION=${ANYQUEUE_ELASTICMQ_VERSION:-1.6.12}
ANYQUEUE_MOTO_VERSION=$(sed -n 's/^moto==\([^ ]*\).*/\1/p' "${root:?}/scripts/lib/moto.txt")
# compose.yaml reads the same names.
export ANYQUEUE_RABBITMQ_PORT ANYQUEUE_RABBITMQ4_PORT ANYQUEUE_KAFKA_PORT ANYQUEUE_KAFKA_CONTROLLER_PORT ANYQUEUE_SQS_PORT
export ANYQUEUE_SNS_PORT ANYQUEUE_KAFKA_VERSION ANYQUEUE_ELASTICMQ_VERSION ANYQUEUE_MOTO_VERSION

say() { echo "brokers: $*" >&2; }
die() {
  say "$*"
  exit 1
}

# The brokers are started from other folders, so a relative path would change its meaning.
absolute() { realpath -m -- "$1"; }

run_dir=$(absolute "${ANYQUEUE_BROKERS_DIR:-${root:?}/.brokers/run}")
cache_dir=$(absolute "${ANYQUEUE_BROKERS_CACHE:-${root:?}/.brokers/cache}")
deadline=${ANYQUEUE_BROKERS_DEADLINE:-90}

# Names this set in process arguments, lock files and container names.
set_id=$(cksum <<<"$run_dir")
set_id=${set_id%% *}

dir_of() { echo "$run_dir/$1"; }
log_of() { echo "$run_dir/$1/broker.log"; }

usual_names=(rabbitmq kafka sqs)
all_names=(rabbitmq rabbitmq4 rabbitmq-{1,2,3} rabbitmq4-{1,2,3} kafka kafka-{1,2,3} sqs sns)

check_name() {
  [[ " ${all_names[*]} " == *" $1 "* ]] ||
    die "unknown broker: $1 (there are rabbitmq, rabbitmq4, kafka, sqs, sns, cluster, cluster4 and kafka-cluster)"
}

# Which functions are a broker's: all nodes of RabbitMQ are alike, and all of Kafka.
kind_of() {
  case $1 in
    rabbitmq*) echo rabbitmq ;;
    kafka*) echo kafka ;;
    *) echo "$1" ;;
  esac
}

# The nodes of the cluster that a node belongs to; nothing for one that stands alone.
cluster_of() {
  case $1 in
    rabbitmq-[123]) echo rabbitmq-{1,2,3} ;;
    rabbitmq4-[123]) echo rabbitmq4-{1,2,3} ;;
    kafka-[123]) echo kafka-{1,2,3} ;;
  esac
}

# From 32768 on the kernel may have lent a port to an outgoing connection.
check_ports() {
  local name port ports=("$ANYQUEUE_EPMD_PORT") seen=' '
  for name in "${all_names[@]}"; do
    port=$(port_of "$name")
    ports+=("$port")
    [[ $name != rabbitmq* ]] || ports+=("$((port + 10000))" "$((port + 20000))")
    [[ $name != kafka* ]] || ports+=("$(controller_port_of "$name")")
  done
  for port in "${ports[@]}"; do
    [[ $port =~ ^[1-9][0-9]{0,4}$ ]] && ((port < 32768)) || die "not a port below 32768: $port"
    [[ $seen != *" $port "* ]] || die "port $port is asked for twice"
    seen+="$port "
  done
}

port_of() {
  case $1 in
    rabbitmq) echo "$ANYQUEUE_RABBITMQ_PORT" ;;
    rabbitmq4) echo "$ANYQUEUE_RABBITMQ4_PORT" ;;
    rabbitmq-[123]) echo "$((ANYQUEUE_RABBITMQ_PORT + 2 + ${1#rabbitmq-}))" ;;
    rabbitmq4-[123]) echo "$((ANYQUEUE_RABBITMQ_PORT + 5 + ${1#rabbitmq4-}))" ;;
    kafka) echo "$ANYQUEUE_KAFKA_PORT" ;;
    kafka-[123]) echo "$((ANYQUEUE_KAFKA_PORT + 1 + ${1#kafka-}))" ;;
    sqs) echo "$ANYQUEUE_SQS_PORT" ;;
    sns) echo "$ANYQUEUE_SNS_PORT" ;;
  esac
}

# Where the controllers of Kafka speak with each other.
controller_port_of() {
  case $1 in
    kafka) echo "$ANYQUEUE_KAFKA_CONTROLLER_PORT" ;;
    kafka-[123]) echo "$((ANYQUEUE_KAFKA_PORT + 4 + ${1#kafka-}))" ;;
  esac
}

url_of() {
  case $1 in
    rabbitmq*) echo "amqp://guest:guest@127.0.0.1:$(port_of "$1")" ;;
    kafka*) echo "kafka://127.0.0.1:$(port_of "$1")" ;;
    # ElasticMQ has no topics.
    sqs) echo "sqs://127.0.0.1:$ANYQUEUE_SQS_PORT?region=us-east-1&access_key=test&secret_key=test&sns_endpoint=none" ;;
    sns) echo "sqs://127.0.0.1:$ANYQUEUE_SNS_PORT?region=us-east-1&access_key=test&secret_key=test" ;;
  esac
}

# Nothing for a node of a cluster: whoever starts one knows its hosts from `up`.
variable_of() {
  case $1 in
    rabbitmq) echo ANYQUEUE_TEST_AMQP_URL ;;
    rabbitmq4) echo ANYQUEUE_TEST_AMQP4_URL ;;
    kafka) echo ANYQUEUE_TEST_KAFKA_URL ;;
    sqs) echo ANYQUEUE_TEST_SQS_URL ;;
    sns) echo ANYQUEUE_TEST_SNS_URL ;;
  esac
}

# The mode is remembered while a set exists: an engine that comes or goes in between must not
# hide brokers that are running, and asking docker would slow every kill and freeze.
pick_mode() {
  local mode=${ANYQUEUE_BROKERS_MODE:-}
  if [[ -s $run_dir/mode ]]; then
    mode=$(<"$run_dir/mode")
  elif [[ -z $mode ]]; then
    mode=native
    if docker info >/dev/null 2>&1 && docker compose version >/dev/null 2>&1; then mode=compose; fi
  fi
  case $mode in
    native | compose) echo "$mode" ;;
    *) die "ANYQUEUE_BROKERS_MODE is compose or native, not $mode" ;;
  esac
}

# Written beside and moved: another call may read it meanwhile.
remember_mode() {
  mkdir -p "$run_dir"
  echo "$1" >"$run_dir/mode.$$"
  mv "$run_dir/mode.$$" "$run_dir/mode"
}

# Removes the run folder with the last broker, and nothing that this script did not make.
forget_run() {
  local name
  for name in "${all_names[@]}"; do [[ ! -e $(dir_of "$name") ]] || return 0; done
  rm -f "$run_dir/mode"
  rmdir "$run_dir" 2>/dev/null || true
}

# Serializes what makes or removes files of one broker of one set. The lock lies in the cache,
# because the run folder may be removed while somebody waits.
with_lock() {
  local name=$1
  shift
  mkdir -p "$cache_dir/locks"
  (
    flock 9
    "$@"
  ) 9>"$cache_dir/locks/$set_id-$name"
}
