"""The 9B architecture in plain eager PyTorch with random weights: the peer of decode and prefill.

Nothing but torch is needed. It follows the original's arithmetic (bf16 modules, SDPA-free attention
written as matrix products, keys and values of every image recomputed in every gated block), with a
key/value cache for the text, as `generate` of the original has.
"""

import math
import time

import torch
import torch.nn.functional as F

NINE_B = dict(
    image=224, patch=14, vision=1024, vision_layers=24, vision_heads=16,
    resampler_layers=6, latents=64, heads=8, head_dim=64,
    width=4096, layers=32, language_heads=32, mlp=11008, vocabulary=32003, every=4,
)
TINY = dict(
    image=28, patch=14, vision=32, vision_layers=2, vision_heads=2,
    resampler_layers=2, latents=8, heads=2, head_dim=16,
    width=64, layers=4, language_heads=4, mlp=96, vocabulary=101, every=2,
)


class Model:
    def __init__(self, shape, device, dtype, seed=1):
        self.s, self.device, self.dtype = shape, device, dtype
        torch.manual_seed(seed)
        s = shape
        inner = s["heads"] * s["head_dim"]
        v, d = s["vision"], s["width"]
        patches = (s["image"] // s["patch"]) ** 2
        self.patch = self.weight(v, 3 * s["patch"] ** 2)
        self.cls, self.position = self.weight(1, v), self.weight(1 + patches, v)
        self.vision = [
            (self.weight(3 * v, v), self.weight(v, v), self.weight(4 * v, v), self.weight(v, 4 * v))
            for _ in range(s["vision_layers"])
        ]
        self.queries = self.weight(s["latents"], v)
        self.resampler = [
            (self.weight(inner, v), self.weight(2 * inner, v), self.weight(v, inner),
             self.weight(4 * v, v), self.weight(v, 4 * v))
            for _ in range(s["resampler_layers"])
        ]
        self.embedding, self.head = self.weight(s["vocabulary"], d), self.weight(s["vocabulary"], d)
        self.gated = {
            layer: (self.weight(inner, d), self.weight(2 * inner, v), self.weight(d, inner),
                    self.weight(4 * d, d), self.weight(d, 4 * d))
            for layer in range(s["layers"]) if (layer + 1) % s["every"] == 0
        }
        self.language = [
            (self.weight(3 * d, d), self.weight(d, d), self.weight(2 * s["mlp"], d),
             self.weight(d, s["mlp"]))
            for _ in range(s["layers"])
        ]
        self.gate = torch.tensor(0.1, device=device, dtype=dtype)

    def weight(self, rows, cols):
        w = torch.empty(rows, cols, device=self.device, dtype=self.dtype)
        return w.normal_(0, 0.02)

    @staticmethod
    def attend(q, k, v, heads, mask=None):
        """q (b,t,h*d), k, v (b,s,h*d); mask True where allowed."""
        b, t, width = q.shape
        split = lambda x: x.view(b, -1, heads, width // heads).transpose(1, 2)
        scores = split(q) @ split(k).transpose(-1, -2) / math.sqrt(width // heads)
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        return (scores.softmax(-1) @ split(v)).transpose(1, 2).reshape(b, t, width)

    def see(self, pixels):
        """Latents (images, L, Dv) of pixels (images, 3, S, S)."""
        s, width = self.s, self.s["vision"]
        norm = lambda x: F.layer_norm(x, (width,))
        x = F.unfold(pixels, s["patch"], stride=s["patch"]).transpose(1, 2) @ self.patch.T
        x = torch.cat([self.cls.expand(len(x), 1, width), x], 1) + self.position
        for qkv, out, fc1, fc2 in self.vision:
            q, k, v = (norm(x) @ qkv.T).chunk(3, -1)
            x = x + self.attend(q, k, v, s["vision_heads"]) @ out.T
            h = norm(x) @ fc1.T
            x = x + (h * torch.sigmoid(1.702 * h)) @ fc2.T
        media, x = x[:, 1:], self.queries.expand(len(x), -1, -1)
        for q, kv, out, fc1, fc2 in self.resampler:
            n = norm(x)
            k, v = (torch.cat([norm(media), n], 1) @ kv.T).chunk(2, -1)
            x = x + self.attend(n @ q.T, k, v, s["heads"]) @ out.T
            x = x + F.gelu(norm(x) @ fc1.T) @ fc2.T
        return norm(x)

    def rotate(self, x, positions):
        b, t, width = x.shape
        d = width // self.s["language_heads"]
        f = 1e4 ** (-torch.arange(0, d, 2, device=self.device).float() / d)
        angle = positions[:, None].float() * f
        cos, sin = (torch.cat([g, g], -1).to(x.dtype)[:, None] for g in (angle.cos(), angle.sin()))
        x = x.view(b, t, -1, d)
        half = torch.cat([-x[..., d // 2:], x[..., : d // 2]], -1)
        return (x * cos + half * sin).view(b, t, width)

    def forward(self, ids, latents, time_of_row, cache):
        """Logits of the last row; `cache`: (k, v) or None per layer, changed in place."""
        s, d = self.s, self.s["width"]
        past = 0 if cache[0] is None else cache[0][0].shape[1]
        t = ids.shape[1]
        positions = torch.arange(past, past + t, device=self.device)
        keys = torch.arange(past + t, device=self.device)
        causal = keys[None] <= positions[:, None]
        n, count = latents.shape[0], s["latents"]
        media = latents.reshape(1, n * count, -1)
        image_of_key = torch.arange(n, device=self.device).repeat_interleave(count) + 1
        seen = time_of_row[:, None] == image_of_key[None]
        rms = lambda x: x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6).to(x.dtype)
        x = self.embedding[ids]
        for layer, (qkv, out, gate_up, down) in enumerate(self.language):
            if layer in self.gated:
                q, kv, o, fc1, fc2 = self.gated[layer]
                k, v = (media @ kv.T).chunk(2, -1)
                h = self.attend(F.layer_norm(x, (d,)) @ q.T, k, v, s["heads"], seen)
                x = x + self.gate.tanh() * (h @ o.T)
                x = x + self.gate.tanh() * (F.gelu(F.layer_norm(x, (d,)) @ fc1.T) @ fc2.T)
            q, k, v = (rms(x) @ qkv.T).chunk(3, -1)
            q, k = self.rotate(q, positions), self.rotate(k, positions)
            if cache[layer] is not None:
                k, v = torch.cat([cache[layer][0], k], 1), torch.cat([cache[layer][1], v], 1)
            cache[layer] = (k, v)
            x = x + self.attend(q, k, v, s["language_heads"], causal) @ out.T
            gate, up = (rms(x) @ gate_up.T).chunk(2, -1)
            x = x + (F.silu(gate) * up) @ down.T
        return rms(x)[:, -1] @ self.head.T


def run(shape, device, dtype, tokens=250, images=7, new=10, reps=5):
    """Milliseconds: images and prompt to the first token, and per decoded token; medians."""
    model = Model(shape, device, dtype)
    pixels = torch.randn(images, 3, shape["image"], shape["image"], device=device, dtype=dtype)
    ids = torch.randint(0, shape["vocabulary"], (1, tokens), device=device)
    of_row = (torch.arange(tokens, device=device) * images // tokens) + 1
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    first, each = [], []
    with torch.inference_mode():
        for _ in range(reps + 1):
            cache = [None] * shape["layers"]
            synchronize()
            start = time.perf_counter()
            latents = model.see(pixels)
            token = model.forward(ids, latents, of_row, cache).argmax(-1, keepdim=True)
            synchronize()
            first.append((time.perf_counter() - start) * 1e3)
            for _ in range(new - 1):
                start = time.perf_counter()
                token = model.forward(token, latents, of_row[-1:], cache).argmax(-1, keepdim=True)
                token.item()
                each.append((time.perf_counter() - start) * 1e3)
    median = lambda x: sorted(x)[len(x) // 2]
    return {"first_token_ms": median(first[1:]), "token_ms": median(each[new - 1:])}
