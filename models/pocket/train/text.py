"""The prompt's way to the network: a tokenizer and umT5 in small, with Wan's tensor names.

`python -m train.text --check FOLDER` compares the encoder with umT5 tensors of upstream's
(config.json, model.safetensors, expected.safetensors; this repository has tests/fixtures/umt5).
"""

import argparse
import html
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn

TEXT_LEN = 64
PAD, END = 0, 1
SPECIAL = ["<pad>", "</s>", "<unk>"]
WEIGHTS, TOKENIZER = "text_encoder.safetensors", "tokenizer.json"


@dataclass(frozen=True)
class TextConfig:
    """Sizes of a umT5 encoder; the defaults are pocket's."""

    vocab: int = 4096
    dim: int = 128
    dim_attn: int = 128
    dim_ffn: int = 256
    num_heads: int = 4
    num_layers: int = 3
    num_buckets: int = 32
    max_distance: int = 128


class Norm(nn.Module):
    """Root-mean-square norm, in f32."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + 1e-6)
        return (x32 * self.weight.float()).to(x.dtype)


class Attention(nn.Module):
    """Self-attention without the usual 1 / sqrt(head_dim), as umT5 has it."""

    def __init__(self, cfg: TextConfig):
        super().__init__()
        self.num_heads = cfg.num_heads
        self.q = nn.Linear(cfg.dim, cfg.dim_attn, bias=False)
        self.k = nn.Linear(cfg.dim, cfg.dim_attn, bias=False)
        self.v = nn.Linear(cfg.dim, cfg.dim_attn, bias=False)
        self.o = nn.Linear(cfg.dim_attn, cfg.dim, bias=False)

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, n, head_dim)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = self.heads(self.q(x)), self.heads(self.k(x)), self.heads(self.v(x))
        scores = (q @ k.transpose(-1, -2)).float() + bias  # (B, heads, query, key)
        x = scores.softmax(-1).to(x.dtype) @ v
        return self.o(x.transpose(1, 2).flatten(2))  # (B, n, dim)


class FeedForward(nn.Module):
    """`fc2(fc1(x) * gelu(gate(x)))`."""

    def __init__(self, cfg: TextConfig):
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(cfg.dim, cfg.dim_ffn, bias=False))
        self.fc1 = nn.Linear(cfg.dim, cfg.dim_ffn, bias=False)
        self.fc2 = nn.Linear(cfg.dim_ffn, cfg.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.gelu(self.gate(x).float(), approximate="tanh").to(x.dtype)
        return self.fc2(self.fc1(x) * gate)


class RelativeBias(nn.Module):
    """How much a head likes a key for its distance from the query."""

    def __init__(self, cfg: TextConfig):
        super().__init__()
        self.embedding = nn.Embedding(cfg.num_buckets, cfg.num_heads)

    def forward(self, buckets: Tensor) -> Tensor:
        return self.embedding(buckets).float().permute(2, 0, 1)  # (heads, query, key)


class Layer(nn.Module):
    def __init__(self, cfg: TextConfig):
        super().__init__()
        self.norm1 = Norm(cfg.dim)
        self.attn = Attention(cfg)
        self.norm2 = Norm(cfg.dim)
        self.ffn = FeedForward(cfg)
        self.pos_embedding = RelativeBias(cfg)

    def forward(self, x: Tensor, buckets: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), self.pos_embedding(buckets) + mask)
        return x + self.ffn(self.norm2(x))


class Umt5Encoder(nn.Module):
    def __init__(self, cfg: TextConfig):
        super().__init__()
        self.cfg = cfg
        self.token_embedding = nn.Embedding(cfg.vocab, cfg.dim)
        self.blocks = nn.ModuleList(Layer(cfg) for _ in range(cfg.num_layers))
        self.norm = Norm(cfg.dim)
        self.apply(self.initialise)

    @torch.no_grad()
    def initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            module.weight.normal_(std=module.in_features**-0.5)
        if isinstance(module, nn.Embedding):
            module.weight.normal_(std=0.1)
        if isinstance(module, Attention):
            # Scores are not divided by sqrt(head_dim), so the queries are.
            module.q.weight.mul_((self.cfg.dim_attn / self.cfg.num_heads) ** -0.5)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Token ids (B, n), of which each row's first `lengths` (B) are real, to (B, n, dim).

        Rows of padding hold nothing of use.
        """
        n = ids.shape[1]
        padding = torch.arange(n, device=ids.device) >= lengths[:, None]
        mask = torch.zeros(padding.shape, device=ids.device).masked_fill(padding, -1e9)
        buckets = self.buckets(n).to(ids.device)
        x = self.token_embedding(ids)
        for block in self.blocks:
            x = block(x, buckets, mask[:, None, None])
        return self.norm(x)

    def buckets(self, n: int) -> Tensor:
        """Bucket of each key (columns) as seen by each query (rows): (n, n)."""
        position = torch.arange(n)
        relative = position[None] - position[:, None]
        half = self.cfg.num_buckets // 2
        exact = half // 2
        distance = relative.abs().double()
        far = (distance.clamp(min=exact) / exact).log() / math.log(self.cfg.max_distance / exact)
        # At exact powers the true value is whole; rounding must not land below it.
        far = (exact + far * (half - exact) + 1e-9).floor().clamp(max=half - 1)
        bucket = torch.where(distance < exact, distance, far).long()
        return bucket + half * (relative > 0)


def train_tokenizer(texts: Iterable[str], vocab: int) -> Tokenizer:
    """A Unigram tokenizer as T5's, of at most `vocab` pieces; characters it lacks are <unk>."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", END)]
    )
    return tokenizer


def clean(prompt: str) -> str:
    """What Rust's `clean` does to a prompt, short of repairing broken encodings."""
    return " ".join(html.unescape(html.unescape(prompt)).split())


def tokenize(tokenizer: Tokenizer, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Ids (B, n), padded to the longest prompt, and the lengths (B); each row ends with </s>."""
    rows = [e.ids[:-1][: TEXT_LEN - 1] + [END] for e in tokenizer.encode_batch(prompts)]
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.full((len(rows), int(lengths.max())), PAD)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids, lengths


class TextEncoder:
    """The frozen encoder and its tokenizer, as `train_text` wrote them to a folder."""

    def __init__(self, folder: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32):
        folder = Path(folder)
        self.device = device
        self.tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        self.model = Umt5Encoder(TextConfig())
        self.model.load_state_dict(load_file(folder / WEIGHTS))
        self.model.to(device, dtype).requires_grad_(False).eval()

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Embeddings (B, n, dim) with padding of zeros, and the lengths (B)."""
        ids, lengths = tokenize(self.tokenizer, [clean(prompt) for prompt in prompts])
        ids, lengths = ids.to(self.device), lengths.to(self.device)
        x = self.model(ids, lengths)
        padding = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]
        return x.masked_fill(padding[..., None], 0), lengths


def check(folder: Path) -> float:
    """Largest deviation from upstream's embeddings, (B, n, dim), at the real tokens."""
    sizes = json.loads((folder / "config.json").read_text())
    cfg = TextConfig(**{name: sizes[name] for name in TextConfig.__dataclass_fields__})
    model = Umt5Encoder(cfg)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    expected = load_file(folder / "expected.safetensors")
    mask = expected["mask"].bool()
    ours = model(expected["ids"], mask.sum(1))
    return (ours - expected["embeds"])[mask].abs().max().item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", type=Path, required=True, metavar="FOLDER")
    deviation = check(parser.parse_args().check)
    print(f"largest deviation {deviation:.2e}")
    raise SystemExit(deviation > 1e-4)
