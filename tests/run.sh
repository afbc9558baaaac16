#!/usr/bin/env bash
# Installs what the tests need and runs them all; the README's second command. `.ci/run` calls it.
#
#   tests/run.sh          everything: formatting, clippy, cargo-deny, the crates' tests, the whole-system tests, the fuzz targets,
#                         and, where its kit is built, a fast part of Kubernetes' conformance suite
#   tests/run.sh NAME     only the tests whose names contain NAME
#
# Needs root on Debian 12 or newer with Debian's packages and crates.io in reach. Everything that tests make (namespaces,
# mounts, control groups, files) is made in boxes, which clean up after themselves even when they are killed. Every part is
# run, also after a failure; the last line counts them all. TEST_THREADS says how many tests run at once (2).
set -euo pipefail
cd "$(dirname "$0")/.."
project=$PWD
. packaging/lib.sh
case ${1:-} in -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
[ "$(id -u)" = 0 ] || die "tests need root: they make namespaces, mounts and control groups" "run this again with sudo"
filter=${1:-}

step "looking for what the tests need"
install_build_packages
# shellcheck disable=SC2046 # a list of words
install_packages $(missing nft:nftables iptables:iptables ip:iproute2 docker-registry:docker-registry dig:bind9-dnsutils busybox:busybox-static \
    curl:curl htpasswd:apache2-utils pgrep:procps script:bsdutils nsenter:util-linux)
install_kubectl
. packaging/rust.sh
step "with $(cargo --version), $(kubectl version --client 2>/dev/null | head -n 1), Linux $(uname -r)"

passed=0 failed=0 failures=() not_run=()

# check NAME COMMAND...: one check of the whole project.
check() {
    step "$1"
    if "${@:2}"; then passed=$((passed + 1)); else failed=$((failed + 1)); failures+=("$1"); fi
}

# cargo-deny, compiled without optimisation: that takes a minute or two instead of ten, and it has little to do.
deny() {
    local PATH=$PATH:$HOME/.cargo/bin
    if ! command -v cargo-deny >/dev/null; then
        step "compiling cargo-deny (once)"
        local target
        target=$(mktemp -d)
        # From /: this project's .cargo/config.toml is not meant for it.
        (cd / && CARGO_TARGET_DIR=$target CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
            CARGO_PROFILE_RELEASE_DEBUG=0 cargo install --quiet --locked --no-default-features --version '>=0.18, <0.21' cargo-deny) || return
        rm -rf "$target"
    fi
    cargo deny --log-level error check licenses bans sources || return
    # The fuzz targets are a workspace of their own, with the main one's versions.
    cp Cargo.lock fuzz/Cargo.lock
    cargo deny --manifest-path fuzz/Cargo.toml --log-level error check licenses bans sources
}

# Both workspaces.
format() { cargo fmt --all --check && cargo fmt --manifest-path fuzz/Cargo.toml --check; }

if [ -z "$filter" ]; then
    if cargo fmt --version >/dev/null 2>&1; then
        check "formatting" format
    else
        not_run+=("formatting: this Rust has no rustfmt (Debian: rustfmt-web; rustup: rustup component add rustfmt)")
    fi
    if cargo clippy --version >/dev/null 2>&1; then
        check "clippy" cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
    else
        not_run+=("clippy: this Rust has none (Debian's rustc-web; rustup: rustup component add clippy)")
    fi
    check "licences, sources and forbidden crates (cargo-deny)" deny
    check "the patches of tests/sabotage still apply" tests/sabotage/run.sh --check
fi

# What boxes leave behind: control groups, mounts, disks.
traces() {
    {
        find /sys/fs/cgroup -maxdepth 2 -name 'amphitest-*' 2>/dev/null
        grep -o '[^ ]*amphitest-[^ ]*' /proc/self/mounts
        find /tmp -maxdepth 1 -name 'amphitest-*'
    } | sort
}
leftovers() {
    local left
    # The last boxes clean up after the test that used them has ended.
    for _ in $(seq 100); do
        left=$(comm -13 <(echo "$before") <(traces))
        [ -n "$left" ] || return 0
        sleep 0.1
    done
    printf 'left behind:\n%s\n' "$left" >&2
    return 1
}
before=$(traces || true)

# One selection of packages for building and testing: with another, cargo would unify features differently and compile twice.
step "building the program and the tests"
if ! cargo build --workspace --bins --locked --quiet || ! cargo test --workspace --no-run --locked --quiet; then
    die "the build failed" "read the compiler's message above"
fi

step "tests of the crates and of the whole system"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# What passing tests print is of no interest, except that they were skipped.
cargo test --workspace --no-fail-fast --locked -- --test-threads="${TEST_THREADS:-2}" --show-output $filter 2>&1 | tee "$log" | awk '
    /^successes:$/ { quiet = 1 }
    /^failures:$/ || /^test result:/ { quiet = 0 }
    !quiet && !/^$/ && !/^running 0 tests$/ { print; fflush() }' || true
while read -r p f i; do
    passed=$((passed + p)) failed=$((failed + f)) ignored=$((${ignored:-0} + i))
done < <(sed -n 's/^test result: .* \([0-9]*\) passed; \([0-9]*\) failed; \([0-9]*\) ignored.*/\1 \2 \3/p' "$log")
mapfile -t -O "${#failures[@]}" failures < <(sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' "$log")
mapfile -t -O "${#not_run[@]}" not_run < <(grep '^skipped: ' "$log" | sort | uniq -c | sed 's/^ *\([0-9]*\) skipped: /\1 test(s): /' || true)
# A test program that dies, or does not start, has no result line.
mapfile -t -O "${#failures[@]}" failures < <(grep -oE '(process didn.t exit successfully|could not execute process).*' "$log" | grep -v 'exit status: 101' || true)

# Kubernetes' own conformance suite, a part of it: compiling the suite takes most of an hour, once for a machine.
kit=$(realpath -m "${KIT:-$project/../shared/conformance}")
if [ -n "$filter" ]; then
    :
elif [ -x "$kit/run.sh" ] && [ -x "${WORK:-${XDG_CACHE_HOME:-$HOME/.cache}/k8s-conformance}/bin/e2e.test" ]; then
    check "conformance: the tests of tests/conformance/fast.txt" tests/conformance/run.sh --fast
else
    not_run+=("conformance: no built suite. Once, most of an hour: $kit/build.sh (KIT says where it is, WORK where it builds)")
fi

check "nothing is left behind" leftovers
[ -n "$filter" ] || check "fuzz targets: their corpora, and a few seconds of changes" fuzz/run.sh

step "done"
[ ${#not_run[@]} = 0 ] || printf '\n*** NOT RUN: %s\n' "${not_run[@]}"
[ ${#failures[@]} -le "$failed" ] || failed=${#failures[@]}
[ ${#failures[@]} = 0 ] || printf 'FAILED: %s\n' "${failures[@]}"
[ "${ignored:-0}" = 0 ] || echo "$ignored ignored: measurements, and programs that other tests start"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
