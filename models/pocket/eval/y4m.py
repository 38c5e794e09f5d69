"""Reads what the tool writes: planar 4:2:0, BT.601, limited range, chroma between four pixels."""

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

Array = np.ndarray
KR, KG, KB = 0.299, 0.587, 0.114


def frames(stream: BinaryIO) -> Iterator[Array]:
    """`(H, W, 3)` in u8, one after the other, until the stream ends."""
    header = stream.readline().decode("ascii").split()
    if not header or header[0] != "YUV4MPEG2":
        raise ValueError(f"not a y4m stream: {header[:1]}")
    fields = {word[0]: word[1:] for word in header[1:]}
    width, height = int(fields["W"]), int(fields["H"])
    if fields.get("C") != "420jpeg" or "XCOLORRANGE=LIMITED" not in header:
        raise ValueError(f"got {' '.join(header)}, expected C420jpeg and XCOLORRANGE=LIMITED")
    half = ((height + 1) // 2, (width + 1) // 2)
    size = height * width + 2 * half[0] * half[1]
    while stream.readline().startswith(b"FRAME"):
        data = np.frombuffer(stream.read(size), np.uint8)
        if data.size < size:
            raise ValueError(f"frame has {data.size} bytes, expected {size}")
        luma, chroma = data[: height * width], data[height * width :]
        yield from_planes(luma.reshape(height, width), *chroma.reshape(2, *half))


def from_planes(luma: Array, cb: Array, cr: Array) -> Array:
    """`(H, W)` and twice `(H/2, W/2)` to `(H, W, 3)`, all in u8."""
    height, width = luma.shape
    y = (luma.astype(np.float32) - 16) / 219
    b, r = (doubled((c.astype(np.float32) - 128) / 224)[:height, :width] for c in (cb, cr))
    red, blue = y + 2 * (1 - KR) * r, y + 2 * (1 - KB) * b
    green = (y - KR * red - KB * blue) / KG
    return (np.clip(np.stack((red, green, blue), -1), 0, 1) * 255 + 0.5).astype(np.uint8)


def to_planes(picture: Array) -> tuple[Array, Array, Array]:
    """The way back, of a picture with even sides."""
    red, green, blue = np.moveaxis(picture.astype(np.float32) / 255, -1, 0)
    y = KR * red + KG * green + KB * blue
    chroma = ((blue - y) / (2 - 2 * KB), (red - y) / (2 - 2 * KR))
    h, w = y.shape
    small = [c.reshape(h // 2, 2, w // 2, 2).mean((1, 3)) for c in chroma]
    cb, cr = ((c * 224 + 128.5).astype(np.uint8) for c in small)
    return (y * 219 + 16.5).astype(np.uint8), cb, cr


def doubled(plane: Array) -> Array:
    """Twice the size, linear between samples that lie in the middle of four pixels."""
    for axis in (0, 1):
        ends = np.pad(plane, [(1, 1) if a == axis else (0, 0) for a in (0, 1)], "edge")
        count = plane.shape[axis]
        before, here, after = (np.take(ends, range(i, i + count), axis) for i in range(3))
        both = np.stack((0.25 * before + 0.75 * here, 0.75 * here + 0.25 * after), axis + 1)
        shape = list(plane.shape)
        shape[axis] *= 2
        plane = both.reshape(shape)
    return plane
