#!/usr/bin/env python3
"""Writes a random-weight model in the formats researchers have, with a six-shot prompt.

DIR/lm/           Hugging Face LLaMA folder: config, safetensors, tokenizer.json of 32000 tokens
DIR/clip/         open_clip configuration and state dict
DIR/flamingo.pt   what the original training code saves: trainable parameters only
DIR/prompt.txt    a six-shot prompt, seven markers
DIR/images/       seven generated pictures, in the order of the markers

The tokenizer is trained on the source text of Python's standard library and on the prompt.
With --dtype bf16 all values are rounded to bf16; flamingo.pt and clip/ stay f32 files, as upstream
saves them.
"""

import argparse
import json
import random
import sys
import sysconfig
import types
from dataclasses import dataclass
from pathlib import Path

import upstream
import open_clip
import torch
from PIL import Image, ImageDraw, ImageFilter
from tokenizers import (
    Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers,
)
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 32000
NEW_TOKENS = 3  # <|endofchunk|>, <image>, <PAD>: appended by upstream's factory


@dataclass
class Preset:
    """Widths of one model; heads of the vision tower are 64 wide, patches 14 x 14."""

    vision_layers: int
    vision_width: int
    image_size: int
    layers: int
    width: int
    heads: int
    mlp: int
    every: int


PRESETS = {
    "tiny": Preset(2, 128, 56, 4, 128, 2, 352, 2),
    "midsize": Preset(6, 512, 224, 8, 1024, 16, 2752, 4),
}

INSTRUCTION = (
    "You answer questions about medical pictures. Every picture comes with a question and a short "
    "answer. Study the examples first, then answer the last question yourself. Be brief: a word or "
    "two is enough. "
)
SHOTS = [
    ("Which part of the body does this picture show?", "the chest"),
    ("Is there fluid around the left lung?", "yes"),
    ("Do the kidneys appear normal in size?", "no"),
    ("How was this picture of the brain taken?", "mr with contrast"),
    ("On which side is the broken rib?", "right"),
    ("Is the outline of the heart too wide?", "yes"),
    ("Where in the liver is the largest lesion found?", None),
]


def prompt() -> str:
    """Six answered questions and an open one, one <image> before each."""
    parts = [INSTRUCTION]
    for question, answer in SHOTS:
        parts.append(f"<image>Question: {question} Answer:")
        if answer is not None:
            parts.append(f" {answer}.<|endofchunk|>")
    return "".join(parts)


def corpus():
    """Lines of ASCII text to learn merges from: standard library sources, then the prompt."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.glob("*.py")) + sorted(library.glob("[a-z]*/*.py")):
        if "site-packages" in path.parts or "test" in path.parts:
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        yield from (line for line in text.splitlines() if line.isascii())
    plain = prompt().replace("<image>", "\n").replace("<|endofchunk|>", "\n")
    yield from plain.splitlines() * 500


def train_pieces(size: int):
    """(pieces, merges): `size` pieces of a BPE whose words start with U+2581."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Metaspace(replacement="\u2581", add_prefix_space=True),
        pre_tokenizers.Punctuation("isolated"),
        pre_tokenizers.Digits(individual_digits=True),
    ])
    learner.train_from_iterator(
        corpus(), trainers.BpeTrainer(vocab_size=size, show_progress=False)
    )
    model = json.loads(learner.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    if len(pieces) != size:
        raise SystemExit(f"the corpus gave {len(pieces)} pieces, expected {size}")
    return pieces, [tuple(merge.split(" ")) for merge in model["merges"]]


def save_tokenizer(folder: Path):
    """LLaMA's layout: three specials, 256 byte pieces, then merged pieces."""
    head = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    pieces, merges = train_pieces(VOCABULARY - len(head))
    vocabulary = {piece: i for i, piece in enumerate(head + pieces)}
    tokenizer = Tokenizer(models.BPE(
        vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
    ))
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581"),
    ])
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        clean_up_tokenization_spaces=False, model_max_length=2048,
    ).save_pretrained(folder)


@torch.no_grad()
def randomise(module: torch.nn.Module, round_bf16: bool):
    """Unit-variance matrices, norms near 1, gates of 0.3..1.2 with either sign."""
    for name, p in module.named_parameters():
        if p.ndim == 0:  # logit_scale of CLIP
            continue
        if name.endswith("_gate"):
            sign = 1.0 if torch.rand(1) < 0.5 else -1.0
            p.copy_(sign * (0.3 + 0.9 * torch.rand(1)))
        elif p.ndim == 1 and name.endswith("weight"):
            p.normal_(1.0, 0.1)
        elif p.ndim == 1:
            p.normal_(0.0, 0.05)
        elif "embed" in name or name.endswith("latents"):
            p.normal_(0.0, 0.5)
        else:
            p.normal_(0.0, p[0].numel() ** -0.5)
        if name == "lm_head.weight":  # upstream's spread for rows it adds: greedy avoids them
            p[:3].normal_(0.0, 0.02)
            p[VOCABULARY:].normal_(0.0, 0.02)
        if round_bf16:
            p.copy_(p.bfloat16().float())


def save_language_model(folder: Path, preset: Preset, dtype: str):
    config = LlamaConfig(
        vocab_size=VOCABULARY + NEW_TOKENS, hidden_size=preset.width,
        intermediate_size=preset.mlp, num_hidden_layers=preset.layers,
        num_attention_heads=preset.heads, max_position_embeddings=2048,
        rms_norm_eps=1e-6, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    randomise(model, dtype == "bf16")
    model = model.bfloat16() if dtype == "bf16" else model
    model.save_pretrained(folder, safe_serialization=True)


def save_clip(folder: Path, preset: Preset, dtype: str):
    config = {
        "embed_dim": preset.vision_width // 2,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": preset.image_size, "layers": preset.vision_layers,
            "width": preset.vision_width, "head_width": 64, "patch_size": 14,
        },
        "text_cfg": {
            "context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1,
        },
    }
    folder.mkdir()
    name = f"ViT-random-{preset.vision_width}"
    (folder / f"{name}.json").write_text(json.dumps(config, indent=1))
    open_clip.add_model_config(folder)
    model = open_clip.create_model(name)
    randomise(model, dtype == "bf16")
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.pt")


def save_flamingo(folder: Path, preset: Preset, dtype: str) -> int:
    """Filters by the package's own function, which its training code calls before saving."""
    sys.modules.setdefault("wandb", types.ModuleType("wandb"))  # imported there, not needed here
    from open_flamingo.train.train_utils import filter_state_dict_to_trainable

    model, _, _ = upstream.create(folder, preset.every)
    randomise(model.perceiver, dtype == "bf16")
    randomise(model.lang_encoder.gated_cross_attn_layers, dtype == "bf16")
    rows = model.lang_encoder.get_input_embeddings()
    with torch.no_grad():
        rows.weight.normal_(0.0, 0.5)  # every row differs from lm/: the checkpoint's must win
        if dtype == "bf16":
            rows.weight.copy_(rows.weight.bfloat16().float())
    torch.save(filter_state_dict_to_trainable(model, model.state_dict()), folder / "flamingo.pt")
    return sum(p.numel() for p in model.parameters())


def save_images(folder: Path, seed: int):
    """Seven phantoms: soft ellipses on black in different sizes, gray and colour."""
    folder.mkdir()
    rng = random.Random(seed)
    sizes = [(640, 480), (512, 512), (420, 600), (731, 1000), (300, 224), (800, 533), (256, 256)]
    for i, (width, height) in enumerate(sizes):
        noise = Image.frombytes("L", (width, height), rng.randbytes(width * height))
        image = noise.point(lambda v: v // 8)
        image = image if i % 2 else image.convert("RGB")
        draw = ImageDraw.Draw(image)
        for _ in range(9):
            x, y = rng.random() * width, rng.random() * height
            rx, ry = (0.05 + 0.25 * rng.random()) * width, (0.05 + 0.25 * rng.random()) * height
            shade = tuple(rng.randrange(30, 256) for _ in image.getbands())
            box = (x - rx, y - ry, x + rx, y + ry)
            draw.ellipse(box, fill=shade if len(shade) > 1 else shade[0])
        image = image.filter(ImageFilter.GaussianBlur(2))
        image.save(folder / f"{i}.png" if i == 3 else folder / f"{i}.jpg")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="midsize")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="must not exist")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="bf16",
                        help="of the values; bf16 values are the same model at either precision")
    args = parser.parse_args()
    preset = PRESETS[args.preset]
    args.output.mkdir(parents=True)
    torch.manual_seed(args.seed)
    (args.output / "prompt.txt").write_text(prompt())
    save_images(args.output / "images", args.seed)
    save_language_model(args.output / "lm", preset, args.dtype)
    save_tokenizer(args.output / "lm")
    save_clip(args.output / "clip", preset, args.dtype)
    parameters = save_flamingo(args.output, preset, args.dtype)
    print(f"{args.output}: {parameters / 1e6:.1f} M parameters (without CLIP's text tower)")


if __name__ == "__main__":
    main()
