"""Finds the object of a clip: the pixels of each frame that the setting does not explain."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from train.world import COLOUR, TINT

Array = np.ndarray
AWAY = 0.045  # from the setting, in sRGB
SMALLEST = 0.0016  # of the picture, that an object may cover
LARGEST = 0.30
RIM = (3, 5)  # pixels from an outline to where a sharp object has ended
# Where a shadow may lie, and how little of the light it leaves.
SHADOW_ROWS, SHADOW_LIGHT, SHADOW_TOLERANCE = (0.76, 1.0), 0.5, 0.05
LEARNT = 0.3  # of the frames, in which a pixel has to be free of the object
GLINT = 0.25  # of white, that a highlight adds


@dataclass(frozen=True)
class Track:
    """The object of every frame; edges are left, right, top, bottom in heights, NaN if unseen."""

    masks: Array  # (T, H, W) bool
    edges: Array  # (T, 4)
    cut: Array  # (T, 4) bool: the picture's border hides what is beyond

    @property
    def seen(self) -> Array:
        return ~np.isnan(self.edges[:, 0])

    @property
    def whole(self) -> Array:
        """`(T,)`: seen, and not cut by a border."""
        return self.seen & ~self.cut.any(-1)


def track(clip: Array, away: Array, places: Array) -> Track:
    """From `(T, H, W, 3)`, how far its pixels are from the setting `(T, H, W)`, and that."""
    masks = np.stack([
        largest((far > AWAY) & ~shadow(frame, place), far)
        for frame, far, place in zip(clip, away, places)
    ])
    return outlined(masks)


def refined(found: Track, clip: Array, places: Array, colour: str, time: str) -> Track:
    """The same by which of the two a pixel near the object is nearer to, object or setting."""
    base = np.float32(COLOUR[colour]) * np.float32(TINT[time])
    shades = np.quantile(pixels(found, clip) @ base / (base @ base), (0.03, 0.97))
    masks = found.masks.copy()
    for mask, frame, place in zip(masks, clip, learned(found, clip, places)):
        if mask.any():
            part = around(mask, 6)
            as_setting = np.linalg.norm(frame[part] - place[part], axis=-1)
            as_object = off_shades(frame[part], base, shades)
            alike = (as_object < as_setting) & (as_setting > AWAY) & ~shadow(frame, place)[part]
            mask[part] = component_of(alike, mask[part])
    return outlined(masks)


def learned(found: Track, clip: Array, places: Array) -> Array:
    """`(T, H, W, 3)`: the setting as the clip itself shows it, where the object is elsewhere."""
    free = np.stack([~ndimage.binary_dilation(mask, iterations=3) for mask in found.masks])
    free = free[..., None]
    count = np.maximum(free.sum(0), 1)
    offset = np.where(free, clip - places, 0).sum(0) / count
    known = (free.sum(0) > LEARNT * len(clip)) & (np.abs(offset) < 0.2)
    return places + np.where(known, offset, 0)


def off_shades(pixels: Array, base: Array, shades: Array) -> Array:
    """How far `(..., 3)` is from a colour in light and shade, and under some highlight."""
    shade = np.clip(pixels @ base / (base @ base), shades[0] * 0.8, shades[1] * 1.1)
    rest = pixels - shade[..., None] * base
    glint = np.clip(rest.mean(-1), 0, GLINT)
    return np.linalg.norm(rest - glint[..., None], axis=-1)


def shadow(frame: Array, place: Array) -> Array:
    """`(H, W)`: pixels that are the setting's with less light."""
    height = frame.shape[0]
    rows = slice(*(int(r * height) for r in SHADOW_ROWS))
    f, p = frame[rows], place[rows]
    square = np.maximum(np.einsum("hwc,hwc->hw", p, p), 1e-6)
    light = np.einsum("hwc,hwc->hw", f, p) / square
    rest = f - light[..., None] * p
    off = np.sqrt(np.einsum("hwc,hwc->hw", rest, rest))
    found = np.zeros(frame.shape[:2], bool)
    near = off < SHADOW_TOLERANCE * np.sqrt(square) + 0.01
    found[rows] = (light > SHADOW_LIGHT) & (light < 1) & near
    return found


def largest(mask: Array, weight: Array) -> Array:
    """The component with the most weight, if it has an object's size."""
    mask = ndimage.binary_opening(ndimage.binary_closing(mask, np.ones((2, 2))), np.ones((2, 2)))
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    if not count:
        return np.zeros_like(mask)
    numbers = range(1, count + 1)
    sizes = ndimage.sum_labels(mask, labels, numbers) / mask.size
    weights = ndimage.sum_labels(np.minimum(weight, 0.3), labels, numbers)
    weights[(sizes < SMALLEST) | (sizes > LARGEST)] = 0
    best = int(np.argmax(weights))
    return labels == best + 1 if weights[best] > 0 else np.zeros_like(mask)


def component_of(mask: Array, seed: Array) -> Array:
    """The component of `mask` that has most of `seed`, its pinholes filled."""
    mask = ndimage.binary_opening(ndimage.binary_closing(mask), np.ones((2, 2)))
    labels, count = ndimage.label(mask)
    if not count:
        return seed
    best = int(np.argmax(ndimage.sum_labels(seed, labels, range(1, count + 1)))) + 1
    found = labels == best
    holes, count = ndimage.label(ndimage.binary_fill_holes(found) & ~found)
    for hole in range(1, count + 1):
        if (holes == hole).sum() < 0.04 * found.sum():
            found |= holes == hole
    return found


def around(mask: Array, margin: int) -> tuple[slice, slice]:
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    return tuple(
        slice(max(0, int(n[0]) - margin), int(n[-1]) + margin + 1) for n in (rows, columns)
    )


def outlined(masks: Array) -> Track:
    count, height, width = masks.shape
    edges = np.full((count, 4), np.nan, np.float32)
    cut = np.zeros((count, 4), bool)
    for i, mask in enumerate(masks):
        if mask.any():
            rows, columns = around(mask, 0)
            box = (columns.start, columns.stop, rows.start, rows.stop)
            edges[i] = np.array(box) / height
            cut[i] = (box[0] <= 1, box[1] >= width - 1, box[2] <= 1, box[3] >= height - 1)
    return Track(masks, edges, cut)


def blur(mask: Array, far: Array) -> float:
    """What is left just outside an outline of the object's distance from the setting."""
    part = around(mask, RIM[1])
    mask, far = mask[part], far[part]
    near, wide = (ndimage.binary_dilation(mask, iterations=n) for n in RIM)
    outside = far[wide & ~near]
    # Medians: a shadow lies below alone.
    return float(np.median(outside) / max(np.median(far[mask]), AWAY)) if len(outside) else 0.0


def pixels(found: Track, clip: Array) -> Array:
    """`(N, 3)`: the object's, without its rim, of some frames."""
    parts = []
    for i in np.nonzero(found.seen)[0][::2]:
        mask = found.masks[i]
        inner = ndimage.binary_erosion(mask, iterations=3)
        inner = inner if inner.sum() > 0.2 * mask.sum() else ndimage.binary_erosion(mask)
        parts.append(clip[i][inner])
    return np.concatenate(parts) if parts else np.zeros((0, 3), np.float32)
