"""Which setting stands behind the object, and what of a picture it leaves unexplained."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from train import settings
from train.attributes import SETTINGS, TIMES

Array = np.ndarray
SHIFTS = np.linspace(-0.06, 0.06, 7)
DRIFTS = 26  # places of the clouds, which drift all the way round
COARSE = 4  # pixels to a side of what templates are compared on
CLIP = 0.20  # a pixel further off than this is the object's, or wrong anyway
FARTHEST = 0.075  # mean distance from which on it is no setting at all
SIGMAS = (0.0, 0.5, 0.8, 1.1, 1.5, 2.0)  # of the softness that a clip may have
SOFT = 0.7  # pixels by which pictures are blurred before they are compared
SLACK = 0.03  # how far from the template a pixel may be: a slight shift of colour, noise


@dataclass(frozen=True)
class Match:
    """The template nearest to a clip."""

    setting: str
    time: str
    shift: float
    distance: float
    second: float  # distance of the nearest template of another setting

    @property
    def verdict(self) -> str | None:
        return self.setting if self.distance < FARTHEST else None


class Backgrounds:
    """Templates of all settings for one size of picture."""

    def __init__(self, width: int, height: int):
        rows = (np.arange(height, dtype=np.float32) + 0.5) / height
        columns = (np.arange(width, dtype=np.float32) + 0.5) / height
        self.y, self.x = np.meshgrid(rows, columns, indexing="ij")
        self.aspect = width / height
        self.names = [(s, t, shift) for s in SETTINGS for t in TIMES for shift in self.shifts(s)]
        self.coarse = np.stack([coarse(self.draw(*name)) for name in self.names])

    def shifts(self, setting: str) -> Array:
        if setting == "sky":
            return np.arange(DRIFTS) * self.aspect / DRIFTS
        return SHIFTS

    def draw(self, setting: str, time: str, shift: float, seconds: float = 0.0) -> Array:
        """`(H, W, 3)` in 0..1."""
        picture = settings.draw(setting, time, self.x, self.y, shift, seconds)
        return np.clip(picture, 0, 1).astype(np.float32)

    def match(self, clip: Array) -> Match:
        """The best template for `(T, H, W, 3)` in 0..1."""
        frames = np.stack([coarse(frame) for frame in clip[::4]])
        distances = np.zeros(len(self.names))
        for frame in frames:
            away = np.abs(self.coarse - frame).mean(-1)
            distances += np.minimum(away, CLIP).mean((1, 2)) / len(frames)
        best = int(distances.argmin())
        setting, time, shift = self.names[best]
        others = [d for d, name in zip(distances, self.names) if name[0] != setting]
        return Match(setting, time, float(shift), float(distances[best]), float(min(others)))

    def unexplained(self, clip: Array, match: Match) -> tuple[Array, Array]:
        """`(T, H, W)` of how far each pixel is from the setting, and the setting `(T, H, W, 3)`."""
        places, away = np.empty_like(clip), np.empty(clip.shape[:3], np.float32)
        shifts = self.shifts(match.setting)
        shift = self.aligned(clip[0], match, match.shift, float(shifts[1] - shifts[0]))
        sigma = self.softness(clip[0], match, shift)
        bounds = self.envelope(match, shift, sigma)
        for i, frame in enumerate(clip):
            if match.setting == "sky" and i % 4 == 3:  # clouds drift
                shift = self.aligned(frame, match, shift, 0.012)
                bounds = self.envelope(match, shift, sigma)
            places[i], low, high = bounds
            soft = blurred(frame)
            off = np.median((soft - places[i])[::2, ::2], axis=(0, 1)).clip(-SLACK, SLACK)
            out = np.maximum(low - soft + off, soft - off - high) - SLACK
            away[i] = np.sqrt((np.maximum(out, 0) ** 2).sum(-1))
            places[i] += off  # a slight shift of colour is forgiven
        return away, places

    def aligned(self, frame: Array, match: Match, shift: float, reach: float) -> float:
        """The shift nearby that fits best."""
        while reach > 0.004:
            tries = shift + reach * np.array((-1, -0.5, 0, 0.5, 1))
            misses = [self.miss(frame[::3], match, s) for s in tries]
            shift, reach = float(tries[int(np.argmin(misses))]), reach / 2
        return shift

    def miss(self, frame: Array, match: Match, shift: float) -> float:
        """How far every third row is from the setting."""
        place = settings.draw(match.setting, match.time, self.x[::3], self.y[::3], shift, 0.0)
        return float(np.minimum(np.abs(np.clip(place, 0, 1) - frame), CLIP).mean())

    def softness(self, frame: Array, match: Match, shift: float) -> float:
        """How much the setting has to be blurred to be like the frame."""
        place = self.draw(match.setting, match.time, shift)
        misses = [np.minimum(np.abs(blurred(place, s) - frame), CLIP).mean() for s in SIGMAS]
        return SIGMAS[int(np.argmin(misses))]

    def envelope(self, match: Match, shift: float, sigma: float) -> tuple[Array, Array, Array]:
        """The setting, and the least and the most of it about a pixel and, of water, over time."""
        moments = np.arange(0, 3.0, 0.5) if match.setting in ("sea", "beach") else (0.0,)
        drawn = [self.draw(match.setting, match.time, shift, s) for s in moments]
        drawn = [blurred(picture, float(np.hypot(sigma, SOFT))) for picture in drawn]
        low, high = np.minimum.reduce(drawn), np.maximum.reduce(drawn)
        size = (3, 3, 1)
        return np.mean(drawn, 0), ndimage.minimum_filter(low, size), ndimage.maximum_filter(high, size)


def coarse(picture: Array) -> Array:
    """`(H, W, 3)` by areas of COARSE pixels."""
    h, w = (n // COARSE * COARSE for n in picture.shape[:2])
    parts = picture[:h, :w].reshape(h // COARSE, COARSE, w // COARSE, COARSE, 3)
    return parts.mean((1, 3), dtype=np.float32)


def blurred(picture: Array, sigma: float = SOFT) -> Array:
    return ndimage.gaussian_filter(picture, (sigma, sigma, 0))
