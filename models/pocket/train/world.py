"""The world that pocket learns: one lit object moves in a setting, for ever.

A frame is a function of the scenes so far, of a `Variation` and of its number: no state, so a
stream may be drawn from any frame on. Units: a picture is 1 high, y points down.
"""

from dataclasses import dataclass

import numpy as np

from . import settings, shapes
from .attributes import VALUES, Scene

FPS = 16
GROUND = 0.89  # where bouncing things touch it
RADIUS = {"small": 0.18, "medium": 0.23, "large": 0.28}
COLOUR = {
    "red": (0.88, 0.10, 0.10), "orange": (1.00, 0.48, 0.02), "yellow": (1.00, 0.88, 0.08),
    "green": (0.12, 0.70, 0.18), "cyan": (0.08, 0.82, 0.86), "blue": (0.10, 0.24, 0.92),
    "purple": (0.50, 0.12, 0.78), "pink": (1.00, 0.44, 0.70), "white": (0.97, 0.97, 0.97),
    "black": (0.06, 0.06, 0.07),
}
# What the hour does to an object; it stays bright enough to tell its colour.
TINT = {"day": (1.0, 1.0, 1.0), "dusk": (1.0, 0.92, 0.86), "night": (0.80, 0.82, 0.88)}
BLOCK = 0.75  # seconds of a block of the transformer
# Seconds that a motion takes to come back to where it was, and where in it a stream starts. Whole
# blocks: so there are few ways for a block to go on.
PERIOD = {"left": 9 * BLOCK, "right": 9 * BLOCK, "rising": 7 * BLOCK, "falling": 7 * BLOCK,
          "bouncing": 2 * BLOCK, "spinning": 4 * BLOCK, "circling": 5 * BLOCK, "growing": 5 * BLOCK}
START = {"left": 0.30, "right": 0.30, "rising": 0.30, "falling": 0.30, "bouncing": 0.5,
         "spinning": 0.0, "circling": 0.0, "growing": 0.0}
THICKNESS = 0.4  # of a thing that spins, of its width
LIGHT = np.array((-0.45, -0.66, 0.60), np.float32)
HALF = np.array((-0.252, -0.369, 0.894), np.float32)  # between the light and the eye


@dataclass(frozen=True)
class Variation:
    """What two streams of the same prompt differ in."""

    phase: float = 0.0
    across: float = 0.0
    down: float = 0.0
    size: float = 1.0
    shift: float = 0.0

    @staticmethod
    def random(rng: np.random.Generator) -> "Variation":
        u = rng.uniform(-1, 1, 5)
        return Variation(0.006 * u[0], 0.012 * u[1], 0.01 * u[2], 1 + 0.02 * u[3], 0.06 * u[4])


@dataclass(frozen=True)
class Pose:
    """Where the object is, how large, how squashed by a landing, and how it is turned to the eye."""

    x: float
    y: float
    radius: float
    squash: float = 0.0
    width: float = 1.0  # of its own
    light: float = 1.0  # that falls on what is seen of it


@dataclass(frozen=True)
class Cut:
    """A scene and the frame from which it is shown."""

    frame: int
    scene: Scene


class World:
    """Draws frames of one size."""

    def __init__(self, width: int, height: int):
        self.aspect = width / height
        rows = (np.arange(height, dtype=np.float32) + 0.5) / height
        columns = (np.arange(width, dtype=np.float32) + 0.5) / height
        self.y, self.x = np.meshgrid(rows, columns, indexing="ij")
        self.pixel = 1 / height
        self.last: tuple = (None, None)  # the place drawn last, by what it depends on

    def clip(self, cuts: list[Cut], variation: Variation, first: int, frames: int) -> np.ndarray:
        """`(frames, H, W, 3)` in u8 from frame `first` on; the first cut is at frame 0."""
        return np.stack([self.frame(cuts, variation, first + i) for i in range(frames)])

    def frame(self, cuts: list[Cut], variation: Variation, number: int) -> np.ndarray:
        scene, since = current(cuts, number)
        pose = self.pose(scene, variation, (number - since) / FPS)
        picture = self.place(scene, variation.shift, number / FPS).copy()
        self.shadow(picture, scene, pose)
        self.object(picture, scene, pose)
        return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)

    def place(self, scene: Scene, shift: float, seconds: float) -> np.ndarray:
        moment = seconds if scene.setting in settings.MOVING else 0.0
        key = (scene.setting, scene.time, shift, moment)
        if self.last[0] != key:
            x, y = self.x, self.y
            self.last = (key, settings.draw(scene.setting, scene.time, x, y, shift, moment))
        return self.last[1]

    def pose(self, scene: Scene, variation: Variation, seconds: float) -> Pose:
        """The object's place so many seconds after its motion began."""
        radius = RADIUS[scene.size] * variation.size
        turn = START[scene.motion] + variation.phase + seconds / PERIOD[scene.motion]
        x, y = 0.5 * self.aspect + variation.across, 0.52 + variation.down
        return MOTIONS[scene.motion](turn, x, y, radius, self.aspect)

    def shadow(self, picture: np.ndarray, scene: Scene, pose: Pose) -> None:
        if scene.setting in ("sky", "sea"):
            return
        lift = max(0.0, 0.90 - pose.y - pose.radius)
        away = np.hypot((self.x - pose.x) / (pose.radius * 1.15), (self.y - 0.905) / (pose.radius * 0.30))
        dark = 0.45 * np.clip(1.25 - away, 0, 1) / (1 + 4 * lift)
        picture *= 1 - np.clip(dark, 0, 1)[..., None]

    def object(self, picture: np.ndarray, scene: Scene, pose: Pose) -> None:
        reach = 1.25 * pose.radius + 2 * self.pixel
        rows = self.span(pose.y, reach, self.y.shape[0])
        columns = self.span(pose.x, reach, self.x.shape[1])
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return
        part = (rows, columns)
        colour, cover = self.shaded(scene, pose, self.x[part], self.y[part])
        picture[part] += (colour - picture[part]) * cover[..., None]

    def span(self, centre: float, reach: float, length: int) -> slice:
        low, high = (centre - reach) / self.pixel, (centre + reach) / self.pixel
        return slice(max(0, int(low)), min(length, int(high) + 1))

    def shaded(self, scene: Scene, pose: Pose, x: np.ndarray, y: np.ndarray):
        """Colour and coverage of the object for each pixel."""
        across, down = pose.width * (1 + 0.5 * pose.squash), 1 - pose.squash

        def outline(dx: float = 0.0, dy: float = 0.0):
            u = (x - pose.x) / (pose.radius * np.float32(across)) + dx
            v = (y - pose.y) / (pose.radius * np.float32(down)) + dy
            return shapes.distance(scene.kind, u, v), u

        (d, side), eps = outline(), 0.02
        gradient = ((outline(dx=eps)[0] - d) / eps, (outline(dy=eps)[0] - d) / eps)
        light = lighting(d, gradient, bevel=1.0 if scene.kind == "ball" else 0.4)
        base = np.array(COLOUR[scene.colour], np.float32) * np.array(TINT[scene.time], np.float32)
        half = pose.light * (1 - 0.34 * settings.step(0.0, side, 0.16))  # one half is darker
        soft = self.pixel / pose.radius
        rim = 1 - 0.55 * settings.step(-2.2 * soft, d, 2 * soft)
        colour = base * (light[0] * half * rim)[..., None] + light[1][..., None]
        return colour, 1 - settings.step(0.0, d, 1.4 * soft)

    def random_clip(self, rng: np.random.Generator, frames: int) -> np.ndarray:
        """Any scene from any frame on, sometimes cut to another: what the auto-encoder is looked at with."""
        first = int(rng.integers(0, 160))
        cuts = [Cut(0, random_scene(rng))]
        if rng.random() < 0.25:
            cuts.append(Cut(first + int(rng.integers(1, frames)), random_scene(rng)))
        return self.clip(cuts, Variation.random(rng), first, frames)


def current(cuts: list[Cut], number: int) -> tuple[Scene, int]:
    """The scene of a frame, and the frame at which its motion began."""
    shown = [cut for cut in cuts if cut.frame <= number]
    since = shown[0].frame
    for before, after in zip(shown, shown[1:]):
        if before.scene.motion != after.scene.motion:
            since = after.frame
    return shown[-1].scene, since


def lighting(d: np.ndarray, gradient: tuple, bevel: float) -> tuple[np.ndarray, np.ndarray]:
    """Diffuse factor and highlight of a solid whose rim is rounded over `bevel` of its radius."""
    rim = 1 - np.clip(-d / bevel, 0, 1)
    up = np.sqrt(np.clip(1 - rim * rim, 0, 1))
    normal = (gradient[0] * rim, gradient[1] * rim, up)
    length = np.sqrt(sum(n * n for n in normal)) + 1e-6
    toward = np.clip(sum(n * l for n, l in zip(normal, LIGHT)) / length, 0, 1)
    glint = np.clip(sum(n * h for n, h in zip(normal, HALF)) / length, 0, 1) ** 40
    return 0.45 + 0.75 * toward, 0.30 * glint


def across(direction: int):
    def pose(turn: float, x: float, y: float, radius: float, aspect: float) -> Pose:
        along = turn % 1.0 * (aspect + 2 * radius) - radius
        return Pose(along if direction > 0 else aspect - along, y, radius)
    return pose


def upright(direction: int):
    def pose(turn: float, x: float, y: float, radius: float, aspect: float) -> Pose:
        along = turn % 1.0 * (1 + 2 * radius) - radius
        return Pose(x, along if direction > 0 else 1 - along, radius)
    return pose


def bouncing(turn: float, x: float, y: float, radius: float, aspect: float) -> Pose:
    t = turn % 1.0
    high = 4 * t * (1 - t)
    low = GROUND - radius * 0.9
    return Pose(x, low - high * (low - radius - 0.02), radius, squash=0.22 * max(0.0, 1 - 7 * high))


def spinning(turn: float, x: float, y: float, radius: float, aspect: float) -> Pose:
    """About an upright axis, like a sign that has two faces: after half a turn it looks the same."""
    angle = 2 * np.pi * turn
    width = np.hypot(np.cos(angle), THICKNESS * np.sin(angle))
    return Pose(x, y, 1.1 * radius, width=width, light=1 - 0.2 * np.sin(2 * angle))


def circling(turn: float, x: float, y: float, radius: float, aspect: float) -> Pose:
    angle = 2 * np.pi * turn
    return Pose(x + 0.24 * np.cos(angle), y + 0.16 * np.sin(angle), radius)


def growing(turn: float, x: float, y: float, radius: float, aspect: float) -> Pose:
    return Pose(x, y, radius * (0.95 - 0.35 * np.cos(2 * np.pi * turn)))


MOTIONS = {
    "left": across(-1), "right": across(1), "rising": upright(-1), "falling": upright(1),
    "bouncing": bouncing, "spinning": spinning, "circling": circling, "growing": growing,
}


def random_scene(rng: np.random.Generator) -> Scene:
    return Scene(*(str(rng.choice(values)) for values in VALUES.values()))
