"""The prompts of the evaluation: combinations that training never shows, always the same ones."""

from dataclasses import dataclass

import numpy as np

from train.attributes import VALUES, Scene, is_held_out
from train.captions import caption, edit
from train.world import random_scene

SALT = 777  # apart from what training draws
CHANGES = (("kind", "colour"), ("setting",), tuple(VALUES))  # by turns


@dataclass(frozen=True)
class Case:
    """A stream's prompt, and what it asks for."""

    scene: Scene
    prompt: str
    seed: int


@dataclass(frozen=True)
class Change:
    """A prompt for later blocks, what is to be seen then, in which attributes that differs, and whether it says all."""

    scene: Scene
    prompt: str
    names: tuple[str, ...]
    whole: bool


def case(index: int) -> Case:
    rng = np.random.default_rng((SALT, index))
    scene = held_out(rng)
    return Case(scene, caption(rng, scene, list(VALUES)), 1000 + index)


def change(index: int, whole: bool = False) -> tuple[Case, Change]:
    """Of the object or of the setting, by an edit or by a `whole` prompt, or of everything; held out before and after."""
    before = case(index)
    rng = np.random.default_rng((SALT, index, 1))
    names = CHANGES[index % len(CHANGES)]
    while True:
        other = random_scene(rng)
        values = {n: getattr(other, n) for n in names}
        after = before.scene.with_changes(values)
        differs = all(getattr(before.scene, n) != v for n, v in values.items() if n != "size" and n != "time")
        if differs and is_held_out(after):
            break
    whole = whole or len(names) == len(VALUES)
    text = caption(rng, after, list(VALUES)) if whole else edit(rng, values, before.scene)
    return before, Change(after, text, names, whole)


def held_out(rng: np.random.Generator) -> Scene:
    while not is_held_out(scene := random_scene(rng)):
        pass
    return scene
