#!/usr/bin/env bash
# The regexes for User-Agents, from Debian's package. `install` prints where the file is.
set -euo pipefail
FILE=/usr/share/uap-core/regexes.yaml
CACHE=${TRACKALERT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/trackalert}

die() { echo "uap-core: ERROR: $*" >&2; exit 1; }

install() {
  [ -s "$FILE" ] && return
  mkdir -p "$CACHE/tools"
  local log=$CACHE/tools/uap-core.log
  exec 9>"$CACHE/tools/uap-core.lock" # one at a time: several test binaries, or checkouts, may come at once
  flock 9
  [ -s "$FILE" ] && return
  command -v apt-get >/dev/null || die "apt-get is not installed; put a regexes.yaml of uap-core at $FILE"
  { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends uap-core; } >"$log" 2>&1 ||
    { tail -n 15 "$log" >&2; die "install failed (are you root, and is the package registry reachable? log: $log)"; }
  [ -s "$FILE" ] || die "the package brought no $FILE"
}

case ${1:-} in
  install) install; echo "$FILE" ;;
  *) echo "usage: $0 install" >&2; exit 2 ;;
esac
