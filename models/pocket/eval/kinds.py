"""Which of the world's outlines an object has: facing the eye, turning, or cut by a border."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage

from train import shapes, world
from train.attributes import KINDS
from train.world import FPS, PERIOD

from .objects import Track, blur

Array = np.ndarray
SIDE = 28  # of the square on which masks are compared
REACH = 2.4  # half of its width, in root mean square distances from the centre
STEP = 5  # degrees from one turn of an outline to the next
HALF_TURN = 180  # degrees after which a thing that spins looks the same
TURNS = 360 / (FPS * PERIOD["spinning"]) * np.array((0.6, 0.8, 1.0, 1.2, 1.4))  # degrees a frame
LEANS = (-10, -5, 0, 5, 10)  # degrees from upright, that any object may be off
LEAST = 0.8  # overlap from which on it is a kind
BLURRED = 0.05  # of the object that is left outside its outline, from which on it has none
SEEN = (0.35, 0.5, 0.65, 0.8, 0.9, 1.0)  # of an outline, on this side of a border that cuts it
FRAMES = 16  # of a clip, that are compared


@dataclass(frozen=True)
class Outline:
    """The kind that fits best, how well, and how much better if it spins."""

    kind: str | None
    overlap: float
    second: float  # overlap of the next kind
    spin: float  # what turning adds to the overlap
    blur: float = 0.0  # how much of the object there is outside its outline

    @property
    def verdict(self) -> str | None:
        return self.kind if self.overlap > LEAST and self.blur < BLURRED else None


@cache
def bank() -> Array:
    """`(kinds, leans, SIDE * SIDE)` in 0..1: every outline as it faces the eye."""
    rows, (y, x) = [], plane()
    for kind in KINDS:
        for angle in np.deg2rad(LEANS):
            u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
            rows.append(squares(shapes.distance(kind, u, v) < 0, (0.0,), (1.0,))[0])
    return np.stack(rows).reshape(len(KINDS), -1, SIDE * SIDE)


@cache
def turned_bank() -> Array:
    """`(kinds, turns, SIDE * SIDE)`: every outline at every turn about an upright axis."""
    rows, (y, x) = [], plane()
    for kind in KINDS:
        for angle in range(0, HALF_TURN, STEP):
            width = world.spinning(angle / 360, 0.0, 0.0, 1.0, 1.0).width
            rows.append(squares(shapes.distance(kind, x / width, y) < 0, (0.0,), (1.0,))[0])
    return np.stack(rows).reshape(len(KINDS), -1, SIDE * SIDE)


@cache
def cut_bank(side: int) -> Array:
    """`(kinds, cuts, SIDE * SIDE)`: outlines cut on the left, right, top or bottom."""
    rows, (y, x) = [], plane()
    along = (x, -x, y, -y)[side]
    for kind in KINDS:
        mask = shapes.distance(kind, x, y) < 0
        first, last = along[mask].min(), along[mask].max()
        for seen in SEEN:
            part = mask & (along >= last - seen * (last - first))
            rows.append(squares(part, (0.0,), (1.0,))[0])
    return np.stack(rows).reshape(len(KINDS), -1, SIDE * SIDE)


def plane() -> tuple[Array, Array]:
    """Where outlines are drawn."""
    fine = np.linspace(-1.5, 1.5, 121, dtype=np.float32)
    y, x = np.meshgrid(fine, fine, indexing="ij")
    return y, x


def squares(mask: Array, shifts: tuple, scales: tuple) -> Array:
    """`(variants, SIDE * SIDE)`: the mask about its centre, in units of its spread."""
    rows, columns = np.nonzero(mask)
    centre, spread = (rows.mean(), columns.mean()), np.sqrt(rows.var() + columns.var())
    soft = ndimage.gaussian_filter(mask.astype(np.float32), 0.12 * spread)
    grid = (np.arange(SIDE) + 0.5) / SIDE * 2 - 1
    v, u = np.meshgrid(grid * REACH * spread, grid * REACH * spread, indexing="ij")
    places = [
        (centre[0] + s * v + dy * spread, centre[1] + s * u + dx * spread)
        for s in scales for dy in shifts for dx in shifts
    ]  # fmt: skip
    return np.stack([ndimage.map_coordinates(soft, p, order=1).ravel() for p in places])


def overlaps(mask: Array, outlines: Array) -> Array:
    """`(kinds, turns or cuts)`: the best intersection over union, a little shifted and scaled."""
    forms = squares(mask, (-0.08, 0.0, 0.08), (0.92, 1.0, 1.08))
    templates = outlines.reshape(-1, SIDE * SIDE)
    shared = forms @ templates.T
    # Soft masks: the sum of squares stands for the area.
    union = (forms**2).sum(-1)[:, None] + (templates**2).sum(-1) - shared
    return (shared / union).max(0).reshape(outlines.shape[:2])


def name(found: Track, away: Array) -> Outline:
    """Of the object, and how far each pixel is from the setting `(T, H, W)`."""
    frames = chosen(found)
    if len(frames) < 3:
        return Outline(None, 0.0, 0.0, 0.0)
    still, turning = fitting(found, frames)
    best = np.maximum(still, turning)
    order = best.argsort()[::-1]
    kind = int(order[0])
    spin = float(turning[kind] - still[kind])
    left = float(np.median([blur(found.masks[i], away[i]) for i in frames]))
    return Outline(KINDS[kind], float(best[kind]), float(best[order[1]]), spin, left)


def fitting(found: Track, frames: Array) -> tuple[Array, Array]:
    """`(kinds,)` twice: the overlap of an object that stands, and of one that turns."""
    if found.whole.sum() < 3:
        # Only what moves straight ahead stays behind a border, and it stands.
        cut = parts(found, frames)
        return cut, cut
    facing = np.stack([overlaps(found.masks[i], bank()) for i in frames])  # (frames, kinds, leans)
    turned = np.stack([overlaps(found.masks[i], turned_bank()) for i in frames])
    return np.median(facing, axis=0).max(-1), spinning(turned, frames)


def parts(found: Track, frames: Array) -> Array:
    """`(kinds,)`: the overlap of an object that no border leaves whole."""
    sides = found.cut[frames].argmax(-1)  # of a whole one any will do
    fits = [overlaps(found.masks[i], cut_bank(int(side))) for i, side in zip(frames, sides)]
    return np.median(np.max(fits, axis=-1), axis=0)  # each shows another part


def chosen(found: Track) -> Array:
    """Frames that show the object whole, or else those that show most of it."""
    whole = np.nonzero(found.whole)[0]
    if len(whole) < 3:
        areas = found.masks.sum((1, 2))
        whole = np.sort(areas.argsort()[::-1][:3])
        whole = whole[areas[whole] > 0]
    return whole[np.linspace(0, len(whole) - 1, min(FRAMES, len(whole))).astype(int)]


def spinning(fits: Array, frames: Array) -> Array:
    """`(kinds,)`: the overlap of one that turns steadily, from any turn on."""
    best = np.zeros(len(KINDS))
    for turn in TURNS:
        steps = np.round(frames * turn / STEP).astype(int)
        turned = [np.roll(fit, -step, axis=-1) for fit, step in zip(fits, steps)]
        best = np.maximum(best, np.median(turned, axis=0).max(-1))
    return best
