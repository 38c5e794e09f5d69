"""The Wan 2.1 diffusion transformer, for training: many blocks of a clip in one forward.

Weights have upstream's names, so the result is read like any checkpoint of the family.
https://github.com/guandeh17/Self-Forcing/blob/33593df/wan/modules/causal_model.py

A *slot* is a block of latent frames at a place in the stream and at a sigma. `Sight` says which
slots each one sees; the first ones may be a `past`, of which only keys and values are left.
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH = 2


@dataclass(frozen=True)
class Config:
    """Sizes, by upstream's names."""

    dim: int = 128
    ffn_dim: int = 1024
    num_heads: int = 4
    num_layers: int = 6
    freq_dim: int = 64
    text_dim: int = 128
    text_len: int = 64
    in_dim: int = 16
    eps: float = 1e-6
    native: tuple[int, int] | None = (7, 12)  # rows and columns of tokens at full size

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads


@dataclass(frozen=True)
class Sight:
    """Where slots are in the stream, counted in blocks, and what they see: the slots of the past
    come first, then their own."""

    positions: tuple[int, ...]
    seen: tuple[tuple[int, ...], ...]

    def groups(self) -> dict[tuple[int, ...], list[int]]:
        """Slots by what they see: each group is one attention."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for slot, seen in enumerate(self.seen):
            groups.setdefault(seen, []).append(slot)
        return groups


@dataclass(frozen=True)
class Kv:
    """Rotated keys, and values, of one layer: (B, slots, heads, tokens, head_dim)."""

    k: Tensor
    v: Tensor

    def then(self, other: "Kv") -> "Kv":
        return Kv(torch.cat((self.k, other.k), 1), torch.cat((self.v, other.v), 1))

    def last(self, slots: int) -> "Kv":
        return Kv(self.k[:, -slots:], self.v[:, -slots:])


@dataclass(frozen=True)
class Text:
    """Prompts of each clip: `(B, prompts, n, text_dim)`, zero behind each one's length."""

    embedding: Tensor
    lengths: Tensor  # (B, prompts)


@dataclass(frozen=True)
class Slots:
    """What one forward computes."""

    latents: Tensor  # (B, slots, frames, C, h, w)
    timesteps: Tensor  # (B, slots)
    sight: Sight
    text: Text
    which: Tensor  # (B, slots): the prompt that each hears


class Attention(nn.Module):
    """Projections of self- or cross-attention; queries and keys are normed over all heads."""

    def __init__(self, cfg: Config):
        super().__init__()
        self.heads, self.eps = cfg.num_heads, cfg.eps
        self.q, self.k, self.v, self.o = (nn.Linear(cfg.dim, cfg.dim) for _ in range(4))
        self.norm_q = Scale(cfg.dim)
        self.norm_k = Scale(cfg.dim)

    def query(self, x: Tensor) -> Tensor:
        return self.split(self.norm_q(self.q(x), self.eps))

    def key(self, x: Tensor) -> Tensor:
        return self.split(self.norm_k(self.k(x), self.eps))

    def value(self, x: Tensor) -> Tensor:
        return self.split(self.v(x))

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)  # (..., heads, n, head_dim)

    def merge(self, x: Tensor) -> Tensor:
        return self.o(x.transpose(-3, -2).flatten(-2))


class Scale(nn.Module):
    """RMS norm."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, eps: float) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * self.weight


class Layer(nn.Module):
    """Self-attention among slots, cross-attention to the prompt, feed-forward."""

    def __init__(self, cfg: Config):
        super().__init__()
        self.dim, self.eps = cfg.dim, cfg.eps
        self.modulation = nn.Parameter(torch.randn(1, 6, cfg.dim) / cfg.dim**0.5)
        self.self_attn, self.cross_attn = Attention(cfg), Attention(cfg)
        self.norm3 = nn.LayerNorm(cfg.dim, cfg.eps)
        self.ffn = nn.Sequential(
            nn.Linear(cfg.dim, cfg.ffn_dim), nn.GELU("tanh"), nn.Linear(cfg.ffn_dim, cfg.dim)
        )

    def forward(self, x: Tensor, inputs: "LayerInputs", past: Kv | None) -> tuple[Tensor, Kv]:
        """`x` is (B, slots, tokens, dim)."""
        m = (self.modulation + inputs.time).unsqueeze(-2).unbind(2)  # six of (B, slots, 1, dim)
        attended, kv = self.attend(self.norm(x) * (1 + m[1]) + m[0], inputs, past)
        x = x + attended * m[2]
        x = x + self.listen(self.norm3(x), inputs.text)
        return x + self.ffn(self.norm(x) * (1 + m[4]) + m[3]) * m[5], kv

    def norm(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.dim,), eps=self.eps)

    def attend(self, x: Tensor, inputs: "LayerInputs", past: Kv | None) -> tuple[Tensor, Kv]:
        attn = self.self_attn
        own = Kv(rotate(attn.key(x), inputs.turn), attn.value(x))
        kv = past.then(own) if past else own
        # Unbound once: the gradient of each `x[:, slot]` would be a tensor of zeros as large as x.
        q = rotate(attn.query(x), inputs.turn).unbind(1)
        k, v = kv.k.unbind(1), kv.v.unbind(1)
        out: list[Tensor] = [x] * x.shape[1]
        for seen, slots in inputs.sight.groups().items():
            answer = F.scaled_dot_product_attention(join(q, slots), join(k, seen), join(v, seen))
            for slot, part in zip(slots, answer.chunk(len(slots), dim=-2)):
                out[slot] = part
        return attn.merge(torch.stack(out, dim=1)), own

    def listen(self, x: Tensor, text: "Context") -> Tensor:
        attn = self.cross_attn
        clips = torch.arange(x.shape[0], device=x.device)[:, None]
        k, v = attn.key(text.rows)[clips, text.which], attn.value(text.rows)[clips, text.which]
        bias = text.bias[clips, text.which][:, :, None, None]
        answer = F.scaled_dot_product_attention(
            attn.query(x).flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), bias.flatten(0, 1)
        )
        return attn.merge(answer.unflatten(0, x.shape[:2]))


@dataclass(frozen=True)
class Context:
    """Rows of text that are attended to, which prompt each slot hears, and what padding weighs."""

    rows: Tensor  # (B, prompts, n + 1, dim)
    bias: Tensor  # (B, prompts, n + 1)
    which: Tensor  # (B, slots)


@dataclass(frozen=True)
class LayerInputs:
    """What every layer is told beside the tokens."""

    time: Tensor  # (B, slots, 6, dim)
    sight: Sight
    turn: Tensor  # cosines and sines, (2, slots, 1, tokens, head_dim / 2)
    text: Context


def join(x: tuple[Tensor, ...], slots: list[int] | tuple[int, ...]) -> Tensor:
    """Slots of `(B, heads, tokens, d)` each to `(B, heads, tokens of the named slots, d)`."""
    return torch.cat([x[slot] for slot in slots], dim=-2)


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Turns neighbouring pairs; `turn` holds cosines and sines, (2, slots, 1, tokens, d / 2)."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * turn[0] - b * turn[1], a * turn[1] + b * turn[0]), -1).flatten(-2)


class Head(nn.Module):
    """Tokens to patches of the flow."""

    def __init__(self, cfg: Config):
        super().__init__()
        self.dim, self.eps = cfg.dim, cfg.eps
        self.modulation = nn.Parameter(torch.randn(1, 2, cfg.dim) / cfg.dim**0.5)
        self.head = nn.Linear(cfg.dim, cfg.in_dim * PATCH * PATCH)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        shift, scale = (self.modulation + time.unsqueeze(2)).unsqueeze(-2).unbind(2)
        return self.head(F.layer_norm(x, (self.dim,), eps=self.eps) * (1 + scale) + shift)


class Transformer(nn.Module):
    """All slots of a batch of clips to the flow, `noise - x0`, of each."""

    def __init__(self, cfg: Config):
        super().__init__()
        self.cfg, dim = cfg, cfg.dim
        self.patch_embedding = nn.Conv3d(cfg.in_dim, dim, (1, PATCH, PATCH), (1, PATCH, PATCH))
        self.text_embedding = perceptron(cfg.text_dim, dim, nn.GELU("tanh"))
        self.time_embedding = perceptron(cfg.freq_dim, dim, nn.SiLU())
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Layer(cfg) for _ in range(cfg.num_layers))
        self.head = Head(cfg)

    def forward(self, slots: Slots, past: list[Kv] | None = None) -> tuple[Tensor, list[Kv]]:
        """The flow of each slot, shaped like its latents, and the keys and values of each layer."""
        b, count, frames, _, h, w = slots.latents.shape
        x = self.patch_embedding(slots.latents.flatten(0, 1).transpose(1, 2))
        x = x.flatten(2).transpose(1, 2).unflatten(0, (b, count))  # (B, slots, tokens, dim)
        time = self.time_embedding(sinusoid(slots.timesteps, self.cfg.freq_dim).to(x.dtype))
        each = self.time_projection(time).unflatten(-1, (6, -1))
        turn = self.turns(slots.sight.positions, frames, h // PATCH, w // PATCH).to(x)
        inputs = LayerInputs(each, slots.sight, turn, self.context(slots.text, slots.which))
        kept = []
        for layer, memory in zip(self.blocks, past or [None] * len(self.blocks)):
            x, kv = layer(x, inputs, memory)
            kept.append(kv)
        return unpatchify(self.head(x, time), frames, h, w), kept

    def context(self, text: Text, which: Tensor) -> Context:
        """One more row stands for all the zero rows up to `text_len`."""
        rows = F.pad(text.embedding, (0, 0, 0, 1))
        n = torch.arange(rows.shape[-2], device=rows.device)
        lengths = text.lengths[..., None]
        bias = torch.where(n < lengths, 0.0, -torch.inf)
        bias = torch.where(n == lengths, (self.cfg.text_len - lengths).clamp(min=1).log(), bias)
        bias = torch.where(lengths >= self.cfg.text_len, torch.where(n < lengths, 0.0, -torch.inf), bias)
        return Context(self.text_embedding(rows), bias.to(rows.dtype), which)

    def turns(self, positions: tuple[int, ...], frames: int, rows: int, columns: int) -> Tensor:
        """Cosines and sines, (2, slots, 1, tokens, head_dim / 2)."""
        d = self.cfg.head_dim
        side = 2 * (d // 6)
        f = torch.tensor(positions)[:, None] * frames + torch.arange(frames)
        native = self.cfg.native or (rows, columns)
        size = (len(positions), frames, rows, columns, -1)
        angles = [
            angle(f, d - 2 * side)[:, :, None, None].expand(size),
            angle(stretched(rows, native[0]), side)[None, None, :, None].expand(size),
            angle(stretched(columns, native[1]), side)[None, None, None].expand(size),
        ]
        turn = torch.cat(angles, -1).flatten(1, 3).unsqueeze(1)
        return torch.stack((turn.cos(), turn.sin()))


def perceptron(inner: int, outer: int, activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inner, outer), activation, nn.Linear(outer, outer))


def stretched(count: int, native: int) -> Tensor:
    """Centres of tokens in the full size's units: a small picture is learned in the same places."""
    return (torch.arange(count) + 0.5) * native / count - 0.5


def angle(position: Tensor, width: int) -> Tensor:
    return position[..., None].double() * 10000 ** (-torch.arange(0, width, 2).double() / width)


def sinusoid(timesteps: Tensor, width: int) -> Tensor:
    half = torch.arange(width // 2, device=timesteps.device).float()
    a = timesteps[..., None].float() * torch.exp(-math.log(10000) * half / (width // 2))
    return torch.cat((a.cos(), a.sin()), -1)


def unpatchify(x: Tensor, frames: int, h: int, w: int) -> Tensor:
    """`(B, slots, tokens, 4 C)`, channel fastest, to `(B, slots, frames, C, h, w)`."""
    x = x.unflatten(2, (frames, h // PATCH, w // PATCH)).unflatten(-1, (PATCH, PATCH, -1))
    x = x.permute(0, 1, 2, 7, 3, 5, 4, 6)
    return x.flatten(6, 7).flatten(4, 5)


def check(folder: Path) -> None:
    """The first blocks of a golden fixture, each alone and after a clean one."""
    from safetensors.torch import load_file

    raw = json.loads((folder / "config.json").read_text())
    cfg = Config(**{name: raw[name] for name in Config.__dataclass_fields__ if name in raw}, native=None)
    model = Transformer(cfg)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    golden = load_file(folder / "expected.safetensors")
    prompt = golden["prompt_embeds"]
    text = Text(prompt[None, None], torch.tensor([[len(prompt)]]))
    noise = golden["noise"].unflatten(0, (-1, raw["frames_per_block"]))
    clean = golden["latents_sequential"].unflatten(0, (-1, raw["frames_per_block"]))
    cases = {
        "trace.flow_b0_s0": (noise[:1], (1000.0,), Sight((0,), ((0,),))),
        "trace.flow_b1_s0": (torch.stack((clean[0], noise[1])), (0.0, 1000.0), Sight((0, 1), ((0,), (0, 1)))),
    }
    for name, (latents, timesteps, sight) in cases.items():
        which = torch.zeros(1, len(timesteps), dtype=torch.long)
        with torch.no_grad():
            flow, _ = model(Slots(latents[None], torch.tensor([timesteps]), sight, text, which))
        difference = float((flow[0, -1] - golden[name]).abs().max())
        print(name, "differs by at most", difference)
        if difference > 1e-4:
            raise SystemExit("the transformer is not upstream's")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", type=Path, required=True, help="a folder of tests/fixtures")
    check(parser.parse_args().check)
