"""Draws what the transformer makes at this point of its training.

    python -m train.sample --run RUN --stage full --out strip.png

One row a prompt, every third frame of four blocks; sequential, four steps, as the plugin does it.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .autoencoder import Decoder
from .latents import SIZES, STRIDE
from .schedule import FRAMES_PER_BLOCK, SIGMAS, WINDOW, mix
from .text import TextEncoder
from .transformer import Config, Kv, Sight, Slots, Text, Transformer

PROMPTS = (
    "a red ball bounces on a beach",
    "a large blue cube spins in the snow at dusk",
    "a yellow star falls from the night sky over the city",
    "a pink heart moves to the right above the sea",
    "a green ring circles over the desert",
    "a purple diamond grows in the forest",
)


@torch.no_grad()
def sample(model: Transformer, text: Text, size: tuple[int, int], blocks: int, seed: int) -> Tensor:
    """Clean latents, (B, blocks * frames, z, h, w), of as many streams as there are prompts."""
    count, (width, height) = len(text.lengths), size
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 1, FRAMES_PER_BLOCK, model.cfg.in_dim, height // STRIDE, width // STRIDE)
    past: list[Kv] | None = None
    made = []
    for block in range(blocks):
        x0 = torch.zeros(shape)
        for sigma in SIGMAS:
            sigmas = torch.full((count, 1), sigma)
            noisy = mix(x0, torch.randn(shape, generator=generator), sigmas)
            x0 = noisy - sigma * forward(model, text, noisy, sigmas, block, past)[0]
        made.append(x0[:, 0])
        _, kv = forward(model, text, x0, torch.zeros(count, 1), block, past)
        past = [(old.then(new) if old else new).last(WINDOW) for old, new in zip(past or [None] * len(kv), kv)]
    return torch.cat(made, 1)


def forward(model: Transformer, text: Text, latents: Tensor, sigmas: Tensor, block: int, past):
    seen = tuple(range((past[0].k.shape[1] if past else 0) + 1))
    which = torch.zeros_like(sigmas, dtype=torch.long)
    return model(Slots(latents, 1000 * sigmas, Sight((block,), (seen,)), text, which), past)


def load_decoder(run: Path) -> tuple[Decoder, Tensor, Tensor]:
    """The decoder's moving average, and the moments of its latents, each (1, z, 1, 1, 1)."""
    state = torch.load(run / "vae" / "autoencoder.pt", map_location="cpu")["average"]
    decoder = Decoder()
    decoder.load_state_dict({k.removeprefix("decoder."): v for k, v in state.items() if k.startswith("decoder.")})
    figures = json.loads((run / "vae" / "moments.json").read_text())
    return (decoder.eval(), *(torch.tensor(figures[n]).view(1, -1, 1, 1, 1) for n in ("mean", "std")))


@torch.no_grad()
def decode(run: Path, latents: Tensor) -> np.ndarray:
    """`(B, frames, H, W, 3)` in u8."""
    decoder, mean, std = load_decoder(run)
    pixels = torch.cat([decoder(z[None].transpose(1, 2) * std + mean) for z in latents])
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1).numpy()


def draw(run: Path, stage: str, blocks: int = 4, seed: int = 0, prompts: Sequence[str] = PROMPTS) -> Image.Image:
    """A row for each prompt."""
    model = Transformer(Config()).eval()
    model.load_state_dict(torch.load(run / f"dit_{stage}.pt", map_location="cpu")["average"])
    embedding, lengths = TextEncoder(run / "text").encode(list(prompts))
    text = Text(embedding.float()[:, None], lengths[:, None])
    size = SIZES["_small" if stage == "small" else ""]
    frames = decode(run, sample(model, text, size, blocks, seed))
    rows = [np.concatenate(list(clip[::3]), axis=1) for clip in frames]
    return Image.fromarray(np.concatenate(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--stage", default="full")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompts", nargs="*", default=PROMPTS)
    args = parser.parse_args()
    draw(args.run, args.stage, args.blocks, args.seed, args.prompts).save(args.out)


if __name__ == "__main__":
    main()
