#!/usr/bin/env python3
"""The table of recipes/phantom/ablate: what models of each form of data can do.

usage: ablation.py FOLDER

Reads FOLDER/ablation-FORM-SEED.json, written by `medflamingo-tools exam --json`, and the last
training metrics of each run. A cell is the mean over the seeds, with the least and the largest."""

import json
import sys
from pathlib import Path

FORMS = {"pairs": "paired only", "interleaved": "interleaved only", "flamingo": "joint"}
CONTROLS = [
    "normal",
    "query image swapped",
    "shots' images shuffled",
    "no shots",
    "query image blank",
]


def cell(values):
    mean, least, most = sum(values) / len(values), min(values), max(values)
    return f"{100 * mean:.1f} ({100 * least:.1f} to {100 * most:.1f})"


def last_training(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    trained = [m for m in map(json.loads, lines) if m["kind"] == "train"]
    return trained[-1], sum(m["tokens"] for m in trained) / len(trained)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    found = {form: sorted(folder.glob(f"ablation-{form}-*.json")) for form in FORMS}
    missing = [form for form, files in found.items() if not files]
    if missing:
        sys.exit(f"no ablation-*.json of {', '.join(missing)}: run recipes/phantom/ablate")
    exams = {form: [json.loads(f.read_text()) for f in files] for form, files in found.items()}
    names = [f"{FORMS[form]}, {len(files)} seeds" for form, files in found.items()]
    print("| right answers, % (least to most of the seeds) | " + " | ".join(names) + " |")
    print("|---" * (1 + len(FORMS)) + "|")
    for words, title in [("known", "known words"), ("coined", "made-up words")]:
        for at, control in enumerate(CONTROLS):
            row = []
            for form in FORMS:
                rows = [exam[words][at] for exam in exams[form]]
                assert all(r["control"] == control for r in rows), rows
                row.append(cell([r["ranked"]["share"] for r in rows]))
            print(f"| {title}, {control} | " + " | ".join(row) + " |")
    runs = {f: [last_training(x.with_suffix("")) for x in files] for f, files in found.items()}
    steps = {form: {last["step"] for last, _ in of} for form, of in runs.items()}
    print("| steps | " + " | ".join("/".join(map(str, sorted(s))) for s in steps.values()) + " |")
    tokens = [sum(mean for _, mean in of) / len(of) for of in runs.values()]
    print("| tokens a step | " + " | ".join(f"{t:.0f}" for t in tokens) + " |")


main()
