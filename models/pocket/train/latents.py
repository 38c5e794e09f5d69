"""Clips to latents, once: the transformer never sees a pixel.

    python -m train.latents --run RUN

Writes `latents.npz` at full size and `latents_small.npz` at about half of it, normalised, with the
cells that the object covers.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from .autoencoder import Encoder
from .clips import FRAMES, GROUPS, HEIGHT, WIDTH, Clip, stored
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
def encode(clips: np.ndarray, run: Path, size: tuple[int, int], device: str) -> np.ndarray:
    """`(clips, GROUPS, z, h, w)` in f16."""
    encoder, mean, std = load_encoder(run, device)
    latents = []
    for clip in clips:
        pixels = torch.from_numpy(clip).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        if size != (WIDTH, HEIGHT):
            pixels = F.interpolate(pixels, size[::-1], mode="bilinear", antialias=True)
        z = encoder.encode_groups(pixels.transpose(0, 1)[None])
        latents.append(((z[0] - mean) / std).transpose(0, 1).half().cpu().numpy())
    return np.stack(latents)


def covers(count: int, size: tuple[int, int]) -> np.ndarray:
    """`(clips, GROUPS, h, w)`: whether the object touches a cell in any frame of the group."""
    return np.stack([cover(Clip.number(index), size) for index in range(count)])


def cover(clip: Clip, size: tuple[int, int]) -> np.ndarray:
    columns, rows = (side // STRIDE for side in size)
    world = World(columns, rows)
    touched = np.zeros((FRAMES, rows, columns), bool)
    for frame in range(FRAMES):
        scene, pose = clip.shown(world, frame)
        reach = 1.2 * max(pose.radius, RADIUS["small"]) + world.pixel
        touched[frame] = np.hypot(world.x - pose.x, world.y - pose.y) < reach
    return touched.reshape(GROUPS, 4, rows, columns).any(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--count", type=int, default=10**9, help="clips at most")
    args = parser.parse_args()
    clips = stored(args.run)[: args.count]
    for name, size in (("latents_small", SMALL), ("latents", (WIDTH, HEIGHT))):
        latents = encode(clips, args.run, size, args.device)
        np.savez(args.run / f"{name}.npz", latents=latents, covers=covers(len(clips), size))
        print(f"{name}: {latents.shape}, mean {latents.mean(dtype=np.float64):.3f}, "
              f"deviation {latents.std(dtype=np.float64):.3f}", flush=True)


if __name__ == "__main__":
    main()
