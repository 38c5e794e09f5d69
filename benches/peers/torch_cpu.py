#!/usr/bin/env python3
"""The workloads of our benches in PyTorch and diffusers, on the CPU in f32, and in bf16 where they say so.

    python torch_cpu.py [--threads N] [workload ...]

Prints one JSON line a workload: who made it, the median of its runs in ms, the GFLOP that one run takes, and
the most memory that the process took, in MiB: name one workload where that matters.
"""

import argparse
import json
import math
import os
import resource
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

# Wan 2.1 1.3B at 208x128: 104 tokens a latent frame, three frames a block.
DIM, FFN, HEADS, HEAD_DIM = 1536, 8960, 12, 128
BLOCK = 312
TEXT_LEN, PROMPT = 512, 77

RUNS, SECONDS = 20, 20.0  # whichever comes first, but three runs at least


class Linear:
    gflop = 2 * 1024 * DIM * FFN / 1e9

    def __init__(self):
        self.layer = nn.Linear(DIM, FFN)
        self.x = torch.randn(1024, DIM)

    def run(self):
        self.layer(self.x)


class Attention:
    gflop = 4 * HEADS * 1024 * 4096 * HEAD_DIM / 1e9

    def __init__(self):
        self.q = torch.randn(1, HEADS, 1024, HEAD_DIM)
        self.k, self.v = torch.randn(2, 1, HEADS, 4096, HEAD_DIM)

    def run(self):
        F.scaled_dot_product_attention(self.q, self.k, self.v)


class Conv3dStep:
    """One step of a stream: two cached frames, four new ones; in the faster memory layout."""

    gflop = 2 * 27 * 96 * 96 * 4 * 96 * 96 / 1e9

    def __init__(self):
        tensors = [torch.randn(1, 96, frames, 96, 96) for frames in (2, 4)] + [torch.randn(96, 96, 3, 3, 3)]
        self.bias = torch.randn(96)
        layouts = (torch.contiguous_format, torch.channels_last_3d)
        candidates = [[t.contiguous(memory_format=layout) for t in tensors] for layout in layouts]
        self.tensors = min(candidates, key=lambda c: median_ms(lambda: self.step(*c), runs=5))

    def step(self, cached, new, weight):
        F.conv3d(torch.cat([cached, new], dim=2), weight, self.bias, padding=(0, 1, 1))

    def run(self):
        self.step(*self.tensors)


class DitLayer(nn.Module):
    """A layer over a block; the history is cached, so is the prompt's K/V."""

    def __init__(self, history):
        super().__init__()
        self.modulation = nn.Parameter(torch.randn(1, 6, DIM))
        self.q, self.k, self.v, self.o = (nn.Linear(DIM, DIM) for _ in range(4))
        self.norm_q, self.norm_k = nn.RMSNorm(DIM, 1e-6), nn.RMSNorm(DIM, 1e-6)
        self.norm3 = nn.LayerNorm(DIM, 1e-6)
        self.cross_q, self.cross_o = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.cross_norm_q = nn.RMSNorm(DIM, 1e-6)
        self.ffn = nn.Sequential(nn.Linear(DIM, FFN), nn.GELU("tanh"), nn.Linear(FFN, DIM))
        self.history_k, self.history_v = torch.randn(2, HEADS, history, HEAD_DIM)
        self.text_k, self.text_v = torch.randn(2, HEADS, PROMPT + 1, HEAD_DIM)
        # The last key stands for all padding rows.
        self.text_bias = torch.zeros(1, PROMPT + 1)
        self.text_bias[0, -1] = math.log(TEXT_LEN - PROMPT)
        angles = torch.randn(BLOCK, HEAD_DIM // 2, dtype=torch.float32)
        self.rotation = torch.polar(torch.ones_like(angles), angles)

    def rotate(self, x):
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * self.rotation).flatten(-2).type_as(x)

    def self_attention(self, x):
        q = self.rotate(heads(self.norm_q(self.q(x))))
        k = torch.cat([self.history_k, self.rotate(heads(self.norm_k(self.k(x))))], dim=1)
        v = torch.cat([self.history_v, heads(self.v(x))], dim=1)
        return self.o(attend(q, k, v))

    def cross_attention(self, x):
        q = heads(self.cross_norm_q(self.cross_q(x)))
        return self.cross_o(attend(q, self.text_k, self.text_v, self.text_bias))

    def forward(self, x, e0):
        m = (self.modulation + e0)[0]
        x = x + self.self_attention(F.layer_norm(x, (DIM,), eps=1e-6) * (1 + m[1]) + m[0]) * m[2]
        x = x + self.cross_attention(self.norm3(x))
        return x + self.ffn(F.layer_norm(x, (DIM,), eps=1e-6) * (1 + m[4]) + m[3]) * m[5]


class Dit:
    """Two layers without the embeddings and the head, which ours has: they are a hundredth of the work."""

    def __init__(self, history):
        self.layers = nn.ModuleList([DitLayer(history) for _ in range(2)])
        self.x, self.e0 = torch.randn(BLOCK, DIM), torch.randn(1, 6, DIM)
        own = 2 * BLOCK * DIM * (6 * DIM + 2 * FFN)
        attention = 4 * BLOCK * DIM * (history + BLOCK + PROMPT + 1)
        self.gflop = 2 * (own + attention) / 1e9

    def run(self):
        x = self.x
        for layer in self.layers:
            x = layer(x, self.e0)


class DiffusersDit:
    """Its Wan transformer over a first block, which is a clip of three latents; text is projected anew."""

    def __init__(self):
        from diffusers import WanTransformer3DModel

        self.model = WanTransformer3DModel(
            num_attention_heads=HEADS, attention_head_dim=HEAD_DIM, ffn_dim=FFN, num_layers=2
        ).eval()
        self.inputs = {
            "hidden_states": torch.randn(1, 16, 3, 16, 26),
            "timestep": torch.tensor([937.5]),
            "encoder_hidden_states": torch.randn(1, TEXT_LEN, 4096),
        }
        self.gflop = counted(self.run)

    def run(self):
        self.model(**self.inputs)


class DiffusersDecoder:
    """A block of three latents to twelve frames of 64x64, with the caches of a running stream."""

    def __init__(self):
        from diffusers import AutoencoderKLWan

        self.vae = AutoencoderKLWan().eval()
        for weight in self.vae.parameters():
            if weight.dim() == 5:  # a tenth faster so than in the default layout
                weight.data = weight.data.contiguous(memory_format=torch.channels_last_3d)
        self.vae.clear_cache()
        self.latents = torch.randn(1, 16, 3, 8, 8)
        self.decode(self.latents[:, :, :1], first_chunk=True)
        self.gflop = counted(self.run)

    def decode(self, latent, **kwargs):
        latent = self.vae.post_quant_conv(latent)
        return self.vae.decoder(latent, feat_cache=self.vae._feat_map, feat_idx=[0], **kwargs)

    def run(self):
        torch.cat([self.decode(latent) for latent in self.latents.split(1, dim=2)], dim=2)


class Memory(nn.Module):
    """Three convolutions over a frame and its predecessor, around a shortcut."""

    def __init__(self, channels):
        super().__init__()
        inputs = (2 * channels, channels, channels)
        self.convs = nn.ModuleList([nn.Conv2d(n, channels, 3, padding=1) for n in inputs])
        self.last = None

    def forward(self, x):
        last = torch.zeros_like(x[:1]) if self.last is None else self.last
        self.last = x[-1:].clone()
        y = torch.cat([x, torch.cat([last, x[:-1]])], dim=1)
        for conv in self.convs[:2]:
            y = F.relu(conv(y))
        return F.relu(self.convs[2](y) + x)


class Grow(nn.Module):
    """Some frames of each."""

    def __init__(self, channels, growth):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels * growth, 1, bias=False)

    def forward(self, x):
        _, channels, height, width = x.shape
        return self.conv(x).reshape(-1, channels, height, width)


def taehv_layers():
    """The sizes of taew2_1."""
    layers = [nn.Conv2d(16, 256, 3, padding=1), nn.ReLU()]
    for channels, growth, after in ((256, 1, 128), (128, 2, 64), (64, 2, 64)):
        layers += [Memory(channels) for _ in range(3)]
        layers += [nn.Upsample(scale_factor=2), Grow(channels, growth)]
        layers += [nn.Conv2d(channels, after, 3, padding=1, bias=False)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(64, 3, 3, padding=1))


class TaehvDecoder:
    """Three latents to twelve frames of 208x128; in the faster memory layout."""

    def __init__(self):
        latents = torch.randn(3, 16, 16, 26)
        self.layers, self.latents = taehv_layers(), latents
        plain = median_ms(self.run, runs=5)
        self.layers = self.layers.to(memory_format=torch.channels_last)
        self.latents = latents.contiguous(memory_format=torch.channels_last)
        if median_ms(self.run, runs=5) > plain:
            self.layers, self.latents = self.layers.to(memory_format=torch.contiguous_format), latents
        self.gflop = counted(self.run)

    def run(self):
        self.layers(self.latents.div(3).tanh().mul(3)).clamp(0, 1)


def in_bf16(make):
    """What `make` makes, its weights and inputs in bf16."""

    def made():
        torch.set_default_dtype(torch.bfloat16)
        try:
            return make()
        finally:
            torch.set_default_dtype(torch.float32)

    return made


WORKLOADS = {
    "linear": [("PyTorch", Linear)],
    "linear_bf16": [("PyTorch", in_bf16(Linear))],
    "attention": [("PyTorch", Attention)],
    "attention_bf16": [("PyTorch", in_bf16(Attention))],
    "conv3d_step": [("PyTorch", Conv3dStep)],
    "dit_first": [("PyTorch", lambda: Dit(0)), ("diffusers", DiffusersDit)],
    "dit_first_bf16": [("PyTorch", in_bf16(lambda: Dit(0)))],
    "dit_steady": [("PyTorch", lambda: Dit(7 * BLOCK))],
    "dit_steady_bf16": [("PyTorch", in_bf16(lambda: Dit(7 * BLOCK)))],
    "vae_decode": [("diffusers", DiffusersDecoder)],
    "taehv_decode": [("PyTorch", TaehvDecoder)],
}


def heads(x):
    """(tokens, dim) to (heads, tokens, head_dim)."""
    return x.unflatten(-1, (HEADS, HEAD_DIM)).transpose(0, 1)


def attend(q, k, v, bias=None):
    """(heads, tokens, head_dim) each; gives (tokens, dim)."""
    # With a batch dimension, for without one PyTorch takes its slow path.
    y = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=bias)
    return y[0].transpose(0, 1).flatten(1)


def counted(run):
    """GFLOP of a run."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9


def median_ms(run, runs=RUNS):
    for _ in range(2):
        run()
    times = []
    while len(times) < runs and (sum(times) < SECONDS or len(times) < 3):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def physical_cores():
    """Cores that this process may run on, hyper-threads not counted."""
    siblings = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    paths = [Path(siblings.format(cpu)) for cpu in os.sched_getaffinity(0)]
    return len({p.read_text() for p in paths if p.exists()}) or len(paths)


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("workloads", nargs="*", metavar="workload", help=", ".join(WORKLOADS))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    for name in args.workloads or WORKLOADS:
        for peer, make in WORKLOADS[name]:
            work = make()
            figures = {"bench": name, "peer": peer, "ms": round(median_ms(work.run), 3)}
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(json.dumps(figures | {"gflop": round(work.gflop, 3), "mib": round(peak)}), flush=True)


if __name__ == "__main__":
    main()
