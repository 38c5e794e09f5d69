"""Clips: what each shows, and for the auto-encoder their frames on disk.

    python -m train.clips --run RUN --count 4000

A clip is BLOCKS blocks of 3 latents of 4 frames. Half of the clips are a stream's start, whose
first latent stands for one frame alone; here that frame fills its group four times.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .attributes import VALUES, Scene, is_held_out
from .world import FPS, Cut, Pose, Variation, World, current, random_scene

BLOCKS = 6
GROUPS = 3 * BLOCKS  # latents of a clip
FRAMES = 4 * GROUPS
WIDTH, HEIGHT = 192, 112


@dataclass(frozen=True)
class Clip:
    """Everything that its frames and its prompts depend on.

    Streams of the same prompts are the same: what a block shows is settled by its prompt and its past,
    so that nothing is left to be averaged over.
    """

    scenes: tuple[Scene, ...]  # one, or two with a cut between them
    cut_block: int  # first block of the second
    first: int  # stream frame of the first frame
    is_start: bool

    @staticmethod
    def number(index: int) -> "Clip":
        """The same clip for the same index, on any machine."""
        rng = np.random.default_rng((2026, index))
        scene = seen_scene(rng)
        after = changed(rng, scene)
        cut = int(rng.integers(1, BLOCKS)) if rng.random() < 0.5 else BLOCKS
        is_start = bool(rng.random() < 0.5)
        first = 0 if is_start else 9 + 12 * int(rng.integers(0, 80))
        scenes = (scene, after) if cut < BLOCKS else (scene,)
        return Clip(scenes, cut, first, is_start)

    @staticmethod
    def start(index: int) -> "Clip":
        """A stream's start, of which only the first block is of interest."""
        rng = np.random.default_rng((2027, index))
        return Clip((seen_scene(rng),), BLOCKS, 0, True)

    def frames(self, world: World, count: int = FRAMES) -> np.ndarray:
        """`(count, H, W, 3)` in u8; block b is frames 12 b to 12 b + 11."""
        frames = world.clip(self.cuts(), Variation(), self.first, count - self.skipped())
        return np.concatenate([frames[:1]] * self.skipped() + [frames])

    def shown(self, world: World, frame: int) -> tuple[Scene, Pose]:
        """What a frame of the clip shows, and where."""
        number = self.first + max(0, frame - self.skipped())
        scene, since = current(self.cuts(), number)
        return scene, world.pose(scene, Variation(), (number - since) / FPS)

    def skipped(self) -> int:
        return 3 if self.is_start else 0  # a start's first group is one frame, four times

    def cuts(self) -> list[Cut]:
        second = self.first + 12 * self.cut_block - self.skipped()
        return [Cut(0, self.scenes[0])] + [Cut(second, scene) for scene in self.scenes[1:]]


def seen_scene(rng: np.random.Generator) -> Scene:
    while is_held_out(scene := random_scene(rng)):
        pass
    return scene


def changed(rng: np.random.Generator, scene: Scene) -> Scene:
    """Another seen scene."""
    while True:
        count = int(rng.choice([1, 2, 3, len(VALUES)], p=[0.4, 0.2, 0.1, 0.3]))
        names = [str(n) for n in rng.choice(list(VALUES), count, replace=False)]
        after = scene.with_changes({name: str(rng.choice(VALUES[name])) for name in names})
        if after != scene and not is_held_out(after):
            return after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after")
    args = parser.parse_args()
    args.run.mkdir(parents=True, exist_ok=True)
    world, path, begun = World(WIDTH, HEIGHT), args.run / "clips.u8", time.time()
    size = FRAMES * HEIGHT * WIDTH * 3
    done = path.stat().st_size // size if path.exists() else 0
    with path.open("r+b" if done else "wb") as file:
        file.seek(done * size)
        for index in range(done, args.count):
            file.write(Clip.number(index).frames(world).tobytes())
            if time.time() - begun > args.seconds:
                break


def stored(folder: Path) -> np.ndarray:
    """`(clips, FRAMES, H, W, 3)`, mapped from disk; the clips written so far."""
    path, size = folder / "clips.u8", FRAMES * HEIGHT * WIDTH * 3
    shape = (path.stat().st_size // size, FRAMES, HEIGHT, WIDTH, 3)
    return np.memmap(path, np.uint8, "r", shape=shape)


if __name__ == "__main__":
    main()
