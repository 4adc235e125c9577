#!/usr/bin/env python3
"""Converts a Med-Flamingo-9B shaped set of upstream files and prints how much memory that took.

The inputs are sparse files: right names, shapes and sizes, all zeros, a few KiB on disk. The output
is real (16.4 GB in bf16) and is removed afterwards.

    python3 bench/convert_9b.py --tools target/release/medflamingo-tools --tokenizer DIR --work DIR

`--tokenizer` is a Hugging Face LLaMA folder with 32000 tokens, for instance `lm/` of what
`bench/peers/make_model.py --preset midsize` makes.
"""
import argparse, json, pathlib, shutil, struct, subprocess, time

D, L, F, V, DV = 4096, 32, 11008, 32000, 1024


def save(path, dtype, tensors):
    """A safetensors file of zeros that occupies no blocks."""
    size = {"F16": 2, "F32": 4}[dtype]
    header, end = {}, 0
    for name, shape in tensors:
        count = size
        for n in shape:
            count *= n
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + count]}
        end += count
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 64)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        f.truncate(8 + len(text) + end)
    return end


def language():
    yield "model.embed_tokens.weight", [V, D]
    for i in range(L):
        at = f"model.layers.{i}."
        for name in "qkvo":
            yield f"{at}self_attn.{name}_proj.weight", [D, D]
        yield f"{at}mlp.gate_proj.weight", [F, D]
        yield f"{at}mlp.up_proj.weight", [F, D]
        yield f"{at}mlp.down_proj.weight", [D, F]
        yield f"{at}input_layernorm.weight", [D]
        yield f"{at}post_attention_layernorm.weight", [D]
    yield "model.norm.weight", [D]
    yield "lm_head.weight", [V, D]


def vision():
    yield "visual.class_embedding", [DV]
    yield "visual.positional_embedding", [257, DV]
    yield "visual.proj", [DV, 768]
    yield "visual.conv1.weight", [DV, 3, 14, 14]
    norms = ["visual.ln_pre", "visual.ln_post"]
    for i in range(24):
        at = f"visual.transformer.resblocks.{i}."
        norms += [at + "ln_1", at + "ln_2"]
        yield at + "attn.in_proj_weight", [3 * DV, DV]
        yield at + "attn.in_proj_bias", [3 * DV]
        for name, out, into in [("attn.out_proj", DV, DV), ("mlp.c_fc", 4 * DV, DV), ("mlp.c_proj", DV, 4 * DV)]:
            yield f"{at}{name}.weight", [out, into]
            yield f"{at}{name}.bias", [out]
    for norm in norms:
        yield norm + ".weight", [DV]
        yield norm + ".bias", [DV]


def flamingo():
    yield "perceiver.latents", [64, DV]
    norms = [("perceiver.norm", DV)]
    for i in range(6):
        at = f"perceiver.layers.{i}."
        norms += [(at + "0.norm_media", DV), (at + "0.norm_latents", DV), (at + "1.0", DV)]
        yield at + "0.to_q.weight", [512, DV]
        yield at + "0.to_kv.weight", [1024, DV]
        yield at + "0.to_out.weight", [DV, 512]
        yield at + "1.1.weight", [4 * DV, DV]
        yield at + "1.3.weight", [DV, 4 * DV]
    for i in range(3, L, 4):
        at = f"lang_encoder.model.layers.{i}.gated_cross_attn_layer."
        norms += [(at + "attn.norm", D), (at + "ff.0", D)]
        yield at + "attn_gate", [1]
        yield at + "ff_gate", [1]
        yield at + "attn.to_q.weight", [512, D]
        yield at + "attn.to_kv.weight", [1024, DV]
        yield at + "attn.to_out.weight", [D, 512]
        yield at + "ff.1.weight", [4 * D, D]
        yield at + "ff.3.weight", [D, 4 * D]
    for norm, width in norms:
        yield norm + ".weight", [width]
        yield norm + ".bias", [width]
    yield "lang_encoder.model.embed_tokens.weight", [V + 3, D]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tools", type=pathlib.Path, required=True)
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="needs 17 GB")
    a = parser.parse_args()
    lm = a.work / "lm"
    lm.mkdir(parents=True, exist_ok=True)
    for file in a.tokenizer.glob("*token*.json"):
        shutil.copy(file, lm)
    (lm / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": D, "intermediate_size": F, "num_hidden_layers": L, "num_attention_heads": 32,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "vocab_size": V,
        "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2}))
    inputs = save(lm / "model.safetensors", "F16", language())
    inputs += save(a.work / "clip.safetensors", "F16", vision())
    inputs += save(a.work / "flamingo.safetensors", "F32", flamingo())
    output = a.work / "model"
    command = [a.tools, "convert", "--language-model", lm, "--vision", a.work / "clip.safetensors",
               "--flamingo", a.work / "flamingo.safetensors", "--output", output, "--force"]
    started, anonymous, mapped = time.time(), 0, 0
    run = subprocess.Popen([str(c) for c in command], stdout=subprocess.DEVNULL)
    while run.poll() is None:
        try:
            status = pathlib.Path(f"/proc/{run.pid}/status").read_text()
        except OSError:
            break
        for line in status.splitlines():
            if line.startswith("RssAnon:"):
                anonymous = max(anonymous, int(line.split()[1]))
            if line.startswith("RssFile:"):
                mapped = max(mapped, int(line.split()[1]))
        time.sleep(0.02)
    if run.wait() != 0:
        raise SystemExit(f"convert: exit status {run.returncode}")
    seconds = time.time() - started
    size = sum(f.stat().st_size for f in output.iterdir())
    print(f"{inputs / 1e9:.2f} GB of inputs to {size / 1e9:.2f} GB in {seconds:.0f} s; most anonymous memory "
          f"{anonymous / 1024:.0f} MiB, most mapped file pages {mapped / 1024:.0f} MiB (the system may take those back)")
    shutil.rmtree(a.work)


if __name__ == "__main__":
    main()
