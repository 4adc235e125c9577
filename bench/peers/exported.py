#!/usr/bin/env python3
"""Checks that the original package loads what `medflamingo-tools export` writes.

For every MODEL_DIR (lm/, clip/, flamingo.pt): converts it, trains a few steps with `medflamingo
train` on captions of generated pictures, exports the run as .pt, .safetensors and a model folder,
and gives both files to `create_model_and_transforms` + `load_state_dict(strict=False)`.  Then
- no key of a file is unknown to the model;
- every trainable parameter is in it: filled with NaN before, none is left;
- the keys are those that upstream's own filter would have saved, buffers aside;
- logits of a prompt with two pictures are those of our forward on the exported folder, within
  1e-3, and not those of the model before training.
Prints a table; ends with status 1 if anything does not hold.
Needs the environment that bench/peers/setup makes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import upstream
import torch
from PIL import Image
from safetensors.torch import load_file

TOLERANCE = 1e-3  # of logits of about +-15, f32 on both sides
STEPS = 3
PROMPT = "<image>A wave.<|endofchunk|><image>Another one:"
CONFIG = """
[run]
folder = "run"
steps = {steps}
device = "cpu"
threads = 2
[model]
folder = "before"
[train.schedule]
lr = 0.003
warmup_steps = 0
[[source]]
name = "waves"
form = "lines"
file = "data/pairs.jsonl"
images = "data"
batch = 4
"""


def make_data(folder: Path):
    """Pictures of gray waves with their captions."""
    folder.mkdir()
    lines = []
    for n in range(16):
        pixels = bytes(i * (n + 3) % 251 for i in range(80 * 64))
        Image.frombytes("L", (80, 64), pixels).convert("RGB").save(folder / f"{n}.png")
        lines.append(json.dumps({"image": f"{n}.png", "caption": f"wave {n} of {n * 7 % 5}"}))
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")


def make_exports(model: Path, scratch: Path, binaries: Path):
    """before/, after/, after.pt and after.safetensors in `scratch`."""
    def call(name: str, *arguments):
        subprocess.run(
            [binaries / name, *map(str, arguments)], cwd=scratch, check=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )

    (clip,) = (model / "clip").glob("*.pt")
    make_data(scratch / "data")
    (scratch / "run.toml").write_text(CONFIG.format(steps=STEPS))
    call("medflamingo-tools", "convert", "--language-model", model / "lm", "--vision", clip,
         "--flamingo", model / "flamingo.pt", "--output", "before", "--dtype", "f32")
    call("medflamingo", "train", "run.toml")
    for output in ("after.pt", "after.safetensors", "after"):
        call("medflamingo-tools", "export", "run", "--output", output)
    for folder in ("before", "after"):
        call("medflamingo", "generate", "--model", folder, "--prompt", PROMPT,
             "--image", "data/0.png", "--image", "data/1.png", "--device", "cpu",
             "--dump", f"{folder}.logits")


def saved_by_upstream(model) -> set:
    """Keys that upstream's training code would have saved."""
    sys.modules.setdefault("wandb", types.ModuleType("wandb"))  # imported there, not needed here
    from open_flamingo.train.train_utils import filter_state_dict_to_trainable

    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    return set(filter_state_dict_to_trainable(model, model.state_dict())) - buffers


@torch.inference_mode()
def logits(model, transform, tokenizer, scratch: Path) -> torch.Tensor:
    pixels = [transform(Image.open(scratch / f"data/{n}.png")) for n in (0, 1)]
    tokens = tokenizer([PROMPT], return_tensors="pt")
    vision_x = torch.stack(pixels)[None, :, None]
    return model(vision_x, tokens["input_ids"], tokens["attention_mask"]).logits[0]


def check(folder: Path, scratch: Path, file: Path) -> dict:
    state = torch.load(file) if file.suffix == ".pt" else load_file(file)
    model, transform, tokenizer = upstream.create(folder, upstream.interval(state))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.fill_(torch.nan)
    expected_keys = saved_by_upstream(model)
    found = model.load_state_dict(state, strict=False)
    left = [n for n, p in model.named_parameters() if p.isnan().any()]
    theirs = logits(model.eval(), transform, tokenizer, scratch)
    before, after = (load_file(scratch / f"{f}.logits")["logits"] for f in ("before", "after"))
    tied = model.lang_encoder.get_output_embeddings().weight
    if tied is model.lang_encoder.get_input_embeddings().weight:
        expected_keys.discard("lang_encoder.lm_head.weight")  # a second name of one tensor
    return {
        "model": folder.name,
        "file": file.suffix,
        "tensors": len(state),
        "unknown": len(found.unexpected_keys),
        "not loaded": len(left),
        "keys not as upstream's": len(expected_keys ^ set(state)),
        "logits, largest": theirs.abs().max().item(),
        "difference from ours": (theirs - after).abs().max().item(),
        "moved by training": (before - after).abs().max().item(),
    }


def holds(row: dict) -> bool:
    counts = ("unknown", "not loaded", "keys not as upstream's")
    near, moved = row["difference from ours"], row["moved by training"]
    return not any(row[name] for name in counts) and near <= TOLERANCE < moved / 10


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL_DIR")
    parser.add_argument("--binaries", type=Path, default=Path("target/release"), metavar="DIR",
                        help="of medflamingo and medflamingo-tools")
    args = parser.parse_args()
    rows = []
    for model in args.models:
        with tempfile.TemporaryDirectory() as scratch:
            scratch = Path(scratch)
            make_exports(model.resolve(), scratch, args.binaries.resolve())
            for name in ("after.pt", "after.safetensors"):
                rows.append(check(model.resolve(), scratch, scratch / name))
    print("| " + " | ".join(rows[0]) + " | |\n" + "|---" * (len(rows[0]) + 1) + "|")
    for row in rows:
        cells = [f"{v:.2g}" if isinstance(v, float) else str(v) for v in row.values()]
        print("| " + " | ".join(cells) + f" | {'holds' if holds(row) else 'FAILS'} |")
    sys.exit(not all(map(holds, rows)))


if __name__ == "__main__":
    main()
