"""What clips are put through to test the judge: what it must bear, and what it must not take."""

import numpy as np
from scipy import ndimage, fft

from train.attributes import COLOURS, Scene
from train.world import FPS, Cut, Variation, World

from .y4m import from_planes, to_planes

Array = np.ndarray
Rng = np.random.Generator
FADED = 0.3  # of the object, that is left


def as_u8(clip: Array) -> Array:
    return (np.clip(clip, 0, 255) + 0.5).astype(np.uint8)


def stored(clip: Array, rng: Rng) -> Array:
    """As it comes out of a `.y4m` file: a quarter of the colour, limited range."""
    return np.stack([from_planes(*to_planes(frame)) for frame in clip])


def soft(clip: Array, rng: Rng) -> Array:
    """Blurred edges, a slight shift of colour, noise."""
    gain, offset = rng.uniform(0.96, 1.04, 3), rng.uniform(-4, 4, 3)
    blurred = ndimage.gaussian_filter(clip.astype(np.float32), (0, 1.0, 1.0, 0))
    return as_u8(blurred * gain + offset + rng.normal(0, 3, clip.shape))


def coded(clip: Array, rng: Rng) -> Array:
    """Squares of 8 pixels from which small waves are lost, as in what an auto-encoder returns."""
    t, h, w, _ = clip.shape
    squares = clip[:, : h // 8 * 8, : w // 8 * 8].astype(np.float32)
    squares = squares.reshape(t, h // 8, 8, w // 8, 8, 3)
    waves = fft.dctn(squares, axes=(2, 4), norm="ortho")
    i, j = np.meshgrid(np.arange(8), np.arange(8), indexing="ij")
    coarse = (8 + 9.0 * (i + j))[None, None, :, None, :, None]
    squares = fft.idctn(np.round(waves / coarse) * coarse, axes=(2, 4), norm="ortho")
    out = clip.astype(np.float32)
    out[:, : h // 8 * 8, : w // 8 * 8] = squares.reshape(t, h // 8 * 8, w // 8 * 8, 3)
    return as_u8(ndimage.gaussian_filter(out, (0, 0.6, 0.6, 0)))


def shaken(clip: Array, rng: Rng) -> Array:
    """Frames that are off by a pixel now and then."""
    offsets = rng.integers(-1, 2, (len(clip), 2)) * (rng.random((len(clip), 1)) < 0.3)
    moved = [np.pad(f, ((1, 1), (1, 1), (0, 0)), "edge") for f in clip]
    h, w = clip.shape[1:3]
    return np.stack([m[1 + y : 1 + y + h, 1 + x : 1 + x + w] for m, (y, x) in zip(moved, offsets)])


BEARABLE = {"as drawn": lambda clip, rng: clip, "4:2:0": stored, "soft": soft, "coded": coded,
            "shaken": shaken}  # fmt: skip


class Forger:
    """Clips that do not show what `scene` asks for."""

    def __init__(self, world: World, scene: Scene, variation: Variation, first: int, frames: int):
        self.world, self.scene, self.variation = world, scene, variation
        self.first, self.frames = first, frames

    def true(self) -> Array:
        return self.world.clip([Cut(0, self.scene)], self.variation, self.first, self.frames)

    def empty(self) -> Array:
        """The setting alone."""
        places = [
            self.world.place(self.scene, self.variation.shift, (self.first + i) / FPS)
            for i in range(self.frames)
        ]
        return as_u8(np.clip(np.stack(places), 0, 1) * 255)

    def faded(self) -> Array:
        """Little of the object is left."""
        empty = self.empty().astype(np.float32)
        return as_u8(empty + FADED * (self.true() - empty))

    def recoloured(self, rng: Rng) -> Array:
        other = str(rng.choice([c for c in COLOURS if c != self.scene.colour]))
        return Forger(self.world, self.scene.with_changes({"colour": other}), self.variation,
                      self.first, self.frames).true()  # fmt: skip

    def frozen(self) -> Array:
        """The object does not move, whatever the setting does."""
        clip, empty = self.true(), self.empty()
        moved = np.abs(clip[0].astype(int) - empty[0]).max(-1) > 6
        return np.where(moved[None, ..., None], clip[:1], empty)

    def shuffled(self, rng: Rng) -> Array:
        """The right frames in no order: everything but the motion is right."""
        return self.true()[rng.permutation(self.frames)]

    def smeared(self) -> Array:
        """The object's outline is lost, its place and colour are not."""
        clip, empty = self.true().astype(np.float32), self.empty().astype(np.float32)
        sigma = self.world.y.shape[0] / 14
        return as_u8(empty + ndimage.gaussian_filter(clip - empty, (0, sigma, sigma, 0)))

    def washed(self) -> Array:
        """Grey over everything."""
        return as_u8(128 + 0.3 * (self.true().astype(np.float32) - 128))

    def noise(self, rng: Rng) -> Array:
        """Slowly changing blots, as an untrained model makes."""
        h, w = self.world.y.shape
        blots = ndimage.gaussian_filter(rng.normal(0, 1, (self.frames, h, w, 3)), (3, 5, 5, 0))
        return as_u8(128 + 60 * blots / blots.std())
