"""Signed distances of the objects' outlines, in units of their radius: negative inside, y down."""

import numpy as np

Array = np.ndarray


def distance(kind: str, x: Array, y: Array) -> Array:
    return OUTLINES[kind](x, y)


def ball(x: Array, y: Array) -> Array:
    return np.hypot(x, y) - 0.95


def box(x: Array, y: Array, half_width: float, half_height: float, rounding: float) -> Array:
    dx, dy = np.abs(x) - half_width + rounding, np.abs(y) - half_height + rounding
    outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
    return outside + np.minimum(np.maximum(dx, dy), 0) - rounding


def cube(x: Array, y: Array) -> Array:
    return box(x, y, 0.8, 0.8, 0.12)


def cross(x: Array, y: Array) -> Array:
    return np.minimum(box(x, y, 0.95, 0.33, 0.08), box(x, y, 0.33, 0.95, 0.08))


def ring(x: Array, y: Array) -> Array:
    return np.abs(np.hypot(x, y) - 0.68) - 0.27


def polygon(corners: list[tuple[float, float]], rounding: float):
    """The distance to a polygon whose corners are rounded."""
    ends = [np.array(corner, np.float32) * (1 - rounding) for corner in corners]

    def outline(x: Array, y: Array) -> Array:
        nearest, inside = np.full_like(x, np.inf), np.ones_like(x)
        for (ax, ay), (bx, by) in zip(ends, ends[1:] + ends[:1]):
            ex, ey, wx, wy = bx - ax, by - ay, x - ax, y - ay
            along = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0, 1)
            nearest = np.minimum(nearest, np.hypot(wx - ex * along, wy - ey * along))
            above, below, left = y >= ay, y < by, ex * wy > ey * wx
            crosses = (above & below & left) | (~above & ~below & ~left)
            inside = np.where(crosses, -inside, inside)
        return inside * nearest - rounding

    return outline


def corners(count: int, radii: tuple[float, ...], turn: float) -> list[tuple[float, float]]:
    """`count` corners around the centre, whose distances take turns."""
    angles = turn + 2 * np.pi * np.arange(count) / count
    return [(r * np.cos(a), r * np.sin(a)) for a, r in zip(angles, radii * count)]


def heart_corners() -> list[tuple[float, float]]:
    t = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return list(zip(x / 17, -(y + 2.5) / 17))


OUTLINES = {
    "ball": ball,
    "cube": cube,
    "triangle": polygon(corners(3, (1.05,), -np.pi / 2), 0.1),
    "star": polygon(corners(10, (1.08, 0.5), -np.pi / 2), 0.05),
    "ring": ring,
    "heart": polygon(heart_corners(), 0.03),
    "diamond": polygon([(0, -1.05), (0.62, 0), (0, 1.05), (-0.62, 0)], 0.06),
    "cross": cross,
}
