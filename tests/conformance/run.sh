#!/usr/bin/env bash
# Runs Kubernetes' own conformance suite (v1.20) against a fleet of boxes, and keeps docs/CONFORMANCE.md.
#
#   tests/conformance/run.sh [--boxes N] [--focus REGEX] [--skip REGEX] [--list FILE] [--parallel N] [--fast] [--keep] [-- SERVER ARGUMENT...]
#
# --boxes N        the size of the fleet [2]: the first box is all-in-one, the others join it
# --focus, --skip  only the tests whose names match, do not match
# --list FILE      the tests, one name a line [all of the kit's valid.txt that need no kind we lack: needs.txt]
# --parallel N     so many at once [4]; those that must be alone run after the others
# --fast           the tests of fast.txt, and no file of the project is changed: what tests/run.sh does
# --keep           when done, leave the boxes running until Enter is pressed
#
# The kit (its README says how it is built: build.sh, once) is in $KIT [../shared/conformance beside the project], what it
# built in $WORK [~/.cache/k8s-conformance]. $OUT [$WORK/amphipod] gets the suite's logs, the boxes' logs (box1.log) and copies of
# the programs under test, so that building them anew meanwhile does no harm. AMPHIPOD_BINARY tests another program.
#
# Results are merged into results.txt, a line a test, and from there written into docs/CONFORMANCE.md with the causes in
# causes.txt. Ends with 1 if a test failed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
project=$(cd "$here/../.." && pwd)
export WORK=${WORK:-${XDG_CACHE_HOME:-$HOME/.cache}/k8s-conformance}
KIT=${KIT:-$project/../shared/conformance}
OUT=${OUT:-$WORK/amphipod}
die() { echo "$*" >&2; exit 2; }

focus=. skip='^$' list='' boxes=2 parallel=4 fast='' keep='' server=()
while [ $# -gt 0 ]; do
    case $1 in
    --boxes) boxes=$2; shift 2 ;;
    --focus) focus=$2; shift 2 ;;
    --skip) skip=$2; shift 2 ;;
    --list) list=$(realpath "$2"); shift 2 ;;
    --parallel) parallel=$2; shift 2 ;;
    --fast) fast=yes list=$here/fast.txt; shift ;;
    --keep) keep=yes; shift ;;
    --) shift; server=("$@"); break ;;
    *) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit 2 ;;
    esac
done
[ "$(id -u)" = 0 ] || die "boxes need root: run this again with sudo"
[ -x "$KIT/run.sh" ] || die "no kit in $KIT: KIT says where it is"
[ -x "$WORK/bin/e2e.test" ] && [ -d "$WORK/registry/data" ] || die "no suite in $WORK: run $KIT/build.sh"

mkdir -p "$OUT/bin"
if [ -z "$list" ]; then
    list=$OUT/list.txt
    python3 "$here/table.py" runnable "$KIT/valid.txt" "$here/needs.txt" >"$list"
fi

# As tests/run.sh builds it: with another selection of packages cargo would compile twice.
(cd "$project" && cargo build --quiet --locked --workspace --bins)
built=$(cd "$project" && cargo metadata --format-version 1 --no-deps | python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')
for name in amphipod amphipod-box amphipod-fleet; do
    program=$(find "$built" -maxdepth 3 -path "*/debug/$name" -type f -printf '%T@ %p\n' | sort -n | tail -n 1 | cut -d ' ' -f 2)
    install -m 755 "$program" "$OUT/bin/$name"
done

# The boxes live until the coprocess's standard input ends: also when this script is killed.
coproc fleet { exec "$OUT/bin/amphipod-fleet" --boxes "$boxes" --registry "$WORK/registry/data" "${server[@]}" 2>"$OUT/fleet.log"; }
enter='' disks=()
while read -r key value; do
    case $key in disk) disks+=("$value") ;; enter) enter=$value; break ;; esac
done <&"${fleet[0]}"
[ -n "$enter" ] || { cat "$OUT/fleet.log" >&2; die "the boxes did not become ready"; }
echo "inside the first box: $enter"

status=0
# HOME: the old kubectl caches discovery by address, and every box has the same. Each box has a registry of its own.
$enter env HOME=/run START_REGISTRY=no "$KIT/run.sh" --kubeconfig /etc/amphipod/kubeconfig --list "$list" --focus "$focus" \
    --skip "$skip" --parallel "$parallel" --out "$OUT/suite" || status=$?
[ -z "$keep" ] || read -rp "Enter ends the boxes "
for i in "${!disks[@]}"; do cp "${disks[i]}/amphipod.log" "$OUT/box$((i + 1)).log"; done
exec {fleet[1]}>&-
wait "$fleet_PID" 2>/dev/null || true

[ "$status" = 0 ] || echo "logs of the suite: $OUT/suite; of the boxes: $OUT/box*.log" >&2
if [ "$status" -le 1 ] && [ -z "$fast" ]; then
    python3 "$here/table.py" merge "$here/results.txt" "$OUT/suite/results.txt"
    python3 "$here/table.py" page "$KIT/valid.txt" "$here" >"$project/docs/CONFORMANCE.md"
fi
exit "$status"
