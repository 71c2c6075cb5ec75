#!/bin/sh
# Two sites 500 km apart on one machine, without root: a relay between them passes TCP connections on, late and at a rate.
#
#     rank 0 ---> gangline wan (a port that the kernel picks) ---> rank 1
#
# The ranks sum 4 MiB forty times. After two seconds the way is cut for one and a half: the sum under way waits, and goes on when
# it is whole again. BUILD names the build directory.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
build=$(realpath "${BUILD:-$here/../../build}")

work=$(mktemp -d)
relay='' other=''
tidy_up() {
    for pid in $relay $other; do kill "$pid" 2>/dev/null || true; done
    rm -rf "$work"
}
trap tidy_up EXIT
trap 'exit 1' INT TERM HUP

first_line() { # FILE PID: when the process has written it
    until [ -s "$1" ]; do
        kill -0 "$2" || exit 1
        sleep 0.05
    done
    head -n 1 "$1"
}
(umask 077 && head -c 32 /dev/urandom >"$work/secret")
"$build/example_site" 1 127.0.0.1:0 "$work/secret" >"$work/address" & other=$!
address=$(first_line "$work/address" $other)
"$build/gangline" wan --listen 127.0.0.1:0 --to "$address" --distance 500km --rate 500Mbps --cut-at 2s --heal-at 3500ms >"$work/relay" & relay=$!
through=$(first_line "$work/relay" $relay | cut -d ' ' -f 2)
"$build/example_site" 0 127.0.0.1:0 "$work/secret" "$through"
wait $other
other=

kill -INT $relay
wait $relay
relay=
cat "$work/relay"
