#!/usr/bin/env python3
"""Times medflamingo beside the original package, interleaved, on one folder of weights.

Every round measures each contestant once: medflamingo as a fresh process per converted folder,
torch in f32 and in bf16 in processes that stay loaded; odd rounds run in the reverse order.
MODEL_DIR is a folder written by make_model.py; each --converted names what
`medflamingo-tools convert` made of it.
Ratios are taken within a round, then their median is reported.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PEERS = ("torch fp32", "torch bf16")
PHASES = {  # name in the table -> values of one measurement, milliseconds
    "load": lambda t: [t["load"]],
    "vision + resampler": lambda t: [t["vision"]],
    "full prefill, images included": lambda t: [t["prefill"]],
    "time to first token": lambda t: [t["first_token"]],
    "decode per token": lambda t: t["decode"],
}
BARS = {  # phase -> least ratio over (torch fp32, torch bf16), None where no bar is set
    "full prefill, images included": (2.4, 1.0),
    "decode per token": (1.6, 1.6),
}


class Peer:
    """One run.py --serve process."""

    def __init__(self, args, dtype: str):
        command = [
            HERE / ".venv/bin/python", HERE / "run.py", args.model, "--serve", "--dtype", dtype,
            "--max-new-tokens", str(args.max_new_tokens), "--threads", str(args.threads),
        ]
        self.name = f"torch {dtype}"
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True,
        )
        self.version = self.answer()["torch"]

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name}: run.py ended; try it by hand to see why")
        return json.loads(line)

    def measure(self) -> dict:
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Ours:
    """`medflamingo generate` on one converted folder; a process per measurement.

    The process answers the prompt twice, one after the other and without caches, and the second
    answer counts: the peers are measured in processes that are warm as well."""

    def __init__(self, args, label: str, folder: str):
        self.name = f"medflamingo {label}"
        images = [str(image.resolve()) for image in sorted((args.model / "images").iterdir())]
        prompt = (args.model / "prompt.txt").read_text().removesuffix("\n")
        self.requests = tempfile.NamedTemporaryFile("w", suffix=".jsonl")
        for number in range(2):
            line = {"id": number, "prompt": prompt, "images": images}
            self.requests.write(json.dumps(line) + "\n")
        self.requests.flush()
        self.command = [
            args.ours, "generate", "--model", folder, "--batch", self.requests.name, "--json",
            "--concurrent", "1", "--no-cache", "--max-new-tokens", str(args.max_new_tokens),
            *args.ours_arguments.split(),
        ]

    def measure(self) -> dict:
        child = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        text = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode != 0:
            raise SystemExit(f"{self.name}: exit code {child.returncode}")
        answer = json.loads(text.splitlines()[-1])["answer"]
        times = answer["timings_ms"]
        whole = times["vision"] + times["prefill"]  # its prefill starts after the images
        times |= {"prefill": whole, "first_token": whole}
        return answer | {"peak_rss_mib": usage.ru_maxrss / 1024}

    def close(self):
        pass


def measure(contestants: list, args) -> dict:
    """Name -> one measurement per round, the first --warmup rounds dropped."""
    runs = {contestant.name: [] for contestant in contestants}
    for number in range(-args.warmup, args.rounds):
        for contestant in contestants[:: -1 if number % 2 else 1]:
            time.sleep(args.pause)
            run = contestant.measure()
            if number >= 0:
                runs[contestant.name].append(run)
        print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
    return runs


def times_table(runs: dict) -> list:
    """Minimum (median) over all rounds of every phase, and memory."""
    lines = ["| ms, minimum (median) | " + " | ".join(runs) + " |", "|---" * (len(runs) + 1) + "|"]
    for phase, values in PHASES.items():
        cells = []
        for name in runs:
            pool = [ms for run in runs[name] for ms in values(run["timings_ms"])]
            cells.append(f"{min(pool):.1f} ({statistics.median(pool):.1f})")
        lines.append(f"| {phase} | " + " | ".join(cells) + " |")
    memory = [f"{max(run['peak_rss_mib'] for run in runs[name]):.0f}" for name in runs]
    return lines + ["| peak resident memory, MiB | " + " | ".join(memory) + " |"]


def ratio(runs: dict, phase: str, ours: str, peer: str) -> float:
    """Median over rounds of (peer's median time / our median time) in that round."""
    def median(run):
        return statistics.median(PHASES[phase](run["timings_ms"]))

    return statistics.median(median(b) / median(a) for a, b in zip(runs[ours], runs[peer]))


def ratios_table(runs: dict) -> list:
    """How many times faster, with the bar where one is set."""
    pairs = [(ours, peer) for ours in runs if ours not in PEERS for peer in PEERS]
    head = [f"{ours} over {peer}" for ours, peer in pairs]
    lines = ["| times faster | " + " | ".join(head) + " |", "|---" * (len(pairs) + 1) + "|"]
    for phase in list(PHASES)[1:]:
        cells = []
        for ours, peer in pairs:
            bar = BARS.get(phase, (None, None))[PEERS.index(peer)]
            note = f" (bar {bar})" if bar else ""
            cells.append(f"{ratio(runs, phase, ours, peer):.2f}{note}")
        lines.append(f"| {phase} | " + " | ".join(cells) + " |")
    return lines


def agreement(runs: dict) -> list:
    """Greedy ids of everybody against torch fp32."""
    expected = runs[PEERS[0]][0]["token_ids"]
    lines = []
    for name in runs:
        got = [run["token_ids"] for run in runs[name]]
        same = next(
            (i for i, (a, b) in enumerate(zip(got[0], expected)) if a != b),
            min(len(got[0]), len(expected)),
        )
        claim = f"same for {same} of {len(expected)} tokens"
        if got[0] == expected:
            claim = f"identical ({len(expected)} tokens)"
        steady = "" if all(ids == got[0] for ids in got) else ", differing between rounds"
        lines.append(f"- {name}: {claim}{steady}")
    return lines


def machine() -> str:
    cpu = next(
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{cpu}, {os.cpu_count()} cores, {memory:.0f} GiB"


def report(runs: dict, args, version: str) -> str:
    commit = subprocess.run(
        ["git", "-C", HERE, "describe", "--always", "--dirty"], capture_output=True, text=True
    ).stdout.strip()
    converted = " ".join(
        f"--converted {label}={Path(folder).name}" for label, folder in args.converted
    )
    one_minute, _, _ = os.getloadavg()
    return "\n".join([
        f"# medflamingo beside open-flamingo 2.0.1 (torch {version})", "",
        f"- model `{args.model.name}`, six shots, 7 images, {runs[PEERS[0]][0]['prompt_tokens']} "
        f"prompt tokens, {args.max_new_tokens} new tokens, {args.threads} threads",
        f"- {machine()}; {datetime.date.today()}; commit {commit or 'unknown'}; "
        f"load average at the end {one_minute:.1f}",
        f"- `bench/peers/compare.py {args.model.name} --ours {args.ours.name} {converted} "
        f"--rounds {args.rounds} --max-new-tokens {args.max_new_tokens}`",
        "", *times_table(runs), "", *ratios_table(runs), "",
        "Greedy ids compared with torch fp32:", "", *agreement(runs), "",
        "`load`: ours as it reports it, every round; torch once, imports included.", "",
    ])


def labelled(text: str) -> tuple:
    label, separator, folder = text.partition("=")
    if not separator or not Path(folder).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not LABEL=FOLDER, as in bf16=converted")
    return label, folder


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, metavar="MODEL_DIR")
    parser.add_argument("--ours", type=Path, required=True, metavar="BINARY")
    parser.add_argument("--converted", type=labelled, action="append", required=True,
                        metavar="LABEL=DIR", help="may be repeated: bf16=DIR, f32=DIR")
    parser.add_argument("--ours-arguments", default="", metavar="TEXT",
                        help="further arguments of `medflamingo generate`")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=1, help="rounds thrown away first")
    parser.add_argument("--max-new-tokens", type=int, default=32, metavar="N")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--pause", type=float, default=0.3, help="seconds before a measurement")
    parser.add_argument("--output", type=Path, metavar="FILE.md")
    args = parser.parse_args()
    args.ours = args.ours.resolve()
    peers = [Peer(args, "fp32"), Peer(args, "bf16")]
    contestants = [Ours(args, label, folder) for label, folder in args.converted] + peers
    runs = measure(contestants, args)
    for contestant in contestants:
        contestant.close()
    text = report(runs, args, peers[0].version)
    print(text)
    if args.output:
        args.output.write_text(text)


if __name__ == "__main__":
    main()
