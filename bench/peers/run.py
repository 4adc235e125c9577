#!/usr/bin/env python3
"""Times the original open-flamingo package on a folder written by make_model.py.

One measurement runs, in milliseconds: `images` (decode and transform), `vision` (CLIP and
resampler), `prefill` (one forward of the whole prompt, vision included), `first_token` (start of
`generate` to the first choice, vision included) and `decode` (each later token).  Generation is
greedy and never stops early, so exactly N tokens come.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from pathlib import Path

START = time.perf_counter()

import upstream  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import LogitsProcessor, LogitsProcessorList  # noqa: E402


class Stamp(LogitsProcessor):
    """Notes the clock whenever the scores of a next token are ready; changes nothing."""

    def __init__(self):
        self.times = []

    def __call__(self, input_ids, scores):
        self.times.append(time.perf_counter())
        return scores


class Peer:
    """The loaded model and one request: the folder's prompt and pictures."""

    def __init__(self, folder: Path, dtype: str, new_tokens: int):
        self.model, self.transform, self.tokenizer = upstream.load(folder, dtype)
        self.dtype = torch.bfloat16 if dtype == "bf16" else torch.float32
        self.name, self.new_tokens = f"torch {dtype}", new_tokens
        self.paths = sorted((folder / "images").iterdir())
        self.text = (folder / "prompt.txt").read_text()
        self.load_ms = since(START)

    def images(self) -> torch.Tensor:
        pixels = [self.transform(Image.open(path)) for path in self.paths]
        return torch.stack(pixels)[None, :, None].to(self.dtype)

    def generate(self, vision_x, tokens):
        """(ids, time to first token, time of each later token), milliseconds."""
        stamp = Stamp()
        begin = time.perf_counter()
        output = self.model.generate(
            vision_x, tokens["input_ids"], tokens["attention_mask"],
            max_new_tokens=self.new_tokens, num_beams=1, do_sample=False,
            eos_token_id=None, pad_token_id=self.tokenizer.pad_token_id,
            logits_processor=LogitsProcessorList([stamp]),
        )
        times = [begin, *stamp.times]
        steps = [1e3 * (b - a) for a, b in zip(times, times[1:])]
        ids = output[0, tokens["input_ids"].shape[1]:].tolist()
        return ids, steps[0], steps[1:]

    @torch.inference_mode()
    def measure(self) -> dict:
        """Every phase once."""
        begin = time.perf_counter()
        vision_x = self.images()
        images = since(begin)
        tokens = self.tokenizer([self.text], return_tensors="pt")
        begin = time.perf_counter()
        self.model._encode_vision_x(vision_x)
        vision = since(begin)
        begin = time.perf_counter()
        self.model(vision_x, tokens["input_ids"], tokens["attention_mask"])
        prefill = since(begin)
        ids, first, decode = self.generate(vision_x, tokens)
        return {
            "name": self.name,
            "prompt_tokens": tokens["input_ids"].shape[1],
            "token_ids": ids,
            "timings_ms": {
                "load": self.load_ms, "images": images, "vision": vision, "prefill": prefill,
                "first_token": first, "decode": decode,
            },
            "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }


def since(begin: float) -> float:
    """Milliseconds since `begin`."""
    return 1e3 * (time.perf_counter() - begin)


def show(runs: list):
    """Minimum and median of every phase."""
    first, last = runs[0], runs[-1]
    print(f"{first['name']}: {first['prompt_tokens']} prompt tokens, {len(runs)} runs, peak RSS "
          f"{last['peak_rss_mib']:.0f} MiB, load {first['timings_ms']['load']:.0f} ms")
    for phase in ("images", "vision", "prefill", "first_token", "decode"):
        values = [run["timings_ms"][phase] for run in runs]
        if phase == "decode":
            values = [ms for run in values for ms in run]
        median = statistics.median(values)
        print(f"  {phase:12} min {min(values):8.1f} ms   median {median:8.1f} ms")
    print(f"  ids {first['token_ids']}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, metavar="MODEL_DIR")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--max-new-tokens", type=int, default=32, metavar="N")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=1, help="measurements thrown away first")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one line per measurement")
    parser.add_argument("--serve", action="store_true",
                        help='measure once, as --json, for each line "run" on standard input')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    peer = Peer(args.model, args.dtype, args.max_new_tokens)
    for _ in range(args.warmup):
        peer.measure()
    if args.serve:
        print(json.dumps({"ready": peer.name, "torch": torch.__version__}), flush=True)
        for line in sys.stdin:
            if line.strip() != "run":
                raise SystemExit(f'run.py: got {line.strip()!r}, expected "run"')
            print(json.dumps(peer.measure()), flush=True)
        return
    runs = [peer.measure() for _ in range(args.repeat)]
    if args.json:
        print("\n".join(map(json.dumps, runs)))
    else:
        show(runs)


if __name__ == "__main__":
    main()
