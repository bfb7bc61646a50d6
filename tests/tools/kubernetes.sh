#!/usr/bin/env bash
# Holds manifests against the schemas of Kubernetes, the fields that no schema knows included. Needs Python; what it installs is kept
# in $TRACKALERT_CACHE. `install`, then `check VERSION FILE…`, which prints what is wrong and fails.
set -euo pipefail
RELEASE=1.37.0 # with the schemas of 1.25 to 1.37
CACHE=${TRACKALERT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/trackalert}
HOME_DIR=$CACHE/tools/kubernetes-validate-$RELEASE

die() { echo "kubernetes: ERROR: $*" >&2; exit 1; }

install() {
  mkdir -p "$CACHE/tools"
  exec 9>"$HOME_DIR.lock" # one at a time: several test binaries, or checkouts, may come at once
  flock 9
  [ -e "$HOME_DIR/.done" ] && return
  command -v python3 >/dev/null || die "python3 is not installed"
  rm -rf "$HOME_DIR"
  python3 -m venv "$HOME_DIR" >"$HOME_DIR.log" 2>&1 &&
    "$HOME_DIR/bin/pip" install --quiet "kubernetes-validate==$RELEASE" >>"$HOME_DIR.log" 2>&1 ||
    { tail -n 15 "$HOME_DIR.log" >&2; die "install failed (is the package registry reachable? log: $HOME_DIR.log)"; }
  touch "$HOME_DIR/.done"
}

case ${1:-} in
  install) install ;;
  check) shift; version=$1; shift; "$HOME_DIR/bin/kubernetes-validate" --strict --quiet -k "$version" "$@" ;;
  *) echo "usage: $0 install | check VERSION FILE…" >&2; exit 2 ;;
esac
