#!/usr/bin/env python3
"""Lists, results and the page of the conformance suite.

    table.py runnable VALID NEEDS    the tests of VALID that need no kind that we lack
    table.py merge RESULTS RUN       puts the results of a run (the kit's results.txt) into RESULTS
    table.py page VALID DIR          docs/CONFORMANCE.md, from DIR's results.txt, needs.txt and causes.txt

RESULTS has a line a test: PASS, FAIL or SKIP, a tab, its name. needs.txt and causes.txt have lines of a regular expression for
names, a tab, and the kind that is missing or the cause of the failure; the first that matches counts.
"""
import re
import sys
from collections import Counter


def lines(path):
    try:
        with open(path) as f:
            return [line.rstrip("\n") for line in f if line.strip() and not line.startswith("#")]
    except FileNotFoundError:
        return []


def rules(path):
    return [(re.compile(pattern), text) for pattern, text in (line.split("\t", 1) for line in lines(path))]


def first(rules, name):
    return next((text for pattern, text in rules if pattern.search(name)), None)


def results(path):
    return {name: state for state, name in (line.split("\t", 1) for line in lines(path))}


def runnable(valid, needs):
    needs = rules(needs)
    for name in lines(valid):
        if not first(needs, name):
            print(name)


def merge(path, run):
    have = results(path)
    for line in lines(run):
        found = re.match(r"(PASS|FAIL|SKIP) \[[^]]*\] (.*)", line)
        if found:
            have[found[2]] = found[1]
    with open(path, "w") as f:
        f.writelines(f"{state}\t{name}\n" for name, state in sorted(have.items()))


def area(name):
    return re.findall(r"\[(sig-[a-z-]+)\]", name)[0] if name.startswith("[sig-") else "sig-node ([k8s.io])"


def page(valid, folder):
    have, needs, causes = results(f"{folder}/results.txt"), rules(f"{folder}/needs.txt"), rules(f"{folder}/causes.txt")
    rows = []
    for name in lines(valid):
        state, cause = have.get(name), ""
        missing = first(needs, name)
        if state == "PASS":
            word = "passed"
        elif state == "FAIL":
            word, cause = "failed", first(causes, name) or ("needs " + missing if missing else "cause not yet found")
        else:
            word, cause = "not run", "needs " + missing if missing else first(causes, name) or ""
        rows.append((area(name), name, word, cause))
    counts = Counter((row[0], row[2]) for row in rows)
    total = Counter(row[2] for row in rows)
    words = ("passed", "failed", "not run")
    print(HEAD.format(all=len(rows), **{w.replace(" ", "_"): total[w] for w in words}))
    print("| area | passed | failed | not run |\n| --- | --- | --- | --- |")
    for a in sorted({row[0] for row in rows}):
        print(f"| {a} | " + " | ".join(str(counts[a, w]) for w in words) + " |")
    for a in sorted({row[0] for row in rows}):
        print(f"\n## {a}\n\n| test | result | cause |\n| --- | --- | --- |")
        for _, name, word, cause in (row for row in rows if row[0] == a):
            name = re.sub(r"\s*\[(Conformance|NodeConformance|LinuxOnly|k8s.io|Privileged:ClusterAdmin|" + a + r")\]\s*", " ", name)
            print("| " + " | ".join(" ".join(part.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
                                      for part in (name, word, cause)) + " |")


HEAD = """# Conformance

Kubernetes' own conformance suite, of v1.20: its clients are old, which is a test in itself. This page is written by
`tests/conformance/run.sh`, which runs the suite inside a box; do not edit it by hand: results are in
`tests/conformance/results.txt`, causes of failures in `causes.txt`, and the kinds that are missing in `needs.txt` beside it.

Of the {all} tests that a cluster of API level 1.36 should pass, **{passed} passed**, {failed} failed and {not_run} were not run.
"""

if __name__ == "__main__":
    {"runnable": runnable, "merge": merge, "page": page}[sys.argv[1]](*sys.argv[2:])
