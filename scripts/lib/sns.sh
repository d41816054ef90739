# shellcheck shell=bash
# Moto, which speaks SNS and SQS, with topics that deliver to queues. It keeps everything in memory: a kill empties it.

sns_list="${root:?}/scripts/lib/moto.txt"
sns_python="$cache_dir/moto-$(cksum <"$sns_list" | cut -d' ' -f1)"

sns_prepare() {
  make_python "$sns_python" --require-hashes -r "$sns_list"
  mkdir -p "$(dir_of sns)"
}

sns_launch() {
  # Unbuffered: the line that says that it is ready must not wait for others.
  spawn sns "$(log_of sns)" "$sns_python/bin/python" -u "$(mark_of sns)" -m moto.server -H 127.0.0.1 -p "$ANYQUEUE_SNS_PORT"
}

sns_tool() { die "there is no command line tool for sns; any HTTP client will do"; }
