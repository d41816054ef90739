# shellcheck shell=bash
# Programs from the distribution and jars from Maven's packages; nothing is fetched twice.

as_root() {
  if ((EUID == 0)); then "$@"; else sudo "$@"; fi
}

# install_packages PACKAGE...: brokers start side by side, but apt serves one at a time.
install_packages() {
  command -v apt-get >/dev/null ||
    die "needed here: $* (or a docker engine); only apt-get is known to this script"
  say "installing $*"
  mkdir -p "$cache_dir"
  (
    flock 8
    as_root apt-get update -qq &&
      as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=300 "$@"
  ) 8>"$cache_dir/apt.lock" >"$cache_dir/apt.log" 2>&1 || {
    tail -n 20 "$cache_dir/apt.log" >&2
    die "apt-get could not install $*"
  }
}

need_java() {
  command -v java >/dev/null || install_packages default-jre-headless
}

# make_python FOLDER ARGUMENT...: an environment of its own with what these arguments of `pip install` name, made once. The
# machine's own Python stays as it is.
make_python() {
  local folder=$1
  shift
  mkdir -p "$cache_dir"
  (
    # Brokers start and tests ask side by side.
    flock 8
    [[ -e $folder/.complete ]] && exit
    # Debian has the module, and what it unpacks in a package of its own.
    python3 -c 'import ensurepip' 2>/dev/null || install_packages python3-venv
    say "making $folder"
    # A chain, because the `||` below turns `set -e` off in here.
    rm -rf "$folder" &&
      python3 -m venv "$folder" >&2 &&
      "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@" >&2 &&
      touch "$folder/.complete"
  ) 8>"$cache_dir/python.lock" || die "pip could not make $folder"
}

# fetch_jars POM FOLDER PROPERTY=VALUE: fills FOLDER with what the POM depends on, once.
fetch_jars() {
  local pom=$1 folder=$2 property=$3
  [[ -e $folder/.complete ]] && return
  command -v mvn >/dev/null || install_packages maven
  mkdir -p "$cache_dir"
  (
    # One lock for all jars: Maven's local repository is not made for two writers either.
    flock 8
    [[ -e $folder/.complete ]] && exit
    say "fetching jars into $folder"
    # A chain, because the `||` below turns `set -e` off in here.
    rm -rf "$folder" &&
      mkdir -p "$folder" &&
      mvn -q -B -Dstyle.color=never -f "$pom" "-D$property" dependency:copy-dependencies \
        "-DoutputDirectory=$folder" </dev/null >&2 &&
      touch "$folder/.complete"
  ) 8>"$cache_dir/maven.lock" || die "Maven could not fetch the jars of $property"
}
