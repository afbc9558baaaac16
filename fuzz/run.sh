#!/usr/bin/env bash
# Builds the fuzz targets with the Rust that there is, and runs each over its corpus and then on changes of it.
#
#   fuzz/run.sh [-t SECONDS] [-k] [NAME...]
#
# -t SECONDS   how long each target runs (3)
# -k           keeps what is new: adds inputs that reach more to fuzz/corpus/NAME
# NAME...      these targets only
#
# An input that makes a target fail is left in fuzz/artifacts/NAME; `fuzz/run.sh -t 0 NAME FILE` runs it again.
set -euo pipefail
cd "$(dirname "$0")"
project=$(cd .. && pwd)
. ../packaging/lib.sh
seconds=3 keep=''
while getopts t:kh option; do
    case $option in
    t) seconds=$OPTARG ;;
    k) keep=yes ;;
    *) sed -n '2,/^[^#]/s/^# \{0,1\}//p' run.sh; exit 0 ;;
    esac
done
shift $((OPTIND - 1))
targets=() inputs=()
for word; do
    if [ -f "$word" ]; then inputs+=("$(realpath "$word")"); else targets+=("$word"); fi
done
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(find fuzz_targets -name '*.rs' -printf '%f\n' | sed 's/\.rs$//' | sort)

# libFuzzer is C++.
[ -e /usr/include/c++ ] && command -v g++ >/dev/null || install_packages g++
. ../packaging/rust.sh
step "building the fuzz targets"
# The same crates as in the main build; those that only fuzzing needs are added.
cp ../Cargo.lock Cargo.lock
# Debug, and with the main build's directory: what it compiled is not compiled again.
RUSTC_WRAPPER=$PWD/instrument.sh CARGO_TARGET_DIR=../target cargo build --quiet --bins
built=$(find ../target -path '*/debug/selectors' -type f -printf '%h\n' | head -n 1)

failed=()
new=$(mktemp -d)
trap 'rm -rf "$new"' EXIT
for target in "${targets[@]}"; do
    step "fuzzing $target"
    mkdir -p "corpus/$target" "artifacts/$target" "$new/$target"
    # The limits say what counts as a failure: an input that takes 10 s (on a busy machine), or 1 GiB.
    if [ ${#inputs[@]} -gt 0 ]; then
        run=("${inputs[@]}")
    else
        run=(-max_total_time="$seconds" -print_final_stats=1 "$new/$target" "corpus/$target")
    fi
    if ! "$built/$target" -timeout=10 -rss_limit_mb=1024 -artifact_prefix="artifacts/$target/" "${run[@]}" >"$new/log" 2>&1; then
        failed+=("$target")
        grep -vE '^(#[0-9]|INFO)' "$new/log" | tail -n 40
    elif [ ${#inputs[@]} = 0 ]; then
        sed -n 's/^stat::number_of_executed_units: *\([0-9]*\)/\1 inputs/p' "$new/log"
    fi
    if [ -n "$keep" ] && [ ${#inputs[@]} = 0 ]; then
        "$built/$target" -merge=1 -rss_limit_mb=2048 "corpus/$target" "$new/$target" 2>&1 | grep -E 'new files|new features' || true
    fi
done
[ ${#failed[@]} = 0 ] || die "these targets failed: ${failed[*]}" "run them on the input named above: fuzz/run.sh NAME FILE"
