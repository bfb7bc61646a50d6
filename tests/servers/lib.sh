# Shared by the server scripts; source it, then call `main "$@"`.
# A script sets NAME and defines: do_install, do_ready (exit 0 when the server
# answers), and do_launch (exec's the server in the foreground).
# Environment: DATA_DIR (state, logs, pid), PORT, HEAP, OPT_DIR (installs; outside of the
# checkout, so that they are reused), WAIT_S.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CACHE=${TRACKALERT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/trackalert}
OPT_DIR=$(realpath -m "${OPT_DIR:-$CACHE/servers}")
DATA_DIR=$(realpath -m "${DATA_DIR:-$CACHE/servers-data/$NAME}")
WAIT_S=${WAIT_S:-120}
PIDFILE=$DATA_DIR/$NAME.pid
LOG=$DATA_DIR/$NAME.log
INSTALL_LOG=$OPT_DIR/$NAME.install.log
JAVA_FLAGS="-Xms${HEAP_MIN:-128m} -Xmx${HEAP:-512m} -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xshare:auto"

say() { echo "$NAME: $*"; }
die() { echo "$NAME: ERROR: $*" >&2; exit 1; }

# fetch WHAT CMD...: run a registry client; on failure say which registry it was.
fetch() {
  local what=$1; shift
  command -v "$1" >/dev/null || die "$1 is not installed"
  "$@" >"$INSTALL_LOG" 2>&1 && return
  tail -n 15 "$INSTALL_LOG" >&2
  die "install failed: could not get what is needed from $what" \
      "(is that registry reachable? full log: $INSTALL_LOG)"
}

# The server stalls, as on a machine that does: its connections stand and nothing answers.
do_freeze() { kill -STOP -- "-$(cat "$PIDFILE")"; }
do_thaw() { kill -CONT -- "-$(cat "$PIDFILE")"; }

# mvn_jars DIR "g:a:v ...": copy artifacts and their runtime dependencies into DIR.
mvn_jars() {
  local dir=$1 work g a v; shift
  work=$(mktemp -d)
  {
    echo '<project><modelVersion>4.0.0</modelVersion><groupId>t</groupId>'
    echo '<artifactId>t</artifactId><version>1</version><packaging>pom</packaging><dependencies>'
    for gav in $1; do
      IFS=: read -r g a v <<<"$gav"
      echo "<dependency><groupId>$g</groupId><artifactId>$a</artifactId><version>$v</version></dependency>"
    done
    echo '</dependencies></project>'
  } >"$work/pom.xml"
  fetch "Maven Central" mvn -B -ntp -f "$work/pom.xml" \
    dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$work/jars"
  mkdir -p "$dir"; cp "$work"/jars/*.jar "$dir"/; rm -rf "$work"
}

apt_install() {
  [ "$(dpkg-query -W -f '${db:Status-Status}\n' "$@" 2>/dev/null | grep -cx installed)" = $# ] && return
  fetch "Debian apt" sh -c 'apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"' sh "$@"
}

ours() { grep -zqxF "SERVER_TAG=$PIDFILE" "/proc/$1/environ" 2>/dev/null; }  # not a reused number
alive() { [ -s "$PIDFILE" ] && ours "$(cat "$PIDFILE")"; }

gone() { [ ! -e "/proc/$1/status" ] || grep -q '^State:.Z' "/proc/$1/status"; }

reap() {  # end the helpers (epmd, etcd) that a dead server left in its process group
  local p
  [ -s "$PIDFILE" ] || return 0
  for p in $(pgrep -g "$(cat "$PIDFILE")"); do if ours "$p"; then kill -9 "$p"; fi; done
  rm -f "$PIDFILE"
}

do_start() {
  mkdir -p "$DATA_DIR"
  if alive; then say "already running, pid $(cat "$PIDFILE"), port $PORT"; return; fi
  reap
  command -v curl >/dev/null || die "curl is not installed"
  if (exec 3<>"/dev/tcp/127.0.0.1/$PORT") 2>/dev/null; then die "port $PORT is taken by another process"; fi
  export OPT_DIR DATA_DIR PORT
  SERVER_TAG=$PIDFILE setsid "$HERE/$(basename "$0")" launch >"$LOG" 2>&1 </dev/null &
  local pid=$! t0=$SECONDS
  echo "$pid" >"$PIDFILE"
  until do_ready >/dev/null 2>&1; do
    if gone "$pid"; then tail -n 20 "$LOG" >&2; reap; die "died while starting (log: $LOG)"; fi
    [ $((SECONDS - t0)) -lt "$WAIT_S" ] || { tail -n 20 "$LOG" >&2; die "not ready after ${WAIT_S}s (log: $LOG)"; }
    sleep 0.2
  done
  say "ready on 127.0.0.1:$PORT, pid $pid"
}

do_stop() {
  if ! alive; then reap; say "not running"; return; fi
  local pid i; pid=$(cat "$PIDFILE")
  kill "$pid"
  for i in $(seq 150); do gone "$pid" && break; sleep 0.2; done
  gone "$pid" || { say "did not stop in 30s, killing it"; kill -9 -- "-$pid"; }
  reap; say "stopped"
}

do_status() {
  alive || { say "stopped"; return 3; }
  do_ready >/dev/null 2>&1 || { say "pid $(cat "$PIDFILE") runs but does not answer"; return 4; }
  say "running, pid $(cat "$PIDFILE"), port $PORT, RSS $(ps -eo pgid=,rss= | awk -v g="$(cat "$PIDFILE")" '$1 == g {s += $2} END {print int(s / 1024)}') MiB"
}

main() {
  mkdir -p "$OPT_DIR"
  case ${1:-} in
    # One at a time: several test binaries, or checkouts, may come at once.
    install) exec 9>"$OPT_DIR/$NAME.lock"; flock 9; do_install 9>&-; say "installed in $OPT_DIR/$NAME" ;;
    start) do_start ;;
    stop) do_stop ;;
    kill) alive && kill -9 "$(cat "$PIDFILE")"; reap ;;
    status) do_status ;;
    launch) do_launch ;;
    # What one server alone can do.
    do-*) local what=${1#do-}; shift; "do_${what//-/_}" "$@" ;;
    *) echo "usage: $0 install|start|stop|kill|status" >&2; exit 2 ;;
  esac
}
