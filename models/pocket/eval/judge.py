"""Judges clips by their pixels alone: setting, hour, colour, kind and motion of the object."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from train.attributes import Scene

from . import colours, kinds, motions, objects
from .background import Backgrounds, Match

Array = np.ndarray
ATTRIBUTES = ("colour", "setting", "kind", "motion")


@dataclass(frozen=True)
class Verdict:
    """What a clip shows, `None` for what cannot be told, and the evidence for it."""

    setting: str | None
    time: str
    colour: str | None
    kind: str | None
    motion: str | None
    background: Match
    hue: colours.Hue
    outline: kinds.Outline
    movement: motions.Motion
    found: objects.Track

    def right(self, scene: Scene) -> dict[str, bool]:
        """By attribute, whether it is what the scene asked for."""
        return {name: getattr(self, name) == getattr(scene, name) for name in (*ATTRIBUTES, "time")}


@cache
def backgrounds(width: int, height: int) -> Backgrounds:
    return Backgrounds(width, height)


def judge(clip: Array) -> Verdict:
    """Of frames `(T, H, W, 3)` in u8, 16 a second."""
    clip = clip.astype(np.float32) / 255
    back = backgrounds(clip.shape[2], clip.shape[1])
    match = back.match(clip)
    away, places = back.unexplained(clip, match)
    found = objects.track(clip, away, places)
    hue = colours.name(objects.pixels(found, clip), match.time)
    if hue.verdict:
        found = objects.refined(found, clip, places, hue.verdict, match.time)
    outline = kinds.name(found, away)
    movement = motions.name(found, outline)
    kind, motion = (outline.verdict, movement.verdict) if hue.solid else (None, None)
    return Verdict(match.verdict, match.time, hue.verdict, kind, motion,
                   match, hue, outline, movement, found)  # fmt: skip
