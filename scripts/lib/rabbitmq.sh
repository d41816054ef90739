# shellcheck shell=bash
# Private RabbitMQ nodes, with an epmd of the set's own, beside whatever the machine runs already.
# Which server a name stands for: rabbitmq* that of the distribution, rabbitmq4* a newer one.

# The wrapper in sbin would change to the user rabbitmq.
rabbitmq_bin=/usr/lib/rabbitmq/bin

rabbitmq_prepare() {
  local name=$1 dir
  if [[ $name == rabbitmq4* ]]; then
    rabbitmq4_fetch
  elif [[ ! -x $rabbitmq_bin/rabbitmq-server ]]; then
    install_packages rabbitmq-server
    # The package's own service would hold the ports, on every interface.
    if [[ -d /run/systemd/system ]]; then
      as_root systemctl disable --now rabbitmq-server.service epmd.socket epmd.service || true
    fi >/dev/null 2>&1
  fi
  dir=$(dir_of "$name")
  [[ -e $dir/home/.erlang.cookie ]] && return
  mkdir -p "$dir/home" "$dir/data" "$dir/log" "$dir/generated"
  rabbitmq_config "$name" >"$dir/rabbitmq.conf"
  # A silent node of a cluster is given up after 5 to 7 s, not after a minute.
  if [[ $(cluster_of "$name") ]]; then
    echo '[{kernel, [{net_ticktime, 5}]}].'
  else
    echo '[].'
  fi >"$dir/advanced.config"
  echo '[rabbitmq_consistent_hash_exchange, rabbitmq_management].' >"$dir/enabled_plugins"
  : >"$dir/env.conf"
  # What a test of its own wants beyond that: more lines, other files.
  if [[ -n ${ANYQUEUE_RABBITMQ_EXTRA:-} ]]; then
    cat "$ANYQUEUE_RABBITMQ_EXTRA/rabbitmq.conf" >>"$dir/rabbitmq.conf"
    cp "$ANYQUEUE_RABBITMQ_EXTRA/enabled_plugins" "$ANYQUEUE_RABBITMQ_EXTRA/advanced.config" "$dir/"
  fi
  with_lock epmd rabbitmq_cookie "$dir/home/.erlang.cookie"
}

rabbitmq_config() {
  local name=$1 port peer peers number=0
  port=$(port_of "$name")
  cat <<CONF
listeners.tcp.1 = 127.0.0.1:$port
management.tcp.ip = 127.0.0.1
management.tcp.port = $((port + 10000))
log.console = true
log.console.level = info
log.file = false
CONF
  peers=$(cluster_of "$name")
  if [[ $peers ]]; then
    echo 'cluster_partition_handling = pause_minority'
    echo 'cluster_formation.peer_discovery_backend = classic_config'
    for peer in $peers; do
      number=$((number + 1))
      echo "cluster_formation.classic_config.nodes.$number = $(rabbitmq_node "$peer")"
    done
  fi
}

# Names are known to the epmd of the set alone.
rabbitmq_node() { echo "anyqueue-$(port_of "$1")@localhost"; }

# All nodes of a set share a cookie, as those of a cluster must.
rabbitmq_cookie() {
  local shared
  shared=$(dir_of epmd)/cookie
  umask 077
  mkdir -p "$(dir_of epmd)"
  [[ -s $shared ]] || head -c 24 /dev/urandom | od -An -v -tx1 | tr -d ' \n' >"$shared"
  cp "$shared" "$1"
  chmod 400 "$1"
}

# Sets `rabbitmq_env`, with which a command sees this set's node and nothing of the machine's own.
rabbitmq_environment() {
  local name=$1 dir port loopback='-kernel inet_dist_use_interface {127,0,0,1}'
  dir=$(dir_of "$name")
  port=$(port_of "$name")
  rabbitmq_env=()
  if [[ $name == rabbitmq4* ]]; then rabbitmq4_enter; fi
  rabbitmq_env+=(env
    HOME="$dir/home"
    ERL_EPMD_PORT="$ANYQUEUE_EPMD_PORT"
    ERL_EPMD_ADDRESS=127.0.0.1
    RABBITMQ_NODENAME="$(rabbitmq_node "$name")"
    RABBITMQ_NODE_IP_ADDRESS=127.0.0.1
    RABBITMQ_NODE_PORT="$port"
    RABBITMQ_DIST_PORT="$((port + 20000))"
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

# Left to itself a node would start an epmd of which nobody knows the pid.
rabbitmq_epmd() {
  pid_of epmd >/dev/null && return
  free_port "$ANYQUEUE_EPMD_PORT"
  spawn epmd "$(log_of epmd)" "${rabbitmq_env[@]}" epmd -address 127.0.0.1 -port "$ANYQUEUE_EPMD_PORT"
  local tries=250
  until port_is_open "$ANYQUEUE_EPMD_PORT"; do
    ((tries-- > 0)) || die "epmd does not listen; see $(log_of epmd)"
    sleep 0.02
  done
}

# What the nodes of a set share goes with the last of them.
rabbitmq_forget_shared() {
  local name
  for name in "${all_names[@]}"; do
    [[ $(kind_of "$name") != rabbitmq || ! -e $(dir_of "$name") ]] || return 0
  done
  slay epmd
  rm -f "$(pid_file epmd)"
  rm -rf "$(dir_of epmd)"
}

rabbitmq_launch() {
  local name=$1 rabbitmq_env
  rabbitmq_environment "$name"
  with_lock epmd rabbitmq_epmd
  # RUNNING_UNDER_SYSTEMD: the start script becomes the Erlang machine instead of watching over
  # it, so the pid is the broker's own. The mark is an argument that Erlang ignores.
  spawn "$name" "$(log_of "$name")" "${rabbitmq_env[@]}" RUNNING_UNDER_SYSTEMD=true \
    "$rabbitmq_bin/rabbitmq-server" "$(mark_of "$name")"
}

rabbitmq_tool() {
  local name=$1 rabbitmq_env
  shift
  rabbitmq_environment "$name"
  "${rabbitmq_env[@]}" "$rabbitmq_bin/rabbitmqctl" "$@"
}
