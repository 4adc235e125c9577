#!/usr/bin/env python3
"""Trains with the original open-flamingo package: one step for each line on standard input.

A step is what `open_flamingo/train/train_utils.py` does with a batch: forward and loss, backward,
the embedding's gradient masked to `<image>` and `<|endofchunk|>`, clipping to a norm of 1, AdamW in
the two groups of `train.py`, gradients dropped.  Vision and language model are frozen, as there.
`amp_bf16` is f32 weights under autocast; upstream names CUDA's, here it is the CPU's.
BATCH is a safetensors file as compare_training.py writes it.  Each answer is a line of JSON.
"""

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path

import upstream
import torch
from safetensors.torch import load_file

# Of CLIP's pixels; open_clip's OPENAI_DATASET_MEAN and _STD.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class Step:
    """Model, optimiser and one batch."""

    def __init__(self, args):
        self.model, _, tokenizer = upstream.open_model(args.model)
        self.model.train()
        trained = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        gated = [p for n, p in trained if "gated_cross_attn" in n]
        others = [p for n, p in trained if "gated_cross_attn" not in n]
        groups = [{"params": gated, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=args.lr)
        self.parameters = sum(p.numel() for _, p in trained)
        self.rows = tokenizer.convert_tokens_to_ids(["<image>", "<|endofchunk|>"])
        self.autocast = contextlib.nullcontext
        if args.dtype == "amp_bf16":
            self.autocast = lambda: torch.autocast("cpu", dtype=torch.bfloat16)
        batch = load_file(args.batch)
        self.ids, self.labels = batch["ids"], batch["labels"]
        mean, std = (torch.tensor(c).view(3, 1, 1) for c in (MEAN, STD))
        # (N, 3, S, S), the same number for each sequence
        pixels = (batch["pixels"].float() / 255 - mean) / std
        self.images = pixels.view(len(self.ids), -1, 1, *pixels.shape[1:])
        self.mask = torch.ones_like(self.ids)

    def run(self) -> dict:
        begin = time.perf_counter()
        with self.autocast():
            loss = self.model(
                vision_x=self.images, lang_x=self.ids, attention_mask=self.mask,
                labels=self.labels,
            )[0]
        forward = time.perf_counter()
        loss.backward()
        backward = time.perf_counter()
        embedding = self.model.lang_encoder.get_input_embeddings().weight
        kept = torch.zeros_like(embedding.grad)
        kept[self.rows] = torch.ones_like(kept[self.rows])
        embedding.grad = embedding.grad * kept
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        end = time.perf_counter()
        return {
            "loss": loss.item(), "grad_norm": norm.item(), "forward_ms": 1e3 * (forward - begin),
            "step_ms": 1e3 * (end - begin), "gradients_ms": 1e3 * (backward - begin),
            "optimizer_ms": 1e3 * (end - backward),
        }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="written by make_model.py")
    parser.add_argument("--batch", type=Path, required=True, metavar="FILE")
    parser.add_argument("--dtype", choices=["fp32", "amp_bf16"], default="fp32")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)  # of the language model's rows that no file has: none in make_model.py's
    step = Step(args)
    ready = {"ready": step.ids.numel(), "parameters": step.parameters, "torch": torch.__version__}
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        if line.strip() != "step":
            raise SystemExit(f'train_step.py: got {line.strip()!r}, expected "step"')
        print(json.dumps(step.run()), flush=True)


if __name__ == "__main__":
    main()
