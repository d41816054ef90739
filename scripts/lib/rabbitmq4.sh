# shellcheck shell=bash
# RabbitMQ of a later Debian (4.3 or newer), in a folder of its own: its packages and all they depend on, unpacked and
# never installed. A command that runs from it sees the folder's /usr instead of the machine's, and everything else as
# it is, in a mount namespace that nobody else sees.

rabbitmq4_suite=${ANYQUEUE_DEBIAN_SUITE:-testing}
rabbitmq4_dir="$cache_dir/rabbitmq4-$rabbitmq4_suite"

# The namespace needs root; a user's own namespace does where the kernel lends one.
rabbitmq4_enter() {
  local own=()
  ((EUID == 0)) || own=(--user --map-root-user)
  # shellcheck disable=SC2016
  rabbitmq_env+=(unshare "${own[@]}" --mount --propagation private
    sh -c 'mount --bind "$0/usr" /usr && exec "$@"' "$rabbitmq4_dir")
}

rabbitmq4_fetch() {
  [[ -e $rabbitmq4_dir/.complete ]] && return
  [[ -L /lib ]] || die "RabbitMQ 4 needs a system with a merged /usr"
  command -v apt-get >/dev/null || die "RabbitMQ 4 comes from Debian's packages, and there is no apt-get here (a docker engine would do)"
  unshare "$( ((EUID == 0)) && echo --mount || echo --map-root-user)" true 2>/dev/null ||
    die "RabbitMQ 4 needs root, or a kernel that lends namespaces to users"
  mkdir -p "$cache_dir"
  (
    # One lock for every set that shares the cache.
    flock 8
    [[ -e $rabbitmq4_dir/.complete ]] && exit
    say "fetching RabbitMQ of Debian $rabbitmq4_suite into $rabbitmq4_dir"
    # A chain, because the `||` below turns `set -e` off in here.
    rm -rf "$rabbitmq4_dir" &&
      rabbitmq4_download "$rabbitmq4_dir/apt" &&
      rabbitmq4_unpack "$rabbitmq4_dir/apt/var/cache/apt/archives" &&
      rm -rf "$rabbitmq4_dir/apt" &&
      touch "$rabbitmq4_dir/.complete"
  ) 8>"$cache_dir/rabbitmq4.lock" || die "RabbitMQ of Debian $rabbitmq4_suite could not be fetched"
}

# The mirror of Debian that this machine's own apt uses.
rabbitmq4_mirror() {
  if [[ ${ANYQUEUE_DEBIAN_MIRROR:-} ]]; then
    echo "$ANYQUEUE_DEBIAN_MIRROR"
  else
    # shellcheck disable=SC2016
    apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' 'Origin: Debian' 'Label: Debian' |
      sort -u | head -n 1
  fi
}

# An apt of its own, which knows nothing of what the machine has: so it fetches all there is to it.
rabbitmq4_download() {
  local apt=$1 mirror keys=/usr/share/keyrings/debian-archive-keyring.gpg log=$cache_dir/rabbitmq4.log
  [[ -e $keys ]] || install_packages debian-archive-keyring
  mirror=$(rabbitmq4_mirror)
  if [[ -z $mirror && $EUID == 0 ]]; then
    # A fresh container has no lists yet.
    apt-get update -qq >"$log" 2>&1 && mirror=$(rabbitmq4_mirror)
  fi
  [[ $mirror ]] || {
    say "this machine's apt has no mirror of Debian; set ANYQUEUE_DEBIAN_MIRROR"
    return 1
  }
  mkdir -p "$apt"/etc/apt/{apt.conf.d,preferences.d,sources.list.d,trusted.gpg.d} "$apt/var/lib/dpkg" \
    "$apt/var/lib/apt/lists/partial" "$apt/var/cache/apt/archives/partial" || return
  : >"$apt/var/lib/dpkg/status"
  echo "deb [signed-by=$keys] $mirror $rabbitmq4_suite main" >"$apt/etc/apt/sources.list"
  # What the machine's apt does after an update is not for this one: in containers it removes what an apt beside it installs.
  echo '#clear APT::Update::Post-Invoke; #clear APT::Update::Post-Invoke-Success;' >"$apt/own.conf"
  local get=(apt-get -q -y -c "$apt/own.conf" -o "Dir=$apt" -o "Dir::State::status=$apt/var/lib/dpkg/status"
    -o Dir::Bin::Methods=/usr/lib/apt/methods -o Acquire::Languages=none -o APT::Sandbox::User=)
  {
    "${get[@]}" update &&
      "${get[@]}" install --no-install-recommends --download-only rabbitmq-server mawk '?essential'
  } >"$log" 2>&1 || {
    tail -n 20 "$log" >&2
    return 1
  }
}

rabbitmq4_unpack() {
  local packages=$1 package
  # First of all the one that makes /bin and /lib links into /usr.
  for package in "$packages"/base-files_*.deb "$packages"/*.deb; do
    dpkg-deb --fsys-tarfile "$package" |
      tar -x -C "$rabbitmq4_dir" --keep-directory-symlink --no-same-owner || return
  done
  # What its installation would have chosen.
  ln -sf mawk "$rabbitmq4_dir/usr/bin/awk"
}
