"""Clips to latents, once: the transformer never sees a pixel.

    python -m train.latents --run RUN --ensembles 480 --starts 4800

Draws ensembles of clips and as many streams' first blocks. Writes `latents.npz` at full size and
`latents_small.npz` at about half of it, normalised, with the cells that the object covers; and
the same of the first blocks as `starts.npz` and `starts_small.npz`.
"""

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from .autoencoder import FRAMES_PER_LATENT, Encoder
from .clips import BLOCKS, FRAMES, HEIGHT, WIDTH, Clip
from .ensembles import Ensemble
from .world import RADIUS, World

SIZES = {"": (WIDTH, HEIGHT), "_small": (112, 64)}
STRIDE = 8


@cache
def load_encoder(run: Path) -> tuple[Encoder, torch.Tensor, torch.Tensor]:
    """The encoder, and the mean and deviation of its latents, each (z, 1, 1, 1)."""
    figures = json.loads((run / "vae" / "moments.json").read_text())
    encoder = Encoder(len(figures["mean"]))
    encoder.load_state_dict(torch.load(run / "vae" / "encoder.pt", map_location="cpu"))
    return (encoder.eval(), *(torch.tensor(figures[name]).view(-1, 1, 1, 1) for name in ("mean", "std")))


@torch.no_grad()
def encoded(clip: Clip, run: Path, frames: int, sizes: list[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By size, `(groups, z, h, w)` in f16, and `(groups, h, w)`: the cells that the object touches."""
    torch.set_num_threads(1)
    encoder, mean, std = load_encoder(run)
    drawn = torch.from_numpy(clip.frames(World(WIDTH, HEIGHT), frames)).permute(0, 3, 1, 2).float() / 127.5 - 1
    result = {}
    for name in sizes:
        size = SIZES[name]
        pixels = F.interpolate(drawn, size[::-1], mode="bilinear", antialias=True) if name else drawn
        z = (encoder.encode_groups(pixels.transpose(0, 1)[None])[0] - mean) / std
        result[name] = z.transpose(0, 1).half().numpy(), cover(clip, size, frames)
    return result


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


def write(name: str, clips: list[Clip], frames: int, args: argparse.Namespace) -> None:
    work = partial(encoded, run=args.run, frames=frames, sizes=args.sizes)
    with ProcessPoolExecutor(args.processes) as pool:
        done = list(pool.map(work, clips, chunksize=4))
    for ending in args.sizes:
        latents, covers = (np.stack([clip[ending][part] for clip in done]) for part in (0, 1))
        np.savez(args.run / f"{name}{ending}.npz", latents=latents, covers=covers)
        print(f"{name}{ending}.npz: {latents.shape}, mean {latents.mean(dtype=np.float64):.3f}, "
              f"deviation {latents.std(dtype=np.float64):.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--ensembles", type=int, default=480)
    parser.add_argument("--starts", type=int, default=4800)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES), help="all, or '' alone")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    args = parser.parse_args()
    write("starts", [Clip.start(index) for index in range(args.starts)], FRAMES // BLOCKS, args)
    clips = [clip for index in range(args.ensembles) for clip in Ensemble.number(index).clips]
    write("latents", clips, FRAMES, args)


if __name__ == "__main__":
    main()
