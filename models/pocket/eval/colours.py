"""Which colour of the palette an object has, told in OKLab, where distances look even to an eye."""

from dataclasses import dataclass

import numpy as np

from train.attributes import COLOURS
from train.world import COLOUR, TINT

Array = np.ndarray
# From https://bottosson.github.io/posts/oklab
LMS = np.array(
    ((0.4122214708, 0.5363325363, 0.0514459929),
     (0.2119034982, 0.6806995451, 0.1073969566),
     (0.0883024619, 0.2817188376, 0.6299787005)), np.float32)  # fmt: skip
LAB = np.array(
    ((0.2104542553, 0.7936177850, -0.0040720468),
     (1.9779984951, -2.4285922050, 0.4505937099),
     (0.0259040371, 0.7827717662, -0.8086757660)), np.float32)  # fmt: skip
LIT = (0.84, 0.92, 1.0, 1.1)  # of its colour, what the lit half of an object shows
WEIGHTS = np.array((0.6, 1.0, 1.0), np.float32)  # lightness is the shading's too
FARTHEST = 0.09  # from which on it is none of the palette; its nearest two are 0.10 apart
STRANGEST = 0.12  # from which on it is hardly an object, but the setting shining through
FLATTEST = 0.68  # brightness of the dark half to that of the lit one; flatter is see-through
ENOUGH = 30  # pixels


@dataclass(frozen=True)
class Hue:
    """The colour nearest to an object's, and how near it is."""

    colour: str | None
    distance: float
    shade: float  # brightness of the dark half, to that of the lit one
    seen: tuple[float, ...]  # OKLab of the lit half

    @property
    def solid(self) -> bool:
        """Whether there is an object at all, or only a trace of one."""
        return self.shade < FLATTEST and self.distance < STRANGEST

    @property
    def verdict(self) -> str | None:
        return self.colour if self.solid and self.distance < FARTHEST else None


def oklab(rgb: Array) -> Array:
    """`(..., 3)` of sRGB in 0..1 to lightness and two axes of hue."""
    rgb = np.clip(rgb, 0, 1)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ LMS.T) @ LAB.T


def palette(time: str) -> Array:
    """`(lights, colours, 3)` in OKLab: what the hour makes of them."""
    base = np.array([COLOUR[c] for c in COLOURS], np.float32) * np.float32(TINT[time])
    return oklab(np.float32(LIT)[:, None, None] * base)


def name(pixels: Array, time: str) -> Hue:
    """Of an object's pixels `(N, 3)` in 0..1, its rim left out."""
    if len(pixels) < ENOUGH:
        return Hue(None, np.inf, 1.0, ())
    bright = pixels.max(-1)
    dark, low, typical, high = np.quantile(bright, (0.15, 0.55, 0.8, 0.92))
    lit = pixels[(bright >= low) & (bright <= high)]  # without highlights
    seen = np.median(oklab(lit), axis=0)
    distances = np.linalg.norm((palette(time) - seen) * WEIGHTS, axis=-1).min(0)
    best = int(distances.argmin())
    shade = float(dark / max(typical, 1e-3))
    return Hue(COLOURS[best], float(distances[best]), shade, tuple(float(v) for v in seen))
