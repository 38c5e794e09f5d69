"""What a scene of the world is made of, and what a prompt leaves open."""

from dataclasses import dataclass, fields, replace

KINDS = ("ball", "cube", "triangle", "star", "ring", "heart", "diamond", "cross")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "white", "black")
SETTINGS = ("sky", "sea", "beach", "desert", "snow", "forest", "city", "mountains")
MOTIONS = ("left", "right", "rising", "falling", "bouncing", "spinning", "circling", "growing")
SIZES = ("small", "medium", "large")
TIMES = ("day", "dusk", "night")

# By field of Scene, in its order.
VALUES = {
    "kind": KINDS,
    "colour": COLOURS,
    "setting": SETTINGS,
    "motion": MOTIONS,
    "size": SIZES,
    "time": TIMES,
}

# The colour of an object of which the prompt names none.
OWN_COLOUR = {
    "ball": "red", "cube": "blue", "triangle": "green", "star": "yellow",
    "ring": "orange", "heart": "pink", "diamond": "cyan", "cross": "white",
}


@dataclass(frozen=True)
class Scene:
    """One object that moves in a setting."""

    kind: str = "ball"
    colour: str = "red"
    setting: str = "sky"
    motion: str = "bouncing"
    size: str = "medium"
    time: str = "day"

    def with_changes(self, changes: dict[str, str]) -> "Scene":
        return replace(self, **changes)

    def indices(self) -> list[int]:
        return [VALUES[f.name].index(getattr(self, f.name)) for f in fields(self)]


def first_scene(named: dict[str, str]) -> Scene:
    """The scene of a stream's first prompt, which names some attributes."""
    scene = replace(Scene(), **named)
    return scene if "colour" in named else replace(scene, colour=OWN_COLOUR[scene.kind])


def is_held_out(scene: Scene) -> bool:
    """Whether training never shows this combination: a sixth of all, whatever its size and time.

    Every pair of two attributes is seen with others: what is held out is kind, colour, setting and
    motion together.
    """
    kind, colour, setting, motion, _, _ = scene.indices()
    return (kind + 2 * colour + 3 * setting + 5 * motion) % 6 == 0
