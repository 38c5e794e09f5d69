"""The clips that the transformer learns from, in ensembles: any two of an ensemble make a change of prompt.

Some clips of an ensemble show different objects in different places, in the same motion at the same moments: where
one is cut off, another goes on. Others begin another motion there. So a few clips make many changes, and no two
prompts of a change are tied to each other. A clip is BLOCKS blocks; half of the ensembles start a stream.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .attributes import VALUES, Scene, is_held_out
from .clips import BLOCKS, Clip, seen_scene
from .world import random_scene

PLACE, OBJECT = ("setting", "time"), ("kind", "colour", "size")
# How often an attribute of the second place, or object, is another one.
ANEW = {"setting": 0.85, "time": 0.3, "kind": 0.8, "colour": 0.8, "size": 0.15}
ALIKE = 4  # clips of an ensemble in the same motion at the same moments: two objects in two places
RESTARTED = 2  # clips of an ensemble that begin another motion at its cut
MEMBERS = ALIKE + RESTARTED
OTHER, BOTH = {"object": 1, "place": 2}, 3  # bits in which the numbers of two clips alike differ
# Changes by what another clip shows: another object, another place, both, or another motion.
SHARES = {"object": 0.45, "place": 0.2, "both": 0.1, "motion": 0.25}


@dataclass(frozen=True)
class Change:
    """The clip `before` up to block `cut`, and from there on `after`, from its block `entry` on."""

    before: int
    after: int
    cut: int
    entry: int

    def blocks(self) -> list[tuple[int, int]]:
        """Clip and block of each block that is shown."""
        shown = [(self.before, block) for block in range(self.cut)]
        return shown + [(self.after, block - self.cut + self.entry) for block in range(self.cut, BLOCKS)]


@dataclass(frozen=True)
class Ensemble:
    """What its clips are."""

    alike: tuple[Scene, ...]  # object 0 and 1 in place 0, then in place 1
    restarted: tuple[Scene, ...]
    first: int  # stream frame of the first frame
    is_start: bool
    cut: int  # block at which other motions begin

    @staticmethod
    def number(index: int) -> "Ensemble":
        """The same ensemble for the same index, on any machine."""
        rng = np.random.default_rng((2028, index))
        is_start = bool(rng.random() < 0.5)
        first = 0 if is_start else 9 + 12 * int(rng.integers(0, 80))
        alike = alike_scenes(rng)
        restarted = (restarted_scene(rng, alike[0], 0.3), restarted_scene(rng, alike[0], 1.0))
        return Ensemble(alike, restarted, first, is_start, int(rng.integers(2, 4)))

    @cached_property
    def clips(self) -> tuple[Clip, ...]:
        going_on = [Clip((scene,), BLOCKS, self.first, self.is_start) for scene in self.alike]
        begins = self.first + 12 * self.cut - (3 if self.is_start else 0)
        begun = [Clip((self.alike[0], scene), 0, begins, False) for scene in self.restarted]
        return (*going_on, *begun)

    def shows(self, clip: int) -> Scene:
        return (*self.alike, *self.restarted)[clip]

    def change(self, rng: np.random.Generator, cut: int, shown: int) -> Change:
        """Any change at block `cut`, or where motions begin, of which at least `shown` blocks are left."""
        what, before = str(rng.choice(list(SHARES), p=list(SHARES.values()))), int(rng.integers(0, ALIKE))
        if what == "motion" and self.cut + shown <= BLOCKS:
            return Change(before, ALIKE + int(rng.integers(0, RESTARTED)), self.cut, 0)
        return Change(before, before ^ OTHER.get(what, BOTH), cut, cut)

    def changed(self, change: Change) -> dict[str, str]:
        """The attributes in which what is shown differs, and what they are then."""
        before, after = self.shows(change.before), self.shows(change.after)
        return {n: getattr(after, n) for n in VALUES if getattr(after, n) != getattr(before, n)}


def alike_scenes(rng: np.random.Generator) -> tuple[Scene, ...]:
    """Two objects in two places, all four of which may be seen."""
    while True:
        one, other = seen_scene(rng), random_scene(rng)
        place, thing = (
            {n: getattr(other, n) for n in names if rng.random() < ANEW[n]} for names in (PLACE, OBJECT)
        )
        scenes = tuple(one.with_changes(p | t) for p in ({}, place) for t in ({}, thing))
        if len(set(scenes)) == ALIKE and not any(map(is_held_out, scenes)):
            return scenes


def restarted_scene(rng: np.random.Generator, before: Scene, share: float) -> Scene:
    """Another motion, and of the other attributes about `share` anew."""
    while True:
        other = random_scene(rng)
        kept = {n: getattr(before, n) for n in VALUES if n != "motion" and rng.random() >= share}
        after = other.with_changes(kept)
        if after.motion != before.motion and not is_held_out(after):
            return after
