"""How an object moves, told from its track."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from train import world
from train.world import FPS, PERIOD, RADIUS

from .kinds import Outline
from .objects import Track

Array = np.ndarray
STRAIGHT = ("left", "right", "rising", "falling")
LAG = 4  # frames between which a step is measured: it has to be long beside a pixel
# Heights that the centre of a spinning or growing object may stray.
STILL = 0.22 * max(RADIUS.values())
SPINS = 0.04  # of overlap, that an outline gains if it is taken to turn
OVERLAP = 0.92  # that it must reach then
PACE = (0.55, 1.6)  # of the world's speed
# Of it, across the way: more for a part, whose middle jumps as points of a star come into sight.
ASIDE, ASIDE_CUT = 0.4, 2.0
GROWS = 0.3  # logarithm of how much; the least is 0.37, about the largest size
NARROWS = 0.5  # logarithm of how much what spins does, at least; what grows does less
LEAST = 0.7  # of a motion's evidence


@dataclass(frozen=True)
class Motion:
    """The evidence for each motion, 0 to 1, and what it was computed from."""

    scores: dict[str, float]
    numbers: dict[str, float] = field(default_factory=dict)

    @property
    def verdict(self) -> str | None:
        best = max(self.scores, key=self.scores.get, default=None)
        return best if best and self.scores[best] >= LEAST else None


def name(found: Track, outline: Outline) -> Motion:
    """Of an object whose outline was compared with those that turn."""
    seen = float(found.seen.mean())
    if seen < 0.6:
        return Motion({}, {"seen": seen})
    x, y = centres(found)
    if min(np.isfinite(x).sum(), np.isfinite(y).sum()) < LAG:
        return Motion({}, {"seen": seen})
    wide, high = spreads(found)
    growth, narrowing = swing(high), swing(wide / high)
    scores = {name: straight(found, x, y, name) for name in STRAIGHT}
    still = stillness(found)
    scores["bouncing"], hops = bouncing(x, y)
    scores["circling"], round_ = circling(x, y)
    grows = repeated(high, lambda turn: posed("growing", turn).radius, PERIOD["growing"])
    scores["growing"] = grows * still * (growth > GROWS) * (narrowing < NARROWS)
    turn = repeated(wide / high, lambda turn: posed("spinning", turn).width, PERIOD["spinning"])
    turns = 1.0 if outline.spin > SPINS and outline.overlap > OVERLAP else turn
    scores["spinning"] = turns * still * (growth < 0.2) * (narrowing > NARROWS)
    numbers = {"still": still, "hops": hops, "round": round_, "growth": growth, "turn": turn,
               "narrowing": narrowing, "spin": outline.spin}  # fmt: skip
    return Motion({k: round(float(v), 3) for k, v in scores.items()}, numbers)


def centres(found: Track) -> tuple[Array, Array]:
    """`(T,)` twice: the middle between two edges, also where a border hides one of them."""
    middles = []
    for axis in (0, 2):
        low, high = found.edges[:, axis], found.edges[:, axis + 1]
        no_low, no_high = found.cut[:, axis], found.cut[:, axis + 1]
        free = found.seen & ~no_low & ~no_high
        spans = (high - low)[free] if free.sum() > 2 else (high - low)[found.seen]
        half = 0.5 * (np.median(spans) if free.sum() > 2 else np.max(spans))
        middle = np.where(no_low, high - half, np.where(no_high, low + half, (low + high) / 2))
        middles.append(np.where(no_low & no_high, np.nan, middle))
    return middles[0], middles[1]


def spreads(found: Track) -> tuple[Array, Array]:
    """`(T,)` twice: how wide and how high it is, in pixels about its centre, NaN where it is not whole."""
    wide, high = np.full((2, len(found.masks)), np.nan)
    for i in np.nonzero(found.whole)[0]:
        rows, columns = np.nonzero(found.masks[i])
        wide[i], high[i] = max(np.std(columns), 0.3), max(np.std(rows), 0.3)
    return wide, high


def swing(values: Array) -> float:
    """Between which bounds they are, as a logarithm."""
    known = np.log(values[np.isfinite(values)])
    return float(np.quantile(known, 0.95) - np.quantile(known, 0.05)) if len(known) else 0.0


def posed(motion: str, turn: Array) -> world.Pose:
    return world.MOTIONS[motion](turn, 0.0, 0.0, 1.0, 1.0)


def straight(found: Track, x: Array, y: Array, name: str) -> float:
    """The share of steps that go the way, at about the pace."""
    level = name in ("left", "right")
    along, across = (x, y) if level else (y, x)
    sign = -1 if name in ("left", "rising") else 1
    pace = speed(name, found.masks.shape) * LAG / FPS
    steps = (along[LAG:] - along[:-LAG]) * sign / pace
    aside = np.abs(across[LAG:] - across[:-LAG]) / pace
    cut = found.cut[:, slice(0, 2) if level else slice(2, 4)].any(-1)
    most = np.where(cut[LAG:] | cut[:-LAG], ASIDE_CUT, ASIDE)
    known = np.isfinite(steps) & np.isfinite(aside) & (np.abs(steps) < 8)  # not across a border
    good = (steps > PACE[0]) & (steps < PACE[1]) & (aside < most)
    if known.sum() < 0.4 * len(steps):  # what two runs of frames have, before and after a border
        return 0.0
    return float(good[known].mean())


def speed(name: str, shape: tuple[int, int, int]) -> float:
    """Heights a second, of an object of medium size, in pictures `(T, H, W)`."""
    way = shape[2] / shape[1] if name in ("left", "right") else 1.0
    return (way + 2 * RADIUS["medium"]) / PERIOD[name]


def stillness(found: Track) -> float:
    """1 if the object's centre stays, 0 if it strays."""
    middles = [np.argwhere(mask).mean(0) for mask in found.masks[found.whole]]
    if len(middles) < 0.6 * len(found.masks):
        return 0.0
    spread = np.hypot(*np.std(middles, axis=0)) / found.masks.shape[1]
    return float(np.clip(2 - spread / STILL, 0, 1))


def fitted(values: Array, columns: list[Array]) -> tuple[Array, float]:
    """Least squares on what is known: coefficients, and the mean square left over."""
    known = np.isfinite(values)
    a = np.stack([c[known] for c in columns], -1)
    solution = np.linalg.lstsq(a, values[known], rcond=None)[0]
    return solution, float(np.mean((a @ solution - values[known]) ** 2))


def bouncing(x: Array, y: Array) -> tuple[float, float]:
    """How well hops explain the height, and how high they are."""
    t = np.arange(len(y)) / FPS
    spread, best, high = np.nanvar(y), 0.0, 0.0
    least, most = 0.65 * hop("large"), 1.4 * hop("small")
    for period in PERIOD["bouncing"] * np.linspace(0.75, 1.3, 8):
        for phase in np.arange(0, 1, 0.05):
            u = (t / period + phase) % 1
            (rise, _), left = fitted(y, [-4 * u * (1 - u), np.ones_like(u)])
            fit = 1 - left / max(spread, 1e-9)
            if fit > best and least < rise < most:
                best, high = fit, float(rise)
    aside = np.nanstd(x)
    return best * float(np.clip(2 - aside / 0.05, 0, 1)), high


def hop(size: str) -> float:
    """How high an object of that size hops."""
    low, high = (world.bouncing(turn, 0.0, 0.0, RADIUS[size], 1.0) for turn in (0.0, 0.5))
    return low.y - high.y


def circling(x: Array, y: Array) -> tuple[float, float]:
    """How well a round explains the track, and how wide it is."""
    t = np.arange(len(x)) / FPS
    spread_x, spread_y = max(np.nanvar(x), 1e-9), max(np.nanvar(y), 1e-9)
    best, wide = 0.0, 0.0
    for period in PERIOD["circling"] * np.linspace(0.7, 1.5, 11):
        w = 2 * np.pi * t / period
        columns = [np.cos(w), np.sin(w), np.ones_like(w)]
        (a, b, _), left = fitted(x, columns)
        (c, d, _), more = fitted(y, columns)
        across, down = np.hypot(a, b), np.hypot(c, d)
        quadrature = abs(a * d - b * c) / max(across * down, 1e-9)  # 1 if a quarter turn apart
        fit = 1 - max(left / spread_x, more / spread_y)  # a straight way fits one of the two
        if fit > best and 0.11 < across < 0.34 and 0.09 < down < 0.28 and quadrature > 0.8:
            best, wide = fit, float(across)
    return best, wide


def repeated(values: Array, form: Callable[[Array], Array], period: float) -> float:
    """How well a form, over and over, explains values, both as logarithms."""
    known = np.isfinite(values)
    if known.sum() < 0.6 * len(values):
        return 0.0
    size = np.where(known, np.log(np.where(known, values, 1)), np.nan)
    t, spread, best = np.arange(len(size)) / FPS, np.nanvar(size), 0.0
    for seconds in period * np.linspace(0.75, 1.4, 7):
        for phase in np.arange(0, 1, 0.05):
            shape = np.log(form(t / seconds + phase))
            (scale, _), left = fitted(size, [shape, np.ones_like(shape)])
            if 0.5 < scale < 1.6:
                best = max(best, 1 - left / max(spread, 1e-9))
    return best
