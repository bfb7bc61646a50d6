#!/usr/bin/env bash
# Redis on loopback, nothing on disk.
NAME=redis PORT=${PORT:-16379}
. "$(dirname "$0")/lib.sh"

do_install() { apt_install redis-server curl; }

do_ready() { [ "$(redis-cli -p "$PORT" ping)" = PONG ]; }

# A title of its own would overwrite its environment, by which the script knows that the process is the one it started.
do_launch() { exec redis-server --set-proc-title no --port "$PORT" --bind 127.0.0.1 --save '' --appendonly no --dir "$DATA_DIR"; }
main "$@"
