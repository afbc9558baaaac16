#!/usr/bin/env bash
# Breaks what the program promises, one patch at a time, and sees that the tests notice: a test that cannot fail says nothing.
#
#   tests/sabotage/run.sh             all patches beside this script; takes an hour
#   tests/sabotage/run.sh NAME...     only those whose names contain one of these
#   tests/sabotage/run.sh --check     only whether each still applies and names tests that exist, and whether there is one for each test of
#                                     docs/SPECIFICATION.md's table of faults; tests/run.sh asks that
#
# A patch says in its first line what is broken, and in lines "Fails: FILE::TEST" which tests must fail for it. They are run against a
# copy of the working tree (target/sabotage), which is all that is changed. Printed is how each failed, so that a reader sees that it
# failed for that reason. Needs what tests/run.sh needs, and what that has installed.
set -euo pipefail
here=$(realpath "$(dirname "$0")")
project=$(realpath "$here/../..")
. "$project/packaging/lib.sh"
case ${1:-} in -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
# A test that waits for what does not come any more has failed, too.
patience=300

chosen() {
    local patch word
    for patch in "$here"/*.patch; do
        [ $# -gt 0 ] || echo "$patch"
        for word in "$@"; do case ${patch##*/} in *"$word"*) echo "$patch" && break ;; esac; done
    done
}
tests_of() { sed -n 's/^Fails: //p' "$1"; }
# source_of FILE: the integration test of that name.
source_of() { ls -d "$project"/*/tests/"$1".rs "$project"/*/tests/"$1"/main.rs 2>/dev/null; }

check() {
    local patch name wrong=0 faults
    for patch in $(chosen); do
        (cd "$project" && git apply --check "$patch") || {
            echo "tests/sabotage/${patch##*/} does not apply any more: make it anew of what the code is now"
            wrong=1
        }
        for name in $(tests_of "$patch"); do
            # shellcheck disable=SC2046 # a list of files
            grep -qrw "fn ${name##*::}" $(source_of "${name%%::*}" | sed 's:/main.rs$::') /dev/null || {
                echo "tests/sabotage/${patch##*/} names a test that is not there: $name"
                wrong=1
            }
        done
    done
    faults=$(sed -n '/^## What a fault may cost/,/^### /p' "$project/docs/SPECIFICATION.md" | grep '^|' | grep -o '`[a-z0-9_]*`' | tr -d '`')
    for name in $faults; do
        grep -qE "^Fails: .*::$name$" "$here"/*.patch || {
            echo "no patch in tests/sabotage breaks what $name promises (docs/SPECIFICATION.md)"
            wrong=1
        }
    done
    return "$wrong"
}
if [ "${1:-}" = --check ]; then check; exit; fi

mapfile -t patches < <(chosen "$@")
[ ${#patches[@]} -gt 0 ] || die "no patch has $* in its name" "ls tests/sabotage"
check || die "the patches do not fit" "read the lines above"
. "$project/packaging/rust.sh"

tree=$project/target/sabotage/tree
export CARGO_TARGET_DIR=$project/target/sabotage/target
# The copy is no part of the repository: git looks at its files alone.
export GIT_CEILING_DIRECTORIES=$project/target/sabotage
step "copying the working tree to target/sabotage"
rm -rf "$tree"
mkdir -p "$tree"
# As new files, or cargo would take what an earlier run built of broken ones for what these are.
(cd "$project" && git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$tree")
cd "$tree"

log=$(mktemp)
trap 'rm -f "$log"' EXIT
unnoticed=()
noticed=0
for patch in "${patches[@]}"; do
    name=${patch##*/}
    step "${name%.patch}: $(head -n 1 "$patch")"
    git apply "$patch"
    mapfile -t files < <(sed -n 's:^+++ b/::p' "$patch")
    touch "${files[@]}"
    cargo build --workspace --bins --locked --quiet 2>"$log" || {
        tail -n 20 "$log" >&2
        die "tests/sabotage/$name does not compile" "make it anew of what the code is now"
    }
    for test in $(tests_of "$patch"); do
        begun=$SECONDS
        timeout -k 30 "$patience" cargo test --workspace --locked --quiet --test "${test%%::*}" -- --exact "${test#*::}" >"$log" 2>&1 && ended=0 || ended=$?
        if [ "$ended" = 124 ] || grep -q '^test result: FAILED. 0 passed; 1 failed' "$log"; then
            noticed=$((noticed + 1))
            why=$(grep -A1 -m1 "panicked at" "$log" | sed -n 2p | cut -c1-200 || true)
            echo "    failed, as it should ($((SECONDS - begun)) s): $test"
            echo "        ${why:-nothing came for $patience s}"
        else
            unnoticed+=("$test does not notice ${name%.patch}")
            echo "    DID NOT FAIL: $test"
            tail -n 5 "$log" | sed 's/^/        /'
        fi
    done
    git apply -R "$patch"
    touch "${files[@]}"
done
step "done"
[ ${#unnoticed[@]} = 0 ] || printf 'UNNOTICED: %s\n' "${unnoticed[@]}"
echo "$noticed of $((noticed + ${#unnoticed[@]})) tests noticed"
[ ${#unnoticed[@]} = 0 ]
