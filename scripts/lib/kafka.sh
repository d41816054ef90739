# shellcheck shell=bash
# Apache Kafka: nodes that are broker and controller, one alone or three in a cluster.

kafka_jars="$cache_dir/kafka-$ANYQUEUE_KAFKA_VERSION"

# The nodes of a cluster know its id and the ids of one another's folders beforehand.
kafka_cluster_id=anyqueueClusterOfTestA
kafka_folder_id() { echo "anyqueueDirectoryNo${1}AA"; }

kafka_prepare() {
  local name=$1 dir cluster
  need_java
  fetch_jars "${root:?}/scripts/lib/kafka.pom.xml" "$kafka_jars" "kafka.version=$ANYQUEUE_KAFKA_VERSION"
  kafka_compile
  dir=$(dir_of "$name")
  [[ -e $dir/formatted ]] && return
  rm -rf "$dir/data"
  mkdir -p "$dir"
  kafka_config "$name" >"$dir/server.properties"
  if [[ $(cluster_of "$name") ]]; then
    kafka_format "$name" -t "$kafka_cluster_id" --initial-controllers "$(kafka_voters)"
  else
    cluster=$(head -c 16 /dev/urandom | base64 | tr '+/' 'AB' | tr -d '=')
    kafka_format "$name" -t "$cluster" --standalone
  fi
  touch "$dir/formatted"
}

# Makes the classes that a test of its own adds to the broker.
kafka_compile() {
  local sources=("${ANYQUEUE_KAFKA_EXTRA:-/dev/null}"/*.java)
  [[ -e ${sources[0]} ]] || return 0
  command -v javac >/dev/null || install_packages default-jdk-headless
  javac --release 17 -cp "$kafka_jars/*" -d "$ANYQUEUE_KAFKA_EXTRA" "${sources[@]}" >&2 || die "javac refuses ${sources[*]}"
}

kafka_format() {
  local dir
  dir=$(dir_of "$1")
  shift
  kafka_java kafka.tools.StorageTool format "$@" -c "$dir/server.properties" >"$dir/format.log" 2>&1 || {
    tail -n 20 "$dir/format.log" >&2
    die "Kafka could not format its data folder"
  }
}

# All controllers of the cluster, as id@host:port:folder.
kafka_voters() {
  local node voters=''
  for node in 1 2 3; do
    voters+=",$node@127.0.0.1:$(controller_port_of "kafka-$node"):$(kafka_folder_id "$node")"
  done
  echo "${voters#,}"
}

# After a crash a node waits until the session of its former life has timed out. A busy machine may stop a node for
# longer than it lasts: then the node loses what it leads, and has to take it all again.
kafka_config() {
  local name=$1 peer peers copies=1 least=1 controllers=''
  peers=$(cluster_of "$name")
  for peer in ${peers:-$name}; do controllers+=",127.0.0.1:$(controller_port_of "$peer")"; done
  if [[ $peers ]]; then
    copies=3
    least=2
  fi
  cat <<CONF
process.roles=broker,controller
node.id=$(kafka_node "$name")
listeners=PLAINTEXT://127.0.0.1:$(port_of "$name"),CONTROLLER://127.0.0.1:$(controller_port_of "$name")
advertised.listeners=PLAINTEXT://127.0.0.1:$(port_of "$name"),CONTROLLER://127.0.0.1:$(controller_port_of "$name")
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
controller.quorum.bootstrap.servers=${controllers#,}
log.dirs=$(dir_of "$name")/data
default.replication.factor=$copies
min.insync.replicas=$least
offsets.topic.replication.factor=$copies
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=$copies
transaction.state.log.min.isr=$least
share.coordinator.state.topic.replication.factor=$copies
share.coordinator.state.topic.min.isr=$least
group.initial.rebalance.delay.ms=0
group.consumer.heartbeat.interval.ms=500
group.consumer.min.heartbeat.interval.ms=500
group.consumer.session.timeout.ms=10000
group.consumer.min.session.timeout.ms=6000
broker.session.timeout.ms=$ANYQUEUE_KAFKA_SESSION
broker.heartbeat.interval.ms=500
auto.create.topics.enable=false
CONF
  if [[ $peers ]]; then
    # Three of them have to fit on a small machine.
    echo 'log.cleaner.dedupe.buffer.size=8388608'
  fi
  # What a test of its own wants beyond that; of a line that is there twice the last one counts.
  if [[ -n ${ANYQUEUE_KAFKA_EXTRA:-} ]]; then
    cat "$ANYQUEUE_KAFKA_EXTRA/server.properties"
  fi
}

kafka_node() {
  case $1 in
    kafka-*) echo "${1#kafka-}" ;;
    *) echo 1 ;;
  esac
}

kafka_java() {
  java -Xmx256m -XX:TieredStopAtLevel=1 -Dorg.slf4j.simpleLogger.defaultLogLevel=warn \
    -cp "$kafka_jars/*" "$@"
}

kafka_launch() {
  local name=$1 dir machine=(-Xmx1g)
  dir=$(dir_of "$name")
  # Those of a cluster are to start quickly, three on a small machine.
  if [[ $(cluster_of "$name") ]]; then machine=(-Xmx256m -XX:TieredStopAtLevel=1 -XX:+UseSerialGC); fi
  # At level info are the line that tells that the broker is ready, and those about brokers that are fenced.
  spawn "$name" "$dir/broker.log" java "${machine[@]}" "$(mark_of "$name")" \
    -Dorg.slf4j.simpleLogger.defaultLogLevel=warn \
    -Dorg.slf4j.simpleLogger.showDateTime=true \
    -Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info \
    -Dorg.slf4j.simpleLogger.log.org.apache.kafka.controller.ClusterControlManager=info \
    -cp "$kafka_jars/*${ANYQUEUE_KAFKA_EXTRA:+:$ANYQUEUE_KAFKA_EXTRA}" kafka.Kafka "$dir/server.properties"
}

kafka_tool() {
  shift
  kafka_java "$@"
}
