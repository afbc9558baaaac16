#!/usr/bin/env bash
# Runs Kubernetes' own conformance suite (v1.20) against a box, and keeps docs/CONFORMANCE.md.
#
#   tests/conformance/run.sh [--focus REGEX] [--skip REGEX] [--list FILE] [--parallel N] [--keep] [-- SERVER ARGUMENT...]
#
# --focus, --skip  only the tests whose names match, do not match
# --list FILE      the tests, one name a line [all of the kit's valid.txt that need no kind we lack: needs.txt]
# --parallel N     so many at once [1]; those that must be alone run after the others
# --keep           when done, leave the box running until Enter is pressed
#
# The kit (its README says how it is built: build.sh, once) is in $KIT [../shared/conformance beside the project], what it
# built in $WORK [~/.cache/k8s-conformance]. $OUT [$WORK/amphipod] gets the suite's logs, the box's log (box.log) and copies of
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

focus=. skip='^$' list='' parallel=1 keep='' server=()
while [ $# -gt 0 ]; do
    case $1 in
    --focus) focus=$2; shift 2 ;;
    --skip) skip=$2; shift 2 ;;
    --list) list=$2; shift 2 ;;
    --parallel) parallel=$2; shift 2 ;;
    --keep) keep=yes; shift ;;
    --) shift; server=("$@"); break ;;
    *) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit 2 ;;
    esac
done
[ "$(id -u)" = 0 ] || die "boxes need root: run this again with sudo"
[ -x "$WORK/bin/e2e.test" ] && [ -d "$WORK/registry/data" ] || die "no suite in $WORK: run $KIT/build.sh"

mkdir -p "$OUT/bin"
if [ -z "$list" ]; then
    list=$OUT/list.txt
    python3 "$here/table.py" runnable "$KIT/valid.txt" "$here/needs.txt" >"$list"
fi

(cd "$project" && cargo build --quiet --locked -p amphipod -p amphipod-tests --bins)
built=$(cd "$project" && cargo metadata --format-version 1 --no-deps | python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')
for name in amphipod amphipod-box amphipod-fleet; do
    program=$(find "$built" -maxdepth 3 -path "*/debug/$name" -type f -printf '%T@ %p\n' | sort -n | tail -n 1 | cut -d ' ' -f 2)
    install -m 755 "$program" "$OUT/bin/$name"
done

# The box lives until the coprocess's standard input ends: also when this script is killed.
coproc fleet { exec "$OUT/bin/amphipod-fleet" --registry "$WORK/registry/data" "${server[@]}" 2>"$OUT/fleet.log"; }
enter='' disk=''
while read -r key value; do
    case $key in enter) enter=$value ;; disk) disk=$value; break ;; esac
done <&"${fleet[0]}"
[ -n "$disk" ] || { cat "$OUT/fleet.log" >&2; die "the box did not become ready"; }
echo "inside the box: $enter"

status=0
# HOME: the old kubectl caches discovery by address, and every box has the same. The registry is the box's own.
$enter env HOME=/run START_REGISTRY=no "$KIT/run.sh" --kubeconfig /etc/amphipod/kubeconfig --list "$list" --focus "$focus" \
    --skip "$skip" --parallel "$parallel" --out "$OUT/suite" || status=$?
[ -z "$keep" ] || read -rp "Enter ends the box "
cp "$disk/amphipod.log" "$OUT/box.log"
exec {fleet[1]}>&-
wait "$fleet_PID" 2>/dev/null || true

if [ "$status" -le 1 ]; then
    python3 "$here/table.py" merge "$here/results.txt" "$OUT/suite/results.txt"
    python3 "$here/table.py" page "$KIT/valid.txt" "$here" >"$project/docs/CONFORMANCE.md"
fi
exit "$status"
