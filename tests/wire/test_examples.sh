#!/bin/sh
# The scripts of examples/wire: they come to their end, the cut shows, and nothing is left behind. Speaks cmocka's lines.
set -u
cd "$(dirname "$0")/../.." || exit 1
log=$(mktemp)
trap 'rm -f "$log"' EXIT
failed=0

check() { # NAME STATUS
    if [ "$2" = 0 ]; then echo "[       OK ] $1"; else cat "$log"; echo "[  FAILED  ] $1"; failed=1; fi
}

# All sums came, and one of them took as long as the cut.
whole() {
    [ "$(grep -c 'sum .* of 4 MiB' "$log")" = 40 ] && grep -Eq 'took +[0-9]{4,} ms' "$log"
}

examples/wire/connections.sh >"$log" 2>&1 && whole && grep -q " connections, " "$log"
check test_connections $?

if ! [ "$(id -u)" = 0 ] || ! command -v ip >/dev/null || ! ip netns add gangline-test-$$ 2>/dev/null; then
    echo "[  SKIPPED ] test_namespaces"
else
    ip netns del gangline-test-$$
    examples/wire/namespaces.sh >"$log" 2>&1 && whole && grep -Eq "packets: [1-9][0-9]* lost, [1-9]" "$log"
    check test_namespaces $?
    # Stopped in the middle it tidies up as well.
    examples/wire/namespaces.sh >"$log" 2>&1 & script=$!
    until grep -q 'sum  1 of' "$log" || ! kill -0 $script 2>/dev/null; do sleep 0.05; done
    kill -TERM $script
    wait $script
    ! ip netns list | grep -Eq -- "-$script( |$)"
    check test_nothing_is_left_behind $?
fi
exit $failed
