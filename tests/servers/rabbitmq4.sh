#!/usr/bin/env bash
# RabbitMQ 4, of the Debian release after the one whose package rabbitmq.sh takes, in a root folder of its own, so that both are there:
# `do-bin` names the folder for RABBITMQ_BIN. Needs root.
NAME=rabbitmq4
. "$(dirname "$0")/lib.sh"
RELEASE=trixie
PLACE=$OPT_DIR/$NAME
# What the package needs. With the package among them, its scripts would make users and start it.
NEEDS=erlang-base,erlang-crypto,erlang-eldap,erlang-inets,erlang-mnesia,erlang-os-mon,erlang-parsetools,erlang-public-key,erlang-runtime-tools,\
erlang-ssl,erlang-syntax-tools,erlang-tools,erlang-xmerl,socat,ca-certificates

do_install() {
  [ ! -x "$PLACE/bin/rabbitmq-server" ] || return 0
  local root=$PLACE/root mirror program
  apt_install debootstrap
  fetch "Debian apt" apt-get update
  mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Label: Debian' | sed -n 1p)
  [ -n "$mirror" ] || die "apt knows no mirror of Debian"
  rm -rf --one-file-system "$PLACE"
  mkdir -p "$PLACE/bin"
  # What it mounts is gone with it.
  fetch "Debian apt" unshare --mount debootstrap --variant=minbase --include="$NEEDS" "$RELEASE" "$root" "$mirror"
  cp /etc/{hosts,resolv.conf,nsswitch.conf} "$root/etc"
  fetch "Debian apt" chroot "$root" sh -c 'cd /var/cache/apt && apt-get update && apt-get download rabbitmq-server && dpkg-deb -x rabbitmq-server_*.deb /'
  for program in /usr/bin/epmd /usr/lib/rabbitmq/bin/{rabbitmqctl,rabbitmq-server}; do
    # The mounts are gone with the process, too.
    cat >"$PLACE/bin/${program##*/}" <<P
#!/bin/sh
exec unshare --mount sh -c '
  root=\$1 home=\$2
  shift 2
  for folder in /proc /dev /tmp "\$home"; do
    mkdir -p "\$root\$folder" && mount --bind "\$folder" "\$root\$folder" || exit
  done
  exec chroot "\$root" "\$@"' sh '$root' "\$HOME" $program "\$@"
P
    chmod +x "$PLACE/bin/${program##*/}"
  done
}

do_bin() { echo "$PLACE/bin"; }
main "$@"
