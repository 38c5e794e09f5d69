#!/usr/bin/env python3
"""What benches/gpu/main.rs runs, in PyTorch, in bf16 on one GPU.

    python torch_gpu.py [--device cuda] [--small] [workload ...]

The same sizes and random weights; of the transformer once as it is written, and once with each layer compiled.
Prints a JSON line for each: median and slowest of the runs in ms, the GFLOP of one run, what was held at most.
"""

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "peers"))
from torch_cpu import counted, taehv_layers  # noqa: E402

BLOCK, TEXT_LEN, PROMPT = 3, 512, 77  # latent frames, rows of a text, of which a prompt's
RUNS, WARM = 20, 5


@dataclass(frozen=True)
class Sizes:
    """Of a transformer; `latent` is rows and columns."""

    dim: int
    ffn: int
    heads: int
    layers: int
    latent: tuple[int, int]

    @property
    def frame(self):
        """Tokens."""
        return self.latent[0] * self.latent[1] // 4

    def gflop(self, past):
        tokens = BLOCK * self.frame
        linear = 2 * tokens * self.dim * (6 * self.dim + 2 * self.ffn)
        keys = (past + BLOCK) * self.frame + PROMPT + 1
        return self.layers * (linear + 4 * tokens * self.dim * keys) / 1e9


WHOLE, SMALL = (60, 104), (8, 8)
WAN_1_3B = Sizes(dim=1536, ffn=8960, heads=12, layers=30, latent=WHOLE)
WAN_14B = Sizes(dim=5120, ffn=13824, heads=40, layers=4, latent=WHOLE)
TOY = Sizes(dim=192, ffn=768, heads=3, layers=2, latent=SMALL)


class Layer(nn.Module):
    """A layer over a block, its keys written behind those of the history; a prompt's are computed already."""

    def __init__(self, sizes, past):
        super().__init__()
        dim, self.heads = sizes.dim, sizes.heads
        self.own = past * sizes.frame
        tokens = BLOCK * sizes.frame
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q, self.norm_k = nn.RMSNorm(dim, 1e-6), nn.RMSNorm(dim, 1e-6)
        self.norm3 = nn.LayerNorm(dim, 1e-6)
        self.cross_q, self.cross_o = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.cross_norm_q = nn.RMSNorm(dim, 1e-6)
        self.ffn = nn.Sequential(nn.Linear(dim, sizes.ffn), nn.GELU("tanh"), nn.Linear(sizes.ffn, dim))
        kv = torch.randn(2, 1, self.heads, self.own + tokens, dim // self.heads)
        text = torch.randn(2, 1, self.heads, PROMPT, dim // self.heads)
        angles = torch.randn(tokens, dim // self.heads // 2)
        for name, value in {"kv": kv, "text": text, "cos": angles.cos(), "sin": angles.sin()}.items():
            self.register_buffer(name, value)

    def rotate(self, x):
        even, odd = x[..., ::2], x[..., 1::2]
        return torch.stack([even * self.cos - odd * self.sin, even * self.sin + odd * self.cos], -1).flatten(-2)

    def split(self, x):
        return x.unflatten(-1, (self.heads, -1)).transpose(0, 1)[None]

    def self_attention(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        self.kv[0, :, :, self.own :] = self.rotate(self.split(self.norm_k(k)))
        self.kv[1, :, :, self.own :] = self.split(v)
        return self.o(attend(self.rotate(self.split(self.norm_q(q))), *self.kv))

    def forward(self, x, e0):
        m = (self.modulation + e0)[0]
        x = x + self.self_attention(F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + m[1]) + m[0]) * m[2]
        x = x + self.cross_o(attend(self.split(self.cross_norm_q(self.cross_q(self.norm3(x)))), *self.text))
        return x + self.ffn(F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + m[4]) + m[3]) * m[5]


def attend(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).flatten(1)


class Dit:
    """All layers, without the embeddings and the head, which ours has: they are a hundredth of the work."""

    def __init__(self, place, sizes, past, is_compiled):
        self.layers = [Layer(sizes, past).to(**place) for _ in range(sizes.layers)]
        if is_compiled:
            torch._dynamo.reset()  # or what was compiled for other sizes becomes one for any
            self.layers = [torch.compile(layer) for layer in self.layers]
        self.x = torch.randn(BLOCK * sizes.frame, sizes.dim).to(**place)
        self.e0 = torch.randn(1, 6, sizes.dim).to(**place)
        self.gflop = sizes.gflop(past)

    def run(self):
        x = self.x
        for layer in self.layers:
            x = layer(x, self.e0)


class CausalConv(nn.Conv3d):
    """Three frames deep, over its own last two and the new ones."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs, 3, padding=(0, 1, 1))
        self.past = None

    def forward(self, x):
        past = x.new_zeros(1, x.shape[1], 2, *x.shape[3:]) if self.past is None else self.past
        x = torch.cat([past, x], dim=2)
        self.past = x[:, :, -2:].clone()
        return super().forward(x)


class Norm(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.scale, self.gamma = channels**0.5, nn.Parameter(torch.ones(channels, 1, 1, 1))

    def forward(self, x):
        return F.normalize(x, dim=1) * self.scale * self.gamma


class Residual(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.layers = nn.Sequential(
            Norm(inputs), nn.SiLU(), CausalConv(inputs, outputs),
            Norm(outputs), nn.SiLU(), CausalConv(outputs, outputs),
        )  # fmt: skip
        self.shortcut = nn.Conv3d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x):
        return self.layers(x) + self.shortcut(x)


class FrameAttention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = Norm(channels)
        self.qkv, self.out = nn.Conv3d(channels, 3 * channels, 1), nn.Conv3d(channels, channels, 1)

    def forward(self, x):
        _, channels, frames, height, width = x.shape
        qkv = self.qkv(self.norm(x))[0].permute(1, 2, 3, 0).reshape(frames, 1, height * width, 3 * channels)
        y = F.scaled_dot_product_attention(*qkv.chunk(3, dim=-1))
        return x + self.out(y.reshape(frames, height, width, channels).permute(3, 0, 1, 2)[None])


class Doubled(nn.Module):
    """Twice the rows and columns, half the channels; where it is told to, twice the frames before."""

    def __init__(self, channels, in_time):
        super().__init__()
        self.time = nn.Conv3d(channels, 2 * channels, (3, 1, 1)) if in_time else None
        self.conv = nn.Conv2d(channels, channels // 2, 3, padding=1)
        self.past = None

    def forward(self, x):
        if self.time is not None:
            past = x.new_zeros(1, x.shape[1], 2, *x.shape[3:]) if self.past is None else self.past
            x = torch.cat([past, x], dim=2)
            self.past = x[:, :, -2:].clone()
            x = self.time(x).unflatten(1, (2, -1)).permute(0, 2, 3, 1, 4, 5).flatten(2, 3)
        frames = x[0].transpose(0, 1).contiguous(memory_format=torch.channels_last)
        return self.conv(F.interpolate(frames, scale_factor=2)).transpose(0, 1)[None]


class Vae:
    """Wan's decoder over a block, with what a running stream remembers, channels last."""

    def __init__(self, place, latent, dim=96):
        widths = [dim * mult for mult in (4, 4, 2, 1)]
        layers = [nn.Conv3d(16, 16, 1), CausalConv(16, widths[0]), Residual(widths[0], widths[0])]
        layers += [FrameAttention(widths[0]), Residual(widths[0], widths[0])]
        inputs = widths[0]
        for width, in_time in zip(widths, (True, True, False, None)):
            for _ in range(3):
                layers.append(Residual(inputs, width))
                inputs = width
            if in_time is not None:
                layers.append(Doubled(width, in_time))
                inputs = width // 2
        layers += [Norm(dim), nn.SiLU(), CausalConv(dim, 3)]
        self.layers = nn.Sequential(*layers).to(**place)
        for weight in self.layers.parameters():
            if weight.dim() == 5:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last_3d)
        latents = torch.randn(1, 16, BLOCK, *latent).to(**place)
        self.latents = latents.contiguous(memory_format=torch.channels_last_3d)
        self.run()
        self.gflop = counted(self.run)

    def run(self):
        self.layers(self.latents)


class Taehv:
    """Channels last."""

    def __init__(self, place, latent):
        self.layers = taehv_layers().to(**place, memory_format=torch.channels_last)
        self.latents = torch.randn(BLOCK, 16, *latent).to(**place, memory_format=torch.channels_last)
        self.gflop = counted(self.run)

    def run(self):
        self.layers(self.latents.div(3).tanh().mul(3)).clamp(0, 1)


class Umt5:
    """The encoder of transformers, on a prompt of 77 tokens."""

    def __init__(self, place, is_small):
        from transformers import UMT5Config, UMT5EncoderModel

        sizes = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 256384}
        if is_small:
            sizes = {"d_model": 128, "d_kv": 32, "d_ff": 256, "num_layers": 3, "num_heads": 4, "vocab_size": 4096}
        model = UMT5EncoderModel(UMT5Config(**sizes, feed_forward_proj="gated-gelu"))
        self.model = model.to(**place).eval()
        self.ids = torch.arange(PROMPT, device=place["device"])[None]
        self.gflop = counted(self.run)

    def run(self):
        self.model(input_ids=self.ids)


def workloads(place, is_small):
    """Name, who makes it, and how it is made."""
    small, large = (TOY, TOY) if is_small else (WAN_1_3B, WAN_14B)
    latent = SMALL if is_small else WHOLE
    yield "vae", "PyTorch", lambda: Vae(place, latent, *([8] if is_small else []))
    yield "taehv", "PyTorch", lambda: Taehv(place, latent)
    yield "umt5_77", "transformers", lambda: Umt5(place, is_small)
    for name, sizes, past in (
        ("dit_1_3b_kv9", small, 9),
        ("dit_1_3b_kv21", small, 21),
        ("dit_14b_4_layers_kv21", large, 21),
        ("dit_1_3b_kv18", small, 18),
        ("dit_1_3b_kv12", small, 12),
        ("dit_1_3b_kv6", small, 6),
    ):
        for peer, is_compiled in (("PyTorch", False), ("compiled", True)):
            yield name, peer, lambda sizes=sizes, past=past, c=is_compiled: Dit(place, sizes, past, c)


def measure(run, synchronize):
    times = []
    for _ in range(WARM + RUNS):
        begun = time.perf_counter()
        run()
        synchronize()
        times.append((time.perf_counter() - begun) * 1e3)
    times = times[WARM:]
    return {"ms": statistics.median(times), "worst_ms": max(times)}


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("names", nargs="*", metavar="workload")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    is_gpu = args.device.startswith("cuda")
    if is_gpu:
        torch.cuda.set_device(args.device)
    place = {"device": args.device, "dtype": torch.bfloat16}
    for name, peer, make in workloads(place, args.small):
        if args.names and name not in args.names:
            continue
        try:
            with torch.device(args.device):  # of billions of random numbers
                work = make()
            if is_gpu:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            figures = measure(work.run, torch.cuda.synchronize if is_gpu else lambda: None)
        except Exception as error:  # of one peer: the others are still measured
            print(f"{name}, {peer}: {error}", file=sys.stderr)
            continue
        used = torch.cuda.max_memory_allocated() >> 20 if is_gpu else None
        print(json.dumps({"bench": name, "peer": peer, **figures, "gflop": work.gflop, "mib": used}), flush=True)
        del work
        if is_gpu:
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
