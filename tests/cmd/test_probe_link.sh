#!/usr/bin/env bash
# gangline probe --serve and --link: what is printed, as text that a cluster file takes and as JSON.
. "$(dirname "$0")/shell.sh"

serve() {
    rm -f served
    "$gangline" probe --serve 127.0.0.1:0 >served 2>err </dev/null &
    background=$!
    until_true test -s served
    address=$(sed -E 's/^serving at ([^;]+);.*/\1/' served)
}

test_a_link_for_people_and_a_cluster_file() {
    serve
    run 0 probe --link "$address"
    says out "link to $address: round trip "
    says out "messages of 64.0 MiB"
    cat >cluster.yaml <<YAML
name: two places
sites:
  - {name: here, groups: [{name: a, nodes: 1, devices: 1, device: RTX-4090, nic: 1Gbps}]}
  - {name: there, groups: [{name: b, nodes: 1, devices: 1, device: RTX-3090, nic: 1Gbps}]}
links:
$(grep -- '- {between: \[here, there\], bandwidth: ' out || die "no line for a cluster file")
YAML
    sed "s|^cluster: .*|cluster: $PWD/cluster.yaml|; s|^model: |&$repo/examples/plan/|" "$repo/examples/plan/laptops.yaml" >job.yaml
    run 0 simulate job.yaml --layout pp=2,zero=0 # the cluster file is read, and has a link between its sites
}

test_a_link_as_json() {
    serve
    run 0 probe --link "$address" --json
    cp out link.json
    python 'import json
p = json.load(open("link.json"))
assert p["rtt_seconds"] > 0 and p["streams"] in (1, 2, 4, 8) and [c["message_bytes"] for c in p["curve"]] == [1024 * 4**i for i in range(9)]
assert p["bytes_per_second"] == max(c["bytes_per_second"] for c in p["curve"])'
}

test_serving_ends_with_an_interrupt() {
    serve
    kill -INT "$background"
    wait "$background" || die "status $?"
}

test_bad_options_are_named() {
    run 2 probe --link 127.0.0.1:1 --serve 127.0.0.1:0
    one_error
    run 2 probe --link 127.0.0.1:1 --threads 2
    one_error
    run 1 probe --serve 0.0.0.0:0
    one_error
    says err "a cluster secret is needed"
}

run_all "$0"
