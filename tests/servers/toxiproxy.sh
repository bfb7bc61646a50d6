#!/usr/bin/env bash
# Toxiproxy, which cuts, delays and resets the connections that go through it. Its HTTP API is on PORT; proxies are made through that.
NAME=toxiproxy PORT=${PORT:-18474}
. "$(dirname "$0")/lib.sh"
VERSION=${TOXIPROXY_VERSION:-v2.12.0}

do_install() {
  [ -x "$OPT_DIR/toxiproxy/server" ] && return
  GOBIN=$OPT_DIR/toxiproxy fetch "the Go module proxy" \
    go install "github.com/Shopify/toxiproxy/v2/cmd/server@$VERSION"
}

do_ready() { curl -fsS -m 5 "http://127.0.0.1:$PORT/version"; }

do_launch() { exec "$OPT_DIR/toxiproxy/server" -host 127.0.0.1 -port "$PORT"; }
main "$@"
