# shellcheck shell=bash
# Apache Kafka, one node that is broker and controller.

kafka_jars="$cache_dir/kafka-$ANYQUEUE_KAFKA_VERSION"

kafka_prepare() {
  need_java
  fetch_jars "${root:?}/scripts/lib/kafka.pom.xml" "$kafka_jars" "kafka.version=$ANYQUEUE_KAFKA_VERSION"
  local dir
  dir=$(dir_of kafka)
  [[ -e $dir/formatted ]] && return
  rm -rf "$dir/data"
  mkdir -p "$dir"
  # After a crash the node waits until the session of its former life has timed out, which by
  # default takes nine seconds. A shorter one would fence a broker on a busy machine.
  cat >"$dir/server.properties" <<CONF
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://127.0.0.1:$ANYQUEUE_KAFKA_PORT,CONTROLLER://127.0.0.1:$ANYQUEUE_KAFKA_CONTROLLER_PORT
advertised.listeners=PLAINTEXT://127.0.0.1:$ANYQUEUE_KAFKA_PORT
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
controller.quorum.bootstrap.servers=127.0.0.1:$ANYQUEUE_KAFKA_CONTROLLER_PORT
log.dirs=$dir/data
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.consumer.heartbeat.interval.ms=500
group.consumer.min.heartbeat.interval.ms=500
group.consumer.session.timeout.ms=10000
group.consumer.min.session.timeout.ms=6000
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
auto.create.topics.enable=false
CONF
  local cluster
  cluster=$(head -c 16 /dev/urandom | base64 | tr '+/' 'AB' | tr -d '=')
  kafka_java kafka.tools.StorageTool format --standalone -t "$cluster" \
    -c "$dir/server.properties" >"$dir/format.log" 2>&1 || {
    tail -n 20 "$dir/format.log" >&2
    die "Kafka could not format its data folder"
  }
  touch "$dir/formatted"
}

kafka_java() {
  java -Xmx256m -XX:TieredStopAtLevel=1 -Dorg.slf4j.simpleLogger.defaultLogLevel=warn \
    -cp "$kafka_jars/*" "$@"
}

kafka_launch() {
  local dir
  dir=$(dir_of kafka)
  # The one line at level info is the one that tells that the broker is unfenced.
  spawn kafka "$dir/broker.log" java -Xmx512m "$(mark_of kafka)" \
    -Dorg.slf4j.simpleLogger.defaultLogLevel=warn \
    -Dorg.slf4j.simpleLogger.showDateTime=true \
    -Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info \
    -cp "$kafka_jars/*" kafka.Kafka "$dir/server.properties"
}

kafka_tool() {
  shift
  kafka_java "$@"
}
