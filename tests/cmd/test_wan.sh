#!/bin/sh
# gangline wan on the command line: what it refuses, and that it carries bytes late. Speaks cmocka's lines, as tests/run wants.
set -u
gangline=${GANGLINE:?}
dir=$(mktemp -d)
pids=
trap 'for p in $pids; do kill "$p" 2>/dev/null; done; rm -rf "$dir"' EXIT
failed=0

check() { # NAME STATUS
    if [ "$2" = 0 ]; then echo "[       OK ] $1"; else echo "[  FAILED  ] $1"; failed=1; fi
}

refused() { # WORDS ARGUMENTS...: exit status 2 and these words on standard error
    words=$1
    shift
    "$gangline" wan "$@" >/dev/null 2>"$dir/err"
    [ $? = 2 ] && grep -q -- "$words" "$dir/err" || { cat "$dir/err"; return 1; }
}

bad=0
refused "--listen and --to, or --between, are needed" --rtt 5ms || bad=1
refused "give one of them" --between a,b --to 127.0.0.1:1 || bad=1
refused "expected two network interfaces" --between a || bad=1
refused "connections lose nothing" --listen 127.0.0.1:0 --to 127.0.0.1:1 --loss 0.001 || bad=1
refused "expected 0 to 0.3" --between a,b --loss 0.5 || bad=1
refused "not a number with a unit" --listen 127.0.0.1:0 --to 127.0.0.1:1 --rtt 5 || bad=1
refused "expected so long" --listen 127.0.0.1:0 --to 127.0.0.1:1 --outage 50ms || bad=1
refused "give one of them" --listen 127.0.0.1:0 --to 127.0.0.1:1 --rtt 5ms --distance 500km || bad=1
refused "without --cut-at" --listen 127.0.0.1:0 --to 127.0.0.1:1 --heal-at 1s || bad=1
check test_bad_options_are_named $bad

# An echo server that says its port, the relay in front of it, a client that measures.
cat >"$dir/echo.py" <<'PY'
import socket, sys
s = socket.socket(); s.bind(("127.0.0.1", 0)); s.listen(4)
print(s.getsockname()[1], flush=True)
while True:
    c, _ = s.accept()
    while (d := c.recv(65536)): c.sendall(d)
    c.close()
PY
cat >"$dir/client.py" <<'PY'
import socket, sys, time
c = socket.create_connection(("127.0.0.1", int(sys.argv[1]))); c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
best = 9
for i in range(20):
    t = time.monotonic(); c.sendall(b"x"); assert c.recv(1) == b"x"; best = min(best, time.monotonic() - t)
data = bytes(range(256)) * 8192
c.settimeout(30); got = b""
import threading
threading.Thread(target=lambda: c.sendall(data)).start()
while len(got) < len(data): got += c.recv(1 << 20)
assert got == data
print(best); sys.exit(not 0.02 <= best < 0.03)
PY
first_line() { # FILE: waits until it has one
    n=0
    until [ -s "$1" ] || [ $n = 500 ]; do n=$((n + 1)); sleep 0.01; done
    head -n 1 "$1"
}
python3 "$dir/echo.py" >"$dir/echo" & pids="$pids $!"
port=$(first_line "$dir/echo")
"$gangline" wan --listen 127.0.0.1:0 --to 127.0.0.1:"$port" --distance 2000km --rate 1Gbps >"$dir/wan" & relay=$! pids="$pids $!"
through=$(first_line "$dir/wan" | sed -E 's/^relay 127.0.0.1:([0-9]+) .*/\1/')
python3 "$dir/client.py" "$through"
check test_bytes_arrive_whole_and_late $?
kill -INT $relay
wait $relay
[ $? = 0 ] && grep -q "1 connections, 2.00 MiB there, 2.00 MiB back" "$dir/wan"
check test_ctrl_c_ends_it_with_a_report $?
exit $failed
