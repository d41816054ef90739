# shellcheck shell=bash
# Whether a broker answers in its own protocol: an open port is too early with each of them.

probe_seconds=3

# exchange PORT REQUEST COUNT: sends the request (in printf's notation) and prints the first
# COUNT bytes of the answer in hex, nothing if there is none.
exchange() {
  # shellcheck disable=SC2016
  timeout "$probe_seconds" bash -c '
    exec 3<>"/dev/tcp/127.0.0.1/$1" || exit
    printf "$2" >&3
    head -c "$3" <&3' exchange "$@" 2>/dev/null | od -An -v -tx1 | tr -d ' \n' || true
}

port_is_open() { (: 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Fails early, because a broker that finds its port taken says so late or not at all. The second
# of patience is for one that was killed by other means than this script.
free_port() {
  local tries=50
  while port_is_open "$1"; do
    ((tries-- > 0)) || die "port $1 is taken by a process that is not this set's"
    sleep 0.02
  done
}

# The protocol header of AMQP 0-9-1; a server's answer is a method frame (1) on channel 0.
rabbitmq_speaks() {
  [[ $(exchange "$1" 'AMQP\x00\x00\x09\x01' 3) == 010000 ]]
}

# ApiVersions, version 0, correlation id 7, no client id; the answer repeats the correlation id.
kafka_speaks() {
  [[ $(exchange "$1" '\x00\x00\x00\x0a\x00\x12\x00\x00\x00\x00\x00\x07\xff\xff' 8) == ????????00000007 ]]
}

# "HTTP/1."
sqs_speaks() {
  [[ $(exchange "$1" 'GET /?Action=ListQueues HTTP/1.0\r\n\r\n' 7) == 485454502f312e ]]
}

# "HTTP/1."
sns_speaks() {
  [[ $(exchange "$1" 'GET /?Action=ListTopics HTTP/1.0\r\n\r\n' 7) == 485454502f312e ]]
}

# The line with which each log says that the start is complete.
ready_line_of() {
  case $1 in
    rabbitmq*) echo 'Server startup complete' ;;
    kafka*) echo 'Kafka Server started' ;;
    sqs) echo 'started in' ;;
    sns) echo 'Running on http' ;;
  esac
}
