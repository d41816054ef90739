# shellcheck shell=bash
# ElasticMQ, which speaks SQS. It keeps its queues in memory: a kill empties it.

sqs_jars="$cache_dir/elasticmq-$ANYQUEUE_ELASTICMQ_VERSION"

sqs_prepare() {
  need_java
  fetch_jars "${root:?}/scripts/lib/elasticmq.pom.xml" "$sqs_jars" \
    "elasticmq.version=$ANYQUEUE_ELASTICMQ_VERSION"
  local dir
  dir=$(dir_of sqs)
  mkdir -p "$dir"
  cat >"$dir/elasticmq.conf" <<CONF
include classpath("application.conf")
node-address { protocol = http, host = localhost, port = $ANYQUEUE_SQS_PORT, context-path = "" }
rest-sqs { enabled = true, bind-port = $ANYQUEUE_SQS_PORT, bind-hostname = "127.0.0.1", sqs-limits = strict }
rest-stats { enabled = false }
CONF
}

sqs_launch() {
  local dir
  dir=$(dir_of sqs)
  spawn sqs "$dir/broker.log" java -Xmx256m "$(mark_of sqs)" \
    "-Dconfig.file=$dir/elasticmq.conf" -cp "$sqs_jars/*" org.elasticmq.server.Main
}

sqs_tool() { die "there is no command line tool for sqs; any HTTP client will do"; }
