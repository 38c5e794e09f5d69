"""Clips to latents, once: the transformer never sees a pixel.

    python -m train.latents --run RUN

Writes `latents.npz` at full size and `latents_small.npz` at about half of it, normalised, with the
cells that the object covers; and the same of `--starts` more streams' first blocks, which are drawn
here, as `starts.npz` and `starts_small.npz`.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from .autoencoder import FRAMES_PER_LATENT, Encoder
from .clips import BLOCKS, FRAMES, HEIGHT, WIDTH, Clip, stored
from .world import RADIUS, World

SMALL = (112, 64)
STRIDE = 8


def load_encoder(run: Path, device: str) -> tuple[Encoder, torch.Tensor, torch.Tensor]:
    """The encoder, and the mean and deviation of its latents, each (z, 1, 1, 1)."""
    figures = json.loads((run / "vae" / "moments.json").read_text())
    encoder = Encoder(len(figures["mean"]))
    encoder.load_state_dict(torch.load(run / "vae" / "encoder.pt", map_location="cpu"))
    moments = (torch.tensor(figures[name]).view(-1, 1, 1, 1) for name in ("mean", "std"))
    return (encoder.to(device).eval(), *(m.to(device) for m in moments))


@torch.no_grad()
def encode(clips: Iterable[np.ndarray], run: Path, size: tuple[int, int], device: str) -> np.ndarray:
    """`(clips, groups, z, h, w)` in f16."""
    encoder, mean, std = load_encoder(run, device)
    latents = []
    for clip in clips:
        pixels = torch.from_numpy(clip).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        if size != (WIDTH, HEIGHT):
            pixels = F.interpolate(pixels, size[::-1], mode="bilinear", antialias=True)
        z = encoder.encode_groups(pixels.transpose(0, 1)[None])
        latents.append(((z[0] - mean) / std).transpose(0, 1).half().cpu().numpy())
    return np.stack(latents)


def cover(clip: Clip, size: tuple[int, int], frames: int) -> np.ndarray:
    """`(groups, h, w)`: whether the object touches a cell in any frame of the group."""
    columns, rows = (side // STRIDE for side in size)
    world = World(columns, rows)
    touched = np.zeros((frames, rows, columns), bool)
    for frame in range(frames):
        scene, pose = clip.shown(world, frame)
        reach = 1.2 * max(pose.radius, RADIUS["small"]) + world.pixel
        touched[frame] = np.hypot(world.x - pose.x, world.y - pose.y) < reach
    return touched.reshape(-1, FRAMES_PER_LATENT, rows, columns).any(1)


def write(path: Path, latents: np.ndarray, clips: list[Clip], size: tuple[int, int]) -> None:
    frames = FRAMES_PER_LATENT * latents.shape[1]
    np.savez(path, latents=latents, covers=np.stack([cover(clip, size, frames) for clip in clips]))
    print(f"{path.name}: {latents.shape}, mean {latents.mean(dtype=np.float64):.3f}, "
          f"deviation {latents.std(dtype=np.float64):.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--count", type=int, default=10**9, help="clips at most")
    parser.add_argument("--starts", type=int, default=4000)
    args = parser.parse_args()
    clips = stored(args.run)[: args.count]
    numbered = [Clip.number(index) for index in range(len(clips))]
    starts, world = [Clip.start(index) for index in range(args.starts)], World(WIDTH, HEIGHT)
    for ending, size in (("_small", SMALL), ("", (WIDTH, HEIGHT))):
        drawn = (start.frames(world, FRAMES // BLOCKS) for start in starts)
        write(args.run / f"starts{ending}.npz", encode(drawn, args.run, size, args.device), starts, size)
        write(args.run / f"latents{ending}.npz", encode(clips, args.run, size, args.device), numbered, size)


if __name__ == "__main__":
    main()
