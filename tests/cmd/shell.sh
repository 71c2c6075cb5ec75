#!/usr/bin/env bash
# What tests of the program in bash share; sourced. They run $GANGLINE (build/gangline) in a directory of their own.
set -u
repo=$(cd "$(dirname "$0")/../.." && pwd)
gangline=$(realpath "${GANGLINE:-$repo/build/gangline}")
export GANGLINE=$gangline
scratch=$(mktemp -d)
export XDG_CACHE_HOME=$scratch/cache PYTHONPATH=$repo/tests/golden PYTHONDONTWRITEBYTECODE=1
background=
trap '[ -z "$background" ] || kill -KILL "$background" 2>/dev/null; rm -rf "$scratch"' EXIT
cd "$scratch" || exit 1

# ---- Checks ----------------------------------------------------------------------------------------------------------

die() {
    echo "ERROR: $*"
    echo "--- stdout" && tail -n 5 out
    echo "--- stderr" && tail -n 5 err
    exit 1
}

# run STATUS ARGUMENT...: the program ends with this status; what it said is in out and err.
run() {
    local expected=$1 status=0
    shift
    "$gangline" "$@" >out 2>err </dev/null || status=$?
    [ "$status" = "$expected" ] || die "gangline $*: status $status, expected $expected"
}

# says FILE WORDS: the words stand in the file.
says() { grep -qF -- "$2" "$1" || die "no '$2' in $1"; }

# One line on stderr, "gangline: what failed: why...", and nothing on stdout.
one_error() {
    [ "$(wc -l <err)" = 1 ] && grep -q '^gangline: .*: ' err || die "expected one line 'gangline: what: why'"
    [ ! -s out ] || die "an error and output"
}

# until_true COMMAND...: waits for a condition; gives up when the run in the background is gone.
until_true() {
    until "$@"; do
        kill -0 "$background" 2>/dev/null || { "$@" && return; die "the run ended before: $*"; }
        sleep 0.02
    done
}

python() { /usr/bin/python3 -c "$@" >out 2>err || die "python: $1"; }

# run_all SCRIPT: the functions test_... of the script, with a line per test as cmocka prints; the script's end.
run_all() {
    local script=$repo/tests/cmd/$(basename "$1")
    local failed=0 name
    for name in $(sed -n 's/^\(test_[a-z_]*\)() {$/\1/p' "$script"); do
        : >out && : >err
        # A failed check leaves its subshell, and with it goes the run in the background.
        if (trap '[ -z "$background" ] || kill -KILL "$background" 2>/dev/null' EXIT && "$name"); then
            echo "[       OK ] $name"
        else
            echo "[  FAILED  ] $name"
            failed=1
        fi
    done
    exit $failed
}
