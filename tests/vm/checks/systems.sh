# The project's own tests that this kernel can run and the machine that builds them cannot: WireGuard between boxes, and pods under cgroup v2 alone.

stages=(all)

export AMPHIPOD_BINARY=/project/amphipod AMPHIPOD_TEST_PATIENCE=4
for name in PEER:peer BOX:amphipod-box FLEET:amphipod-fleet CLOCK:amphipod-clock; do
    export "AMPHIPOD_${name%%:*}=/project/test-programs/${name##*:}"
done

# run PROGRAM [ARGUMENT...]: the tests of one program; all of them, and at least one, must pass.
run() {
    local program=$1 log=/vm/$1.log
    shift
    # shellcheck disable=SC2086 # no word, or one
    (cd /vm && timeout 3000 "/project/test-programs/$program" --test-threads=1 --nocapture "$@" $filter) >"$log" 2>&1 </dev/null || true
    grep -E '^skipped: ' "$log" || true
    grep -E '^test result: ' "$log"
    sed -n '/^failures:$/,$p' "$log"
    grep -E 'panicked at|^waited|last seen' -A 4 "$log" | tail -n 80 || true
    grep -qE '^test result: ok\. [0-9]+ passed' "$log"
}

all() {
    local name
    LINES_SHOWN=150
    check "boxes talk through WireGuard, and nothing else is seen between them" run fleet_network wireguard
    check "netplug's ways between boxes, WireGuard too" run peers
    export AMPHIPOD_TEST_OVERLAY=wireguard
    check "services, policies and power cuts over WireGuard" run fleet_network services:: policies:: recovery::after recovery::rules_come_back_after_nft pods_of_two names_are
    unset AMPHIPOD_TEST_OVERLAY
    for name in pods hungry restarts workloads network streams faults; do
        check "tests/tests/$name.rs" run $name
    done
}
