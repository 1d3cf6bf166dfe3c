#!/bin/sh
# Builds icecat, wice and the peers that are not Rust. Needs: python3-venv; libnice-dev, gcc, pkg-config;
# golang-go, golang-github-pion-ice.v2-dev (Debian, Ubuntu).
set -eu
cd "$(dirname "$0")"
peers=target/peers
mkdir -p "$peers"

(cd ../.. && cargo build -q --example icecat && cargo build -q --bin wice)

[ -x "$peers/venv/bin/python3" ] || python3 -m venv "$peers/venv"
"$peers/venv/bin/pip" -q install aioice==0.13.0

cc -O1 -o "$peers/nice_peer" peers/nice_peer.c \
    $(pkg-config --cflags nice | sed 's|\(-I[^ ]*\)|\1 \1/nice|') -I/usr/include/nice \
    $(pkg-config --libs nice)

# The distribution's libraries, without the network.
GO111MODULE=off GOPATH=/usr/share/gocode go build -o "$peers/pion_peer" peers/pion_peer.go
