#!/bin/sh
# Two sites 500 km apart on one machine, as root: a network namespace each, a third in which the packet relay stands between them.
#
#     north                 middle                     south
#     10.88.0.1 eth0 <---> to_north  gangline wan  to_south <---> eth0 10.88.0.2
#
# A rank in each sums 4 MiB with the other forty times. The way loses packets, reorders and doubles some; after two seconds it is
# cut for one and a half: the sum under way waits, and goes on when the way is whole again. BUILD names the build directory.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
build=$(realpath "${BUILD:-$here/../../build}")
[ "$(id -u)" = 0 ] || { echo "namespaces.sh: network namespaces need root; connections.sh does without" >&2; exit 1; }
command -v ip >/dev/null || { echo "namespaces.sh: 'ip' is missing: install iproute2" >&2; exit 1; }

# Everything that is made here carries the number of this process, and goes with it however it ends.
work=$(mktemp -d)
north=north-$$ middle=middle-$$ south=south-$$ relay=
tidy_up() {
    [ -z "$relay" ] || kill "$relay" 2>/dev/null || true
    for name in $north $middle $south; do
        # What still runs in it first: with its last process and its name a namespace is gone, and its interfaces with it.
        for pid in $(ip netns pids $name 2>/dev/null); do kill -KILL "$pid" 2>/dev/null || true; done
        ip netns del $name 2>/dev/null || true
    done
    rm -rf "$work"
}
trap tidy_up EXIT
trap 'exit 1' INT TERM HUP

for name in $north $middle $south; do ip netns add $name; done
connect() { # SITE PORT ADDRESS: a virtual cable from the site to the middle
    ip -n "$1" link add eth0 type veth peer name "$2" netns $middle
    ip -n "$1" addr add "$3"/24 dev eth0
    ip -n "$1" link set eth0 up
    ip -n $middle link set "$2" up
}
connect $north to_north 10.88.0.1
connect $south to_south 10.88.0.2

ip netns exec $middle "$build/gangline" wan --between to_north,to_south --distance 500km --rate 500Mbps \
    --loss 0.001 --reorder 0.001 --duplicate 0.001 --cut-at 2s --heal-at 3500ms >"$work/relay" & relay=$!
until [ -s "$work/relay" ]; do
    kill -0 $relay || exit 1
    sleep 0.05
done
# Between machines a secret that only its owner may read is needed; all ranks have the same.
(umask 077 && head -c 32 /dev/urandom >"$work/secret")
ip netns exec $south "$build/example_site" 1 10.88.0.2:7000 "$work/secret" >/dev/null & other=$!
ip netns exec $north "$build/example_site" 0 10.88.0.1:0 "$work/secret" 10.88.0.2:7000
wait $other

kill -INT $relay
wait $relay
relay=
cat "$work/relay"
