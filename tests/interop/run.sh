#!/bin/sh
# The interop tests in a network namespace of their own with one address (some stacks refuse
# loopback, and gather whatever else a machine has). Needs root; ./setup.sh comes first.
set -eu
cd "$(dirname "$0")"
cargo test --no-run
exec unshare --net sh -c '
    ip link set lo up
    ip link add interop0 type veth peer name interop1
    ip link set interop1 up
    ip addr add 198.51.100.1/24 dev interop0
    ip link set interop0 up
    INTEROP_ADDRESS=198.51.100.1 exec cargo test --offline -- --test-threads=1 --nocapture "$@"
' run "$@"
