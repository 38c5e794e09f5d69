"""Figures of a clip `(T, H, W, 3)` in u8 that need no judgement."""

import numpy as np

Array = np.ndarray
FIRST, LATER = 9, 12  # frames of block 0, of any other
BESIDE = 4  # steps on either side of a boundary that it is compared with


def block_start(block: int) -> int:
    """The first frame of a block."""
    return 0 if block == 0 else FIRST + LATER * (block - 1)


def steps(clip: Array) -> Array:
    """`(T - 1,)`: mean absolute difference of each frame and the next, in 0..1."""
    return np.array([
        np.abs(a.astype(np.int16) - b).mean() / 255 for a, b in zip(clip, clip[1:])
    ])  # fmt: skip


def jumps(clip: Array, first: int = 0) -> tuple[float, float]:
    """Mean step across a block boundary, and of its neighbours inside blocks; `first` is where the clip
    starts in its stream."""
    all_steps, across, beside = steps(clip), [], []
    blocks = range(1, (first + len(clip)) // LATER + 2)
    boundaries = {at for b in blocks if (at := block_start(b) - 1 - first) >= 0}
    for at in sorted(b for b in boundaries if b < len(all_steps)):
        across.append(all_steps[at])
        near = range(max(0, at - BESIDE), min(len(all_steps), at + BESIDE + 1))
        beside += [all_steps[i] for i in near if i not in boundaries]
    return float(np.mean(across)), float(np.mean(beside))


def luma(frame: Array) -> Array:
    return frame.astype(np.float32) @ np.float32((0.299, 0.587, 0.114)) / 255


def contrast(clip: Array) -> float:
    """Standard deviation of brightness within a frame, the mean of some frames."""
    return float(np.mean([luma(f).std() for f in clip[::4]]))


def sharpness(clip: Array) -> float:
    """Mean slope of brightness from pixel to pixel, of some frames."""
    slopes = []
    for frame in clip[::4]:
        y = luma(frame)
        slopes.append(np.abs(np.diff(y, axis=0)).mean() + np.abs(np.diff(y, axis=1)).mean())
    return float(np.mean(slopes))
