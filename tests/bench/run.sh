#!/usr/bin/env bash
# Takes every figure of docs/SPECIFICATION.md on a release build and prints the table.
#
#   tests/bench/run.sh [--out FILE] [--rows NAME,...] [--quick]
#
# --out    also writes one JSON line a row: row, value, unit, budget, ok, upstream, how
# --rows   only these rows (`idle/memory`) or groups (`idle`)
# --quick  fewer repetitions and shorter rests: to try the bench, not to quote
# --hold   (alone) measures nothing: a ready box, kept until Ctrl-D, for a profiler
#
# Needs root and what tests/run.sh installs; crun, if there, is measured beside our own container start. A full run takes
# about 20 minutes and the builds. AMPHIPOD_BINARY measures another binary than the one built here (and builds nothing but the bench).
set -euo pipefail
cd "$(dirname "$0")/../.."
[ "$(id -u)" = 0 ] || { echo "tests/bench/run.sh: run as root: boxes are namespaces and mounts" >&2; exit 1; }
target=${CARGO_TARGET_DIR:-target}/$(rustc --print host-tuple)/release

if [ -z "${AMPHIPOD_BINARY:-}" ]; then
    mkdir -p "$target/bench"
    # What is shipped. The agent alone first: what is left in place afterwards is the whole program. Copies, so that a build
    # that runs beside the measurement cannot replace what is measured.
    cp "$(packaging/build-static.sh --agent-only)" "$target/bench/amphipod-agent"
    cp "$(packaging/build-static.sh)" "$target/bench/amphipod"
    export AMPHIPOD_BINARY=$PWD/$target/bench/amphipod AMPHIPOD_AGENT_BINARY=$PWD/$target/bench/amphipod-agent
fi
cargo build --locked --release -p amphipod-tests -p amphipod-bench
export AMPHIPOD_BOX=$PWD/$target/amphipod-box AMPHIPOD_PEER=$PWD/$target/peer

# Idle writes are counted below the filesystem: a box's disk on a file of its own, mounted where nobody else sees it.
work=$(mktemp -d /tmp/amphitest-bench-XXXXXX)
trap 'rm -rf "$work"' EXIT
truncate -s 1G "$work/disk.img"
mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 "$work/disk.img"
mkdir "$work/disk"
if [ "${1:-}" = --hold ]; then
    "$target/amphipod-bench" --hold
    exit
fi
unshare --mount --propagation private sh -c \
    'mount -o loop "$0/disk.img" "$0/disk" && exec "$@" --own-disk "$0/disk"' "$work" "$PWD/$target/amphipod-bench" "$@"
