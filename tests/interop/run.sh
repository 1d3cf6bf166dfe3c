#!/bin/sh
# The interop tests in a network namespace of their own (some stacks refuse loopback, and gather
# whatever else a machine has): one address for both sides, and for the relayed sessions another for
# us and one for a TURN server, with UDP between the two sides dropped. Needs root; ./setup.sh comes
# first.
set -eu
cd "$(dirname "$0")"
cargo test --no-run
exec unshare --net sh -c '
    ip link set lo up
    ip link add interop0 type veth peer name interop1
    ip link set interop1 up
    ip addr add 198.51.100.1/24 dev interop0
    ip addr add 198.51.100.2/24 dev interop0
    ip addr add 198.51.100.3/24 dev interop0
    ip link set interop0 up
    nft -f - <<END
table ip interop {
    chain output {
        type filter hook output priority filter
        ip saddr 198.51.100.1 ip daddr 198.51.100.2 meta l4proto udp counter drop
        ip saddr 198.51.100.2 ip daddr 198.51.100.1 meta l4proto udp counter drop
    }
}
END
    INTEROP_ADDRESS=198.51.100.1 exec cargo test --offline -- --test-threads=1 --nocapture "$@"
' run "$@"
