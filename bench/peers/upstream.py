"""Loads a folder of upstream-format files (lm/, clip/, flamingo.pt) with the original package."""

import contextlib
import os
import sys
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
warnings.filterwarnings("ignore")

import open_clip  # noqa: E402
import torch  # noqa: E402
from open_flamingo import create_model_and_transforms  # noqa: E402


def clip_name(folder: Path) -> str:
    """Registers the CLIP configuration in `folder/clip` and returns its name."""
    (config,) = (folder / "clip").glob("*.json")
    open_clip.add_model_config(config)
    return config.stem


def interval(state: dict) -> int:
    """Interval of the gated blocks: the first sits before decoder layer `interval - 1`."""
    return 1 + min(
        int(key.split(".gated_cross_attn_layer.")[0].rsplit(".", 1)[1])
        for key in state
        if ".gated_cross_attn_layer." in key
    )


def create(folder: Path, every: int):
    """`create_model_and_transforms` on the CLIP and language model of `folder`."""
    with contextlib.redirect_stdout(sys.stderr):
        return create_model_and_transforms(
            clip_name(folder),
            str(folder / "clip" / "open_clip_pytorch_model.pt"),
            str(folder / "lm"),
            str(folder / "lm"),
            cross_attn_every_n_layers=every,
            use_local_files=True,
        )


def open_model(folder: Path):
    """(model, image transform, tokenizer) of `folder`, trainable where upstream trains, f32."""
    state = torch.load(folder / "flamingo.pt", map_location="cpu")
    model, transform, tokenizer = create(folder, interval(state))
    unexpected = model.load_state_dict(state, strict=False).unexpected_keys
    if unexpected:
        raise SystemExit(f"{folder}/flamingo.pt: unexpected keys {unexpected[:3]}")
    return model, transform, tokenizer


def load(folder: Path, dtype: str):
    """(model, image transform, tokenizer) of `folder`, in evaluation mode; `dtype` fp32 or bf16."""
    model, transform, tokenizer = open_model(folder)
    model.eval().requires_grad_(False)
    tokenizer.padding_side = "left"
    return model.bfloat16() if dtype == "bf16" else model, transform, tokenizer
