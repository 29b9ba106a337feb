"""How well `conformity` tells shifted phantoms from unseen ones; no Ray, no training.

python -m tests.benchmarks.conformity [--size small] [--cases 48]
"""

import argparse
import json
import sys
import time
from collections import Counter

import numpy as np

from medray.datasets.conformity import conformity
from medray.datasets.fingerprint import merge_fingerprints, partial_fingerprint
from medray.phantoms.score import auroc
from tests.conformity_cases import TASKS


def measured(task, *, size, cases, seed):
    """One row per shift, and the unseen ones without any first."""
    make, shifts_of = TASKS[task]
    began = time.monotonic()
    learned = [make(seed, number, size) for number in range(cases)]
    parts = [partial_fingerprint(sample) for sample in learned]
    fingerprint = merge_fingerprints(parts)
    unseen = [make(seed + 100, number, size) for number in range(cases)]
    inside = [conformity(sample, fingerprint) for sample in unseen]
    rows = [row_of(task, "none", inside, inside)]
    for name, shift in shifts_of(size).items():
        found = [conformity(shift(sample, n), fingerprint) for n, sample in enumerate(unseen)]
        rows.append(row_of(task, name, found, inside))
    facts = {"task": task, "seconds": round(time.monotonic() - began, 1), "size": size}
    facts["fingerprint_bytes"] = len(json.dumps(fingerprint["conformity"]))
    return rows, facts


def row_of(task, name, found, inside):
    scores = np.array([item.score for item in (*found, *inside)])
    labels = np.array([True] * len(found) + [False] * len(inside))
    flags = Counter(flag for item in found for flag in item.flags)
    return {
        "task": task,
        "shift": name,
        "num_cases": len(found),
        "auroc": None if found is inside else round(float(auroc(-scores, labels)), 4),
        "flagged": round(sum(item.is_out_of_distribution for item in found) / len(found), 4),
        "median_score": round(float(np.median([item.score for item in found])), 4),
        "flags": dict(flags.most_common()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="small")
    parser.add_argument("--cases", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--task", default="")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows, facts = [], []
    for task in TASKS:
        if options.task in task:
            more, fact = measured(task, size=options.size, cases=options.cases, seed=options.seed)
            rows += more
            facts.append(fact)
            if not options.json:
                print("\n".join(table(more)), fact, sep="\n")
    if options.json:
        sys.stdout.write(json.dumps({"rows": rows, "facts": facts}) + "\n")
    return 0


def table(rows):
    lines = [
        "| task | shift | cases | AUROC | flagged | median score | flags |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        score = "" if row["auroc"] is None else f"{row['auroc']:.3f}"
        flags = ", ".join(f"{name} {number}" for name, number in row["flags"].items())
        cells = [row["task"], row["shift"], row["num_cases"], score, f"{row['flagged']:.0%}"]
        lines.append(f"| {' | '.join(map(str, cells))} | {row['median_score']:.3f} | {flags} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
