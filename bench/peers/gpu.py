#!/usr/bin/env python3
"""PyTorch beside the kernels on one card, and the table of both: called by bench/gpu.sh.

    gpu.py ceilings                     copy, read, matrix product, host to device, launch
    gpu.py kernels OURS.json            a peer for every case of `bench/kernels.rs --json`
    gpu.py end-to-end                   the 9B shape in eager PyTorch (bf16)
    gpu.py load FILE                    a file of weights to the device through PyTorch
    gpu.py table FOLDER                 FOLDER/*.json to FOLDER/gpu.md and FOLDER/gpu.json; no torch

Every command prints one JSON object. `--device cpu` and `--tiny` try the script without a card;
such figures mean nothing. A peer that does not run is a row that says why, never a silent gap.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

try:
    import torch
    import torch.nn.functional as F
except ModuleNotFoundError:  # `table` does without
    torch = F = None


class Timer:
    """Median microseconds of a call: many calls between two events, caches made cold in between."""

    def __init__(self, device):
        self.device = device
        size = 256 << 20 if device == "cuda" else 1 << 20
        self.flush = torch.empty(size, dtype=torch.uint8, device=device)

    def __call__(self, f, reps=20):
        for _ in range(3):
            f()
        if self.device != "cuda":
            times = []
            for _ in range(reps):
                start = time.perf_counter()
                f()
                times.append((time.perf_counter() - start) * 1e6)
            return sorted(times)[len(times) // 2]
        pairs = []
        for _ in range(reps):
            self.flush.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            f()
            end.record()
            pairs.append((begin, end))
        torch.cuda.synchronize()
        return sorted(b.elapsed_time(e) * 1e3 for b, e in pairs)[reps // 2]


def ceilings(device, tiny):
    timer, n = Timer(device), (1 << 20 if tiny else 1 << 30)
    a, b = (torch.empty(n, dtype=torch.uint8, device=device) for _ in range(2))
    words = a.view(torch.float32)
    side = 256 if tiny else 8192
    x, y = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    host = torch.empty(n // 4, dtype=torch.uint8, pin_memory=device == "cuda")
    one = torch.zeros(1, device=device)
    return {
        "copy_gb_s": 2 * n / timer(lambda: b.copy_(a)) / 1e3,
        "read_gb_s": n / timer(lambda: words.sum()) / 1e3,
        "tflops": 2 * side**3 / timer(lambda: x @ y) / 1e6,
        "host_to_device_gb_s": n / 4 / timer(lambda: b[: n // 4].copy_(host)) / 1e3,
        "launch_us": timer(lambda: [one.add_(1) for _ in range(100)]) / 100,
    }


def dtype_of(name):
    return {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[name]


def activate(x, kind):
    if kind == 3:
        gates, values = x.chunk(2, -1)
        return F.silu(gates) * values
    if kind == 1:
        return F.gelu(x)
    return x * torch.sigmoid(1.702 * x) if kind == 2 else x


def product_peers(shape, new):
    m, n, k = shape["m"], shape["n"], shape["k"]
    a, b, c, gate, w = new(m, k), new(n, k), new(m, n), new(1), new(k)
    plain = lambda: a @ b.T

    def with_epilogue():
        x = F.rms_norm(a, (k,), w, 1e-6) if shape.get("norm") else a
        y = activate(x @ b.T, shape.get("activation", 0))
        return c + torch.tanh(gate) * y if shape.get("is_gated") else y

    peers = {"cublas": plain}
    if shape.get("activation") or shape.get("is_gated"):
        peers["cublas+epilogue"] = with_epilogue
    return peers, with_epilogue


def attention_peers(q, k, v, mask=None, is_causal=False):
    from contextlib import nullcontext

    def sdpa(backend):
        def run():
            with backend() if backend else nullcontext():
                return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal)
        return run

    peers = {"sdpa": sdpa(None)}
    try:
        from torch.nn.attention import SDPBackend, sdpa_kernel
    except ImportError:
        return peers
    if mask is None:
        peers["sdpa_flash"] = sdpa(lambda: sdpa_kernel(SDPBackend.FLASH_ATTENTION))
        if hasattr(SDPBackend, "CUDNN_ATTENTION"):
            peers["sdpa_cudnn"] = sdpa(lambda: sdpa_kernel(SDPBackend.CUDNN_ATTENTION))
    return peers


def cross_attention_peers(shape, new, device):
    rows, images, latents = shape["rows"], shape["images"], shape["latents"]
    heads, d = shape["heads"], shape["head_dim"]
    q, kv = new(1, heads, rows, d), new(2, 1, heads, images * latents, d)
    time_of_row = torch.arange(rows, device=device) * images // rows
    time_of_key = torch.arange(images, device=device).repeat_interleave(latents)
    mask = time_of_row[:, None] == time_of_key[None]

    def einsum():
        scores = torch.einsum("bhid,bhjd->bhij", q * d**-0.5, kv[0]).float()
        scores = scores.masked_fill(~mask, -torch.finfo(scores.dtype).max)
        scores = scores - scores.amax(-1, keepdim=True).detach()
        return torch.einsum("bhij,bhjd->bhid", scores.softmax(-1).to(q.dtype), kv[1])

    return {"einsum": einsum, **attention_peers(q, kv[0], kv[1], mask)}, einsum


def optimiser_peers(kernel, count, new):
    """One step of AdamW: torch's fused one, and bitsandbytes' where it is installed."""
    def stepper(make):
        parameter = torch.nn.Parameter(new(count, dtype=torch.float32))
        parameter.grad = new(count, dtype=torch.float32)
        optimiser = make([parameter], lr=1e-4, weight_decay=0.1)
        return torch.inference_mode(False)(optimiser.step)

    if kernel == "adamw":
        return {"torch_fused": stepper(lambda *a, **k: torch.optim.AdamW(*a, fused=True, **k))}
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        return {}
    return {"bitsandbytes": stepper(AdamW8bit)}


def sample(logits, is_greedy):
    if is_greedy:
        return logits.argmax(-1)
    p, order = logits.softmax(-1).sort(-1, descending=True)
    p = p.masked_fill(p.cumsum(-1) - p > 0.9, 0)
    return order.gather(-1, torch.multinomial(p, 1))


def peers_of(case, new, device):
    """(name -> call, call that torch.compile may fuse or None) for a case of our bench."""
    kernel, s = case["kernel"], case["shape"]
    if kernel == "checksum":
        words = new(s["bytes"] // 4, dtype=torch.float32)
        return {"sum": words.sum}, None
    if kernel in ("gemm", "gemm_quantized"):
        return product_peers(s, new)
    if kernel in ("adamw", "adamw8"):
        return optimiser_peers(kernel, s["parameters"], new), None
    if kernel == "sampling":
        logits = new(s["rows"], s["vocabulary"], dtype=torch.float32)
        return {"eager": lambda: sample(logits, s["is_greedy"])}, None
    if kernel == "cross_attention":
        return cross_attention_peers(s, new, device)
    if kernel == "attention":
        q = new(s["batch"], s["heads"], s["q_len"], s["head_dim"])
        k, v = new(2, s["batch"], s["heads"], s["k_len"], s["head_dim"])
        return attention_peers(q, k, v), None
    if kernel in ("self_attention", "attention_decode"):
        rows = s["rows"]
        q = new(s["sequences"], s["heads"], rows, s["head_dim"])
        k, v = new(2, s["sequences"], s["heads"], s["kv_len"], s["head_dim"])
        if rows == s["kv_len"]:
            return attention_peers(q, k, v, is_causal=True), None
        mask = None
        if rows > 1:
            at = torch.arange(s["kv_len"] - rows, s["kv_len"], device=device)
            mask = torch.arange(s["kv_len"], device=device)[None] <= at[:, None]
        return attention_peers(q, k, v, mask), None
    if kernel in ("layernorm", "rmsnorm", "swiglu"):
        rows, cols = s["rows"], s["cols"]
        x, w, b = new(rows, cols * (2 if kernel == "swiglu" else 1)), new(cols), new(cols)
        call = {
            "layernorm": lambda: F.layer_norm(x, (cols,), w, b),
            "rmsnorm": lambda: F.rms_norm(x, (cols,), w, 1e-6),
            "swiglu": lambda: F.silu(x[:, :cols]) * x[:, cols:],
        }[kernel]
        return {"eager": call}, call
    return {}, None


def kernels(ours, device):
    timer, rows = Timer(device), []
    for case in ours["cases"]:
        def new(*sizes, dtype=dtype_of(case["dtype"])):
            return torch.randn(*sizes, device=device, dtype=dtype)

        row = {key: case[key] for key in ("kernel", "case", "dtype")}
        row["peers_us"], row["failed"] = {}, {}
        try:
            peers, fusable = peers_of(case, new, device)
            if fusable is not None and hasattr(torch, "compile") and device == "cuda":
                peers["torch.compile"] = torch.compile(fusable)
        except Exception as e:
            peers, row["failed"]["all"] = {}, f"{type(e).__name__}: {e}"[:200]
        with torch.inference_mode():
            for name, call in peers.items():
                try:
                    row["peers_us"][name] = timer(call)
                except Exception as e:  # a backend that refuses a shape is a row, not the end
                    row["failed"][name] = f"{type(e).__name__}: {e}"[:200]
        rows.append(row)
    return {"torch": torch.__version__, "rows": rows}


def load(file, device):
    times = []
    for _ in range(2):
        start = time.perf_counter()
        data = torch.from_file(str(file), size=file.stat().st_size, dtype=torch.uint8).to(device)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        del data
    return {"bytes": file.stat().st_size, "first_s": times[0], "warm_s": times[1]}


def geometric(values):
    values = [v for v in values if v > 0]
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def kernel_rows(folder):
    path = folder / "ours.json"
    if not path.exists():
        return  # a run of other steps
    ours = json.loads(path.read_text())
    path = folder / "peers.json"
    peers = json.loads(path.read_text())["rows"] if path.exists() else []
    known = {(p["kernel"], p["case"], p["dtype"]): p for p in peers}
    # PyTorch's rates count where they are higher: nobody is held against a slow ruler of his own.
    path = folder / "ceilings.json"
    theirs = json.loads(path.read_text()) if path.exists() else {}
    rate = lambda key: max(ours["ceilings"][key], theirs.get(key, 0.0))
    memory, product = max(rate("copy_gb_s"), rate("read_gb_s")), rate("tflops")
    for c in ours["cases"]:
        gb_s, tflops = c["bytes"] / c["us"] / 1e3, c["flops"] / c["us"] / 1e6
        share = max(gb_s / memory, tflops / product)
        p = known.get((c["kernel"], c["case"], c["dtype"]), {"peers_us": {}, "failed": {}})
        yield {**c, "gb_s": gb_s, "tflop_s": tflops, "share": share, **p}


def table(folder):
    text, rows = ["# On a card", ""], list(kernel_rows(folder))
    machine = folder / "machine.txt"
    text += [machine.read_text().strip(), ""] if machine.exists() else []
    text += ["| kernel | case | type | us | GB/s | TFLOP/s | of the ceiling | peers, us (ours is "
             "x faster) |"]
    text += ["|---|---|---|---|---|---|---|---|"]
    for r in rows:
        peers = [f"{n} {us:.1f} ({us / r['us']:.2f}x)" for n, us in r["peers_us"].items()]
        peers += [f"{n}: not measured ({why})" for n, why in r["failed"].items()]
        text.append(
            f"| {r['kernel']} | {r['case']} | {r['dtype']} | {r['us']:.1f} | {r['gb_s']:.0f} | "
            f"{r['tflop_s']:.1f} | {100 * r['share']:.0f} % | {'; '.join(peers) or 'none'} |")
    rest = {}
    for path in sorted(folder.glob("*.json")):
        if path.stem not in ("ours", "peers", "gpu"):
            rest[path.stem] = json.loads(path.read_text())
            shown = json.dumps(rest[path.stem], indent=1)
            text += ["", f"## {path.stem}", "", "```json", shown, "```"]
    (folder / "gpu.md").write_text("\n".join(text) + "\n")
    report = {"kernels": rows, **rest}
    (folder / "gpu.json").write_text(json.dumps(report, indent=1) + "\n")
    best = [min(r["peers_us"].values()) / r["us"] for r in rows if r["peers_us"]]
    mean = geometric(best)
    return {"rows": len(rows), "with_peers": len(best), "geometric_mean_over_best_peer": mean}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["ceilings", "kernels", "end-to-end", "load", "table"])
    parser.add_argument("path", nargs="?", type=Path)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true")
    o = parser.parse_args()
    if o.what in ("kernels", "load", "table") and o.path is None:
        parser.error(f"{o.what} needs a path")
    if o.what == "table":
        print(json.dumps(table(o.path)))
        return
    if torch is None:
        sys.exit("gpu.py: no PyTorch here; PYTHON names an interpreter that has it")
    if o.device == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu.py: PyTorch sees no card; --device cpu tries the script without one")
    if o.what == "ceilings":
        answer = ceilings(o.device, o.tiny)
    elif o.what == "kernels":
        answer = kernels(json.loads(o.path.read_text()), o.device)
    elif o.what == "load":
        answer = load(o.path, o.device)
    else:
        import eager

        answer = eager.run(eager.TINY if o.tiny else eager.NINE_B, o.device, torch.bfloat16)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
