#!/usr/bin/env bash
# Installs what the tests need and runs them all; the README's second command. `tests/run.sh NAME` runs only the
# whole-system tests whose names contain NAME.
#
# Needs root on Debian 12 (or newer) with the packages of Debian and crates.io in reach. Everything that the tests make
# (namespaces, mounts, control groups, files) is made in boxes, which clean up after themselves even when killed.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n== %s (%d s)\n' "$*" "$SECONDS"; }
die() { printf 'tests/run.sh: %s\n' "$*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || die "run as root: the tests make namespaces, mounts and control groups"

say "packages"
need=()
for pair in gcc:gcc nft:nftables ip:iproute2 nsenter:util-linux docker-registry:docker-registry dig:bind9-dnsutils \
    busybox:busybox-static curl:curl htpasswd:apache2-utils; do
    command -v "${pair%%:*}" >/dev/null || need+=("${pair##*:}")
done
[ -e /usr/lib/"$(gcc -dumpmachine 2>/dev/null || echo x86_64-linux-gnu)"/libseccomp.a ] || need+=(libseccomp-dev)
command -v kubectl >/dev/null || need+=(kubernetes-client)
if [ ${#need[@]} -gt 0 ]; then
    apt-get update -qq || die "apt-get update failed; are Debian's packages in reach?"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${need[@]}" >/dev/null || die "could not install ${need[*]}"
fi
. packaging/rust.sh # cargo, if the machine has none

filter=${1:-}
if [ -z "$filter" ]; then
    say "formatting"
    cargo fmt --all --check
    say "clippy"
    cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
    say "cargo-deny"
    command -v cargo-deny >/dev/null || cargo install --quiet --locked --no-default-features cargo-deny
    cargo deny --log-level error check licenses bans sources
    say "unit and crate tests"
    cargo test --locked --workspace --exclude amphipod-tests --quiet
fi

say "building the program"
cargo build --locked --bin amphipod --bin amphipod-box -p amphipod -p amphipod-tests
say "whole-system tests"
cargo test --locked -p amphipod-tests -- --test-threads="${TEST_THREADS:-2}" $filter

say "looking for leftovers"
left=$(find /sys/fs/cgroup -maxdepth 2 -name 'amphitest-*' 2>/dev/null; grep -o '[^ ]*amphitest-[^ ]*' /proc/self/mounts || true; ls -d /tmp/amphitest-* 2>/dev/null || true)
[ -z "$left" ] || die "the tests left behind: $left"
say "all green"
