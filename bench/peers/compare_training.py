#!/usr/bin/env python3
"""Times training steps of medflamingo beside the original package, interleaved, on one batch.

MODEL_DIR is a folder written by make_model.py; each --converted names what `medflamingo-tools
convert` made of it; --ours is the bench binary `train` (`cargo bench --no-run --bench train` prints
where it is).  All begin with the same weights and see the same ids, labels and pixels; what is
trained and how is upstream's: resampler, gated blocks and two embedding rows, AdamW at 1e-4,
clipping to 1.  For each --batch every contestant is a process that stays loaded; a round is one
step of each, odd rounds in the reverse order.  Two ratios are reported: the median of those within
a round, and that of the fastest steps, which a busy machine disturbs less; least of all it disturbs
processor time with --threads 1.  Ends with status 1 if the first losses in f32 differ by more than
1e-4.
Needs the environment that bench/peers/setup makes.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from compare import HERE, labelled, machine

PEERS = ("torch fp32", "torch amp_bf16")
PARTS = {
    "losses and gradients": "gradients_ms",
    "norm, clipping, AdamW": "optimizer_ms",
    "whole step": "step_ms",
    "processor time of a step": "processor_ms",
}
BAR = 1.5


class Contestant:
    """A process that makes a step whenever it is asked."""

    def __init__(self, name: str, command: list):
        self.name = name
        self.process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )
        self.about = self.answer()

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended; try by hand: {' '.join(self.process.args)}")
        return json.loads(line)

    def processor_ms(self) -> float:
        """Of all threads so far, in ticks of the system's clock."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) * 1e3 / os.sysconf("SC_CLK_TCK")

    def measure(self) -> dict:
        before = self.processor_ms()
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        return self.answer() | {"processor_ms": self.processor_ms() - before}

    def close(self) -> float:
        """Peak resident memory, MiB."""
        self.process.stdin.close()
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        return usage.ru_maxrss / 1024


def make_batch(path: Path, config: dict, sequences: int, tokens: int, images: int):
    """Random text in which images stand evenly, each followed by what is to be learnt of it."""
    torch.manual_seed(sequences)
    marks, side = config["tokens"], config["vision"]["image_size"]
    ids = torch.randint(3, marks["end_of_chunk"], (sequences, tokens))
    starts = [1 + i * (tokens - 1) // images for i in range(images)]
    ids[:, 0] = 1
    ids[:, starts] = marks["image"]
    ids[:, [start - 1 for start in starts[1:]] + [tokens - 1]] = marks["end_of_chunk"]
    labels = ids.clone()
    labels[:, 0] = -100
    labels[:, starts] = -100
    pixels = torch.randint(0, 256, (sequences * images, 3, side, side), dtype=torch.uint8)
    save_file({"ids": ids, "labels": labels, "pixels": pixels}, path)


def contestants(args, batch: Path) -> list:
    ours = [
        Contestant(f"medflamingo {label}", [
            args.ours, "--model", folder, "--batch", batch, "--threads", args.threads, "--serve",
        ])
        for label, folder in args.converted
    ]
    peers = [
        Contestant(name, [
            sys.executable, HERE / "train_step.py", args.model, "--batch", batch,
            "--dtype", name.split()[1], "--threads", args.threads,
        ])
        for name in PEERS
    ]
    return ours + peers


def measure(args, batch: Path) -> dict:
    """Name -> steps (the first, untimed, gives the losses), peak memory and what it said."""
    all_of_them = contestants(args, batch)
    runs = {c.name: {"about": c.about, "steps": []} for c in all_of_them}
    for number in range(args.rounds + 1):
        for contestant in all_of_them[:: -1 if number % 2 else 1]:
            runs[contestant.name]["steps"].append(contestant.measure())
        print(f"{batch.stem}: round {number} of {args.rounds}", file=sys.stderr)
    for contestant in all_of_them:
        runs[contestant.name]["peak_rss_mib"] = contestant.close()
    return runs


def ratios(runs: dict, ours: str, peer: str, key: str) -> tuple:
    """Median over rounds of (peer's time / our time) in that round, and that of the minima."""
    mine, theirs = ([step[key] for step in runs[n]["steps"][1:]] for n in (ours, peer))
    within = statistics.median(b / a for a, b in zip(mine, theirs))
    return within, min(theirs) / min(mine)


def tables(runs: dict) -> list:
    """Times, memory and losses; then how many times faster."""
    lines = ["| ms, minimum (median) | " + " | ".join(runs) + " |", "|---" * (len(runs) + 1) + "|"]
    for part, key in PARTS.items():
        pools = [[step[key] for step in run["steps"][1:]] for run in runs.values()]
        cells = [f"{min(pool):.0f} ({statistics.median(pool):.0f})" for pool in pools]
        lines.append(f"| {part} | " + " | ".join(cells) + " |")
    memory = [f"{run['peak_rss_mib']:.0f}" for run in runs.values()]
    lines.append("| peak resident memory, MiB | " + " | ".join(memory) + " |")
    for at, key, name in [(0, "loss", "loss"), (0, "grad_norm", "norm of the gradient"),
                          (-1, "loss", "loss")]:
        number = len(next(iter(runs.values()))["steps"]) if at else 1
        cells = [f"{run['steps'][at][key]:.6f}" for run in runs.values()]
        lines.append(f"| {name}, step {number} | " + " | ".join(cells) + " |")
    ours = [name for name in runs if name not in PEERS]
    lines += ["", "| times faster: in a round (minima) | " + " | ".join(PEERS) +
              " | the faster of both |", "|---|---|---|---|"]
    for name in ours:
        for what, key in [("", "step_ms"), (", processor time", "processor_ms")]:
            both = [ratios(runs, name, peer, key) for peer in PEERS]
            both.append(tuple(map(min, zip(*both))))
            cells = [f"{within:.2f} ({minima:.2f})" for within, minima in both]
            bar = "" if what else f", bar {BAR}"
            lines.append(f"| {name}{what} | {' | '.join(cells)}{bar} |")
    return lines


def difference(runs: dict) -> float:
    """Relative difference of the first losses in f32; none without an f32 folder."""
    expected = runs[PEERS[0]]["steps"][0]["loss"]
    found = runs.get("medflamingo f32")
    return abs(found["steps"][0]["loss"] / expected - 1) if found else 0.0


def shape(text: str) -> tuple:
    numbers = tuple(int(n) for n in text.split("x") if n.isdigit())
    if len(numbers) != 3 or numbers[1] < 4 * numbers[2]:
        raise argparse.ArgumentTypeError(f"{text!r} is not SEQUENCESxTOKENSxIMAGES, as 4x128x2")
    return numbers


def report(all_runs: dict, args) -> str:
    commit = subprocess.run(
        ["git", "-C", HERE, "describe", "--always", "--dirty"], capture_output=True, text=True
    ).stdout.strip()
    about = next(iter(all_runs.values()))[PEERS[0]]["about"]
    converted = " ".join(
        f"--converted {label}={Path(folder).name}" for label, folder in args.converted
    )
    shapes = " ".join(f"--batch {name}" for name in all_runs)
    lines = [
        f"# A training step beside open-flamingo 2.0.1 (torch {about['torch']})", "",
        f"- model `{args.model.name}`, {about['parameters'] / 1e6:.1f} M parameters that upstream "
        f"trains, {args.threads} threads, {args.rounds} rounds after one untimed",
        f"- {machine()}; {datetime.date.today()}; commit {commit or 'unknown'}; load average at "
        f"the end {os.getloadavg()[0]:.1f}",
        f"- `bench/peers/compare_training.py {args.model.name} --ours train {converted} {shapes} "
        f"--rounds {args.rounds} --threads {args.threads}`",
    ]
    for name, runs in all_runs.items():
        sequences, tokens, images = shape(name)
        lines += ["", f"## {sequences} x {tokens} tokens, {images} images each", "", *tables(runs),
                  "", f"First losses in f32 differ by {difference(runs):.1e}, relative."]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, metavar="MODEL_DIR")
    parser.add_argument("--ours", type=Path, required=True, metavar="BENCH")
    parser.add_argument("--converted", type=labelled, action="append", required=True,
                        metavar="LABEL=DIR", help="may be repeated: bf16=DIR, f32=DIR")
    parser.add_argument("--batch", type=shape, action="append", metavar="SEQUENCESxTOKENSxIMAGES",
                        help="may be repeated; 4x128x2 and 1x128x2 unless given")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, metavar="FILE.md")
    parser.add_argument("--json", type=Path, metavar="FILE.json", help="every step of everybody")
    args = parser.parse_args()
    args.ours = args.ours.resolve()
    config = json.loads((Path(args.converted[0][1]) / "config.json").read_text())
    runs = {}
    with tempfile.TemporaryDirectory() as scratch:
        for numbers in args.batch or [(4, 128, 2), (1, 128, 2)]:
            path = Path(scratch) / ("x".join(map(str, numbers)) + ".safetensors")
            make_batch(path, config, *numbers)
            runs[path.stem] = measure(args, path)
    text = report(runs, args)
    print(text)
    if args.output:
        args.output.write_text(text)
    if args.json:
        args.json.write_text(json.dumps(runs, indent=1) + "\n")
    sys.exit(any(difference(run) > 1e-4 for run in runs.values()))


if __name__ == "__main__":
    main()
