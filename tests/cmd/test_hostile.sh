#!/usr/bin/env bash
# A run among enemies: strangers at all its doors, and its processes killed and stopped at any moment. GANG_TEST_KILLS=n for more of these.
. "$(dirname "$0")/runs.sh"

# strangers SECONDS SEED: connects to every port at which a process of the run listens, as soon as it does, and says nothing, nonsense,
# or half of something. Says how many it was.
cat >strangers.py <<'PY'
import glob, os, random, socket, sys, time

mark, seconds, rng = sys.argv[1].encode(), float(sys.argv[2]), random.Random(int(sys.argv[3]))

def inodes():
    for path in glob.glob("/proc/[0-9]*/environ"):
        try:
            if mark in open(path, "rb").read():
                fds = os.path.dirname(path) + "/fd/"
                yield from (os.readlink(fds + fd)[8:-1] for fd in os.listdir(fds) if os.readlink(fds + fd).startswith("socket:"))
        except OSError:
            pass  # it has ended

def ports():
    mine, lines = set(inodes()), (line.split() for line in open("/proc/net/tcp").read().splitlines()[1:])
    return sorted({int(f[1].split(":")[1], 16) for f in lines if f[3] == "0A" and f[9] in mine})

client_hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(32))
words = [lambda: b"", lambda: rng.randbytes(rng.randrange(1, 3000)), lambda: client_hello + rng.randbytes(rng.randrange(600)),
         lambda: client_hello[:rng.randrange(1, len(client_hello))], lambda: b"GLW1" + rng.randbytes(60),
         lambda: b"GLW1\1\1" + b"\xff" * 2000, lambda: b"\x17\x03\x03\xff\xff" + rng.randbytes(20000)]
kept, known, seen, count, look_at, end = [], [], set(), 0, 0, time.monotonic() + seconds
while time.monotonic() < end:
    if time.monotonic() >= look_at:
        known, look_at = ports(), time.monotonic() + 0.2
        seen.update(known)
    if not known:
        time.sleep(0.01)
        continue
    s = socket.socket()
    s.setblocking(False)
    s.connect_ex(("127.0.0.1", rng.choice(known)))
    try:
        s.send(rng.choice(words)())
    except OSError:
        pass
    count += 1
    kept.append(s)
    if len(kept) > 100:
        kept.pop(rng.randrange(len(kept))).close()
print(count, "strangers at", len(seen), "doors")
assert len(seen) >= 3 and count >= 100  # of the coordinator, of nodes and of ranks
PY

test_strangers_at_all_doors() {
    local before strangers
    job besieged "steps: 99999999" "cluster: near.yaml" "layout: pp=2,mb=1"
    endless besieged
    /usr/bin/python3 strangers.py "$mark" 5 "${GANG_TEST_SEED:-1}" >out 2>&1 &
    strangers=$!
    until_true steps_at_least 2
    wait $strangers || die "too few strangers"
    cat out
    before=$(wc -l <steps)
    until_true steps_at_least $((before + 5))
    kill -INT "$background"
    ended 0
    nobody_is_left
    run 0 generate besieged "dogs" --tokens 2 --temperature 0
}

# Waits for the run's end, but not for ever.
has_ended() {
    local tries=0
    while kill -0 "$background" 2>/dev/null; do
        tries=$((tries + 1))
        [ $tries -lt 600 ] || { cat err; ps -o pid,ppid,stat,args -p "$(processes "" | paste -sd,)"; die "the run hangs: $*"; }
        sleep 0.1
    done
}

# Any process, at any moment from the first on: the run fails, its first error names who, and nothing is left.
test_killed_at_any_moment() {
    local i ms role victim signal seed=${GANG_TEST_SEED:-$RANDOM}
    echo "seed $seed"
    RANDOM=$seed
    job struck "steps: 99999999" "cluster: near.yaml" "layout: pp=2,mb=1" "save_every: 2"
    for ((i = 0; i < ${GANG_TEST_KILLS:-3}; i++)); do
        rm -rf struck
        endless struck
        ms=$((RANDOM % 2500))
        role=$(shuf -n 1 -e rank agent train --random-source=<(yes "$RANDOM"))
        signal=KILL
        [ "$role" = train ] || [ $((RANDOM % 4)) != 0 ] || signal=STOP
        sleep "$(printf '%d.%03d' $((ms / 1000)) $((ms % 1000)))"
        until_true exists " $role"
        victim=$(processes " $role" | shuf -n 1 --random-source=<(yes "$RANDOM"))
        kill -$signal "$victim"
        has_ended "$signal $role after $ms ms"
        if [ "$role" = train ]; then
            ended 137
        else
            ended 1
            grep '^gangline: ' err | head -n 1 | grep -Eq '(rank|device) [01] on (first|second)|node [01]|node (first|second)' ||
                die "the first error does not say who: $signal $role after $ms ms"
        fi
        nobody_is_left
        [ ! -e struck/latest ] || run 0 generate struck "dogs" --tokens 2 --temperature 0
    done
}

run_all "$0"
