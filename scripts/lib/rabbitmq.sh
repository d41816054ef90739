# shellcheck shell=bash
# A private RabbitMQ node, with its own epmd, beside whatever the machine runs already.

# The wrapper in sbin would change to the user rabbitmq.
rabbitmq_bin=/usr/lib/rabbitmq/bin

rabbitmq_prepare() {
  [[ -x $rabbitmq_bin/rabbitmq-server ]] || {
    install_packages rabbitmq-server
    # The package's own service would hold the ports, on every interface.
    if [[ -d /run/systemd/system ]]; then
      as_root systemctl disable --now rabbitmq-server.service epmd.socket epmd.service || true
    fi >/dev/null 2>&1
  }
  local dir
  dir=$(dir_of rabbitmq)
  [[ -e $dir/home/.erlang.cookie ]] && return
  mkdir -p "$dir/home" "$dir/data" "$dir/log" "$dir/generated"
  cat >"$dir/rabbitmq.conf" <<CONF
listeners.tcp.1 = 127.0.0.1:$ANYQUEUE_RABBITMQ_PORT
log.console = true
log.console.level = info
log.file = false
CONF
  echo '[].' >"$dir/advanced.config"
  echo '[].' >"$dir/enabled_plugins"
  : >"$dir/env.conf"
  # What a test of its own wants beyond that: more lines, other files.
  if [[ -n ${ANYQUEUE_RABBITMQ_EXTRA:-} ]]; then
    cat "$ANYQUEUE_RABBITMQ_EXTRA/rabbitmq.conf" >>"$dir/rabbitmq.conf"
    cp "$ANYQUEUE_RABBITMQ_EXTRA/enabled_plugins" "$ANYQUEUE_RABBITMQ_EXTRA/advanced.config" "$dir/"
  fi
  (
    umask 077
    head -c 24 /dev/urandom | od -An -v -tx1 | tr -d ' \n' >"$dir/home/.erlang.cookie"
  )
  chmod 400 "$dir/home/.erlang.cookie"
}

# Sets `rabbitmq_env`, with which a command sees this set's node and nothing of the machine's own.
rabbitmq_environment() {
  local dir loopback='-kernel inet_dist_use_interface {127,0,0,1}'
  dir=$(dir_of rabbitmq)
  rabbitmq_env=(env
    HOME="$dir/home"
    ERL_EPMD_PORT="$ANYQUEUE_EPMD_PORT"
    ERL_EPMD_ADDRESS=127.0.0.1
    RABBITMQ_NODENAME="anyqueue-$ANYQUEUE_RABBITMQ_PORT@localhost"
    RABBITMQ_NODE_IP_ADDRESS=127.0.0.1
    RABBITMQ_NODE_PORT="$ANYQUEUE_RABBITMQ_PORT"
    RABBITMQ_DIST_PORT="$ANYQUEUE_RABBITMQ_DIST_PORT"
    RABBITMQ_CONF_ENV_FILE="$dir/env.conf"
    RABBITMQ_CONFIG_FILE="$dir/rabbitmq.conf"
    RABBITMQ_ADVANCED_CONFIG_FILE="$dir/advanced.config"
    RABBITMQ_GENERATED_CONFIG_DIR="$dir/generated"
    RABBITMQ_ENABLED_PLUGINS_FILE="$dir/enabled_plugins"
    RABBITMQ_MNESIA_BASE="$dir/data"
    RABBITMQ_LOG_BASE="$dir/log"
    RABBITMQ_LOGS=-
    RABBITMQ_PID_FILE="$dir/data/node.pid"
    RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="$loopback"
    RABBITMQ_CTL_ERL_ARGS="$loopback")
}

rabbitmq_launch() {
  local dir rabbitmq_env
  dir=$(dir_of rabbitmq)
  rabbitmq_environment
  # Left to itself the node would start an epmd of which nobody knows the pid.
  if ! pid_of epmd >/dev/null; then
    free_port "$ANYQUEUE_EPMD_PORT"
    spawn epmd "$dir/epmd.log" epmd -address 127.0.0.1 -port "$ANYQUEUE_EPMD_PORT"
  fi
  # RUNNING_UNDER_SYSTEMD: the start script becomes the Erlang machine instead of watching over
  # it, so the pid is the broker's own. The mark is an argument that Erlang ignores.
  spawn rabbitmq "$dir/broker.log" "${rabbitmq_env[@]}" RUNNING_UNDER_SYSTEMD=true \
    "$rabbitmq_bin/rabbitmq-server" "$(mark_of rabbitmq)"
}

rabbitmq_tool() {
  local rabbitmq_env
  rabbitmq_environment
  "${rabbitmq_env[@]}" "$rabbitmq_bin/rabbitmqctl" "$@"
}
