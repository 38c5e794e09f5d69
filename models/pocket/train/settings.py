"""The places that objects move in: pictures in linear steps from 0 to 1, drawn without an object.

A place is drawn for coordinates (x, y), y from 0 at the top to 1 at the bottom, x in the same
units, a time of day, and a `shift` that moves what stands in it a little to the side.
"""

import numpy as np

Array = np.ndarray

# Colours of the sky (top, horizon), of what light does to the ground, and of the water.
SKY = {
    "day": ((0.33, 0.58, 0.88), (0.76, 0.88, 0.96)),
    "dusk": ((0.38, 0.28, 0.50), (0.97, 0.64, 0.42)),
    "night": ((0.05, 0.07, 0.19), (0.17, 0.21, 0.38)),
}
LIGHT = {"day": (1.0, 1.0, 1.0), "dusk": (0.86, 0.66, 0.60), "night": (0.30, 0.36, 0.54)}
WATER = {
    "day": ((0.16, 0.45, 0.62), (0.36, 0.66, 0.76)),
    "dusk": ((0.32, 0.25, 0.42), (0.80, 0.52, 0.45)),
    "night": ((0.05, 0.10, 0.22), (0.14, 0.22, 0.36)),
}
# Where the sun or the moon stands, its radius and colour.
LAMP = {
    "day": (0.82, 0.16, 0.07, (1.0, 0.97, 0.80)),
    "dusk": (0.80, 0.40, 0.09, (1.0, 0.82, 0.52)),
    "night": (0.80, 0.17, 0.06, (0.93, 0.94, 0.88)),
}


def draw(setting: str, time: str, x: Array, y: Array, shift: float, seconds: float) -> Array:
    """`(H, W, 3)` in 0..1 of a place at a moment; only water and clouds move, and slowly."""
    place = Place(time, x, y, shift, seconds)
    PAINTERS[setting](place)
    return place.picture


# Where nothing moves, one picture serves a whole clip.
MOVING = ("sky", "sea", "beach")


def step(edge: Array | float, value: Array, soft: float = 0.012) -> Array:
    """0 where value is below the edge, 1 above it, smooth over `soft`."""
    t = np.clip((value - edge) / soft + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


class Place:
    """A picture that is painted from back to front."""

    def __init__(self, time: str, x: Array, y: Array, shift: float, seconds: float):
        self.time, self.y, self.seconds = time, y, seconds
        self.width = float(x.max())
        self.x = x + shift
        self.still_x = x
        self.picture = self.gradient(*SKY[time], y)
        self.lamp()

    def gradient(self, top: tuple, bottom: tuple, at: Array) -> Array:
        t = np.clip(at, 0, 1)[..., None]
        return np.asarray(top, np.float32) * (1 - t) + np.asarray(bottom, np.float32) * t

    def paint(self, colour, mask: Array, lit: bool = True) -> None:
        light = LIGHT[self.time] if lit else (1.0, 1.0, 1.0)
        colour = np.asarray(colour, np.float32) * np.asarray(light, np.float32)
        self.picture = self.picture + (colour - self.picture) * mask[..., None]

    def lamp(self) -> None:
        across, down, radius, colour = LAMP[self.time]
        away = np.hypot(self.still_x - across * self.width, self.y - down)
        self.paint(colour, 0.35 * np.clip(1 - away / (4 * radius), 0, 1) ** 2, lit=False)
        self.paint(colour, 1 - step(radius, away, 0.02), lit=False)

    def water(self, top: float) -> None:
        depth = np.clip((self.y - top) / (1 - top), 0, 1)
        ripple = np.sin(46 * depth**0.6 + 1.3 * np.sin(7 * self.x + 9 * depth) - 2.1 * self.seconds)
        colour = self.gradient(WATER[self.time][1], WATER[self.time][0], depth)
        colour = colour * (1 + 0.09 * ripple[..., None] * depth[..., None] ** 0.5)
        self.paint(colour, step(top, self.y), lit=False)

    def ridge(self, base: float, waves: tuple, colour) -> Array:
        """A hill line of sines (height, frequency, phase), filled downwards; returns its edge."""
        edge = base - sum(h * np.sin(f * self.x + p) for h, f, p in waves)
        self.paint(colour, step(edge, self.y))
        return edge

    def trees(self, base: float, pitch: float, height: float, colour) -> None:
        """A row of conifers that stand on `base`."""
        number = np.floor(self.x / pitch)
        tall = height * (0.75 + 0.25 * np.sin(5.1 * number + 1.0))
        beside = np.abs(self.x / pitch - number - 0.5) * pitch
        up = (base - self.y) / tall
        tier = 0.30 * tall * (1 - up) * (0.85 + 0.3 * ((3 * up) % 1.0 < 0.5))
        self.paint(colour, step(0, tier - beside) * step(0, base - self.y) * (up < 1))

    def stars(self) -> None:
        if self.time != "night":
            return
        near = np.zeros_like(self.y)
        for i in range(14):
            sx, sy = (0.618 * i + 0.13) % 1 * self.width, 0.04 + (0.377 * i) % 1 * 0.42
            square = (self.still_x - sx) ** 2 + (self.y - sy) ** 2
            near = np.maximum(near, 1 - square / 0.014**2)
        self.paint((0.85, 0.88, 0.95), near, lit=False)


def sky(place: Place) -> None:
    place.stars()
    cloud = {"day": (1.0, 1.0, 1.0), "dusk": (0.98, 0.72, 0.62), "night": (0.28, 0.32, 0.47)}
    puffs = ((0.16, 0.24, 0.13), (0.30, 0.28, 0.10), (0.66, 0.62, 0.15), (0.82, 0.67, 0.11),
             (0.10, 0.80, 0.12), (0.24, 0.84, 0.09), (0.56, 0.10, 0.08))
    drift = 0.02 * place.seconds
    for across, down, radius in puffs:
        dx = (place.x + drift - across * place.width + 0.5 * place.width) % place.width
        dx = dx - 0.5 * place.width
        away = np.hypot(dx / 1.7, place.y - down)
        place.paint(cloud[place.time], 0.9 * (1 - step(radius, away, 0.07)), lit=False)


def sea(place: Place) -> None:
    place.stars()
    place.water(0.46)


def beach(place: Place) -> None:
    place.stars()
    place.water(0.40)
    shore = 0.66 + 0.03 * np.sin(3.1 * place.x) + 0.012 * np.sin(1.9 * place.seconds)
    place.paint((0.95, 0.97, 0.97), step(shore - 0.035, place.y, 0.03))
    place.paint((0.92, 0.82, 0.60), step(shore, place.y, 0.03))
    place.paint((0.84, 0.72, 0.50), 0.6 * step(0.90 + 0.03 * np.sin(5 * place.x), place.y, 0.1))
    palm(place, 0.13 * place.width)


def palm(place: Place, foot: float) -> None:
    up = np.clip((0.80 - place.y) / 0.5, 0, 1)
    trunk = np.abs(place.x - foot - 0.07 * up**2) - 0.018 + 0.008 * up
    place.paint((0.45, 0.32, 0.20), step(0, -trunk) * step(0.30, place.y) * step(0, 0.80 - place.y))
    dx, dy = place.x - foot - 0.07, place.y - 0.30
    angle, away = np.arctan2(dy, dx), np.hypot(dx, dy)
    leaf = 0.19 * (0.45 + 0.55 * np.abs(np.cos(2.5 * angle + 0.4))) - away
    place.paint((0.18, 0.46, 0.22), step(0, leaf, 0.02))


def desert(place: Place) -> None:
    place.stars()
    place.ridge(0.52, ((0.06, 2.3, 0.4), (0.02, 5.0, 1.0)), (0.90, 0.66, 0.42))
    place.ridge(0.66, ((0.07, 1.9, 2.6), (0.015, 6.1, 0.0)), (0.84, 0.56, 0.32))
    edge = place.ridge(0.82, ((0.05, 2.7, 4.4),), (0.93, 0.69, 0.44))
    place.paint((0.99, 0.80, 0.56), 0.5 * step(edge, place.y) * (1 - step(edge + 0.05, place.y, 0.06)))
    cactus(place, 0.14 * place.width)


def cactus(place: Place, foot: float) -> None:
    def bar(x0: float, x1: float, y0: float, y1: float) -> Array:
        dx = np.maximum(np.maximum(x0 - place.x, place.x - x1), 0)
        dy = np.maximum(np.maximum(y0 - place.y, place.y - y1), 0)
        return np.hypot(dx, dy) - 0.022

    parts = (bar(foot, foot, 0.42, 0.80), bar(foot - 0.09, foot, 0.60, 0.60),
             bar(foot - 0.09, foot - 0.09, 0.50, 0.60), bar(foot, foot + 0.08, 0.54, 0.54),
             bar(foot + 0.08, foot + 0.08, 0.46, 0.54))
    place.paint((0.24, 0.50, 0.28), step(0, -np.minimum.reduce(parts)))


def snow(place: Place) -> None:
    place.stars()
    place.ridge(0.50, ((0.05, 2.1, 1.0), (0.02, 4.3, 0.2)), (0.74, 0.80, 0.90))
    place.trees(0.62, 0.16, 0.20, (0.20, 0.36, 0.36))
    edge = place.ridge(0.64, ((0.03, 2.5, 3.0),), (0.86, 0.90, 0.96))
    place.paint((0.93, 0.96, 1.0), step(edge + 0.16, place.y, 0.2))


def forest(place: Place) -> None:
    place.stars()
    place.ridge(0.40, ((0.04, 2.9, 0.6),), (0.38, 0.56, 0.42))
    place.trees(0.62, 0.15, 0.46, (0.16, 0.40, 0.24))
    place.trees(0.72, 0.24, 0.58, (0.10, 0.31, 0.18))
    place.paint((0.30, 0.48, 0.22), step(0.70, place.y, 0.02))
    place.paint((0.38, 0.56, 0.26), step(0.84 + 0.02 * np.sin(4 * place.x), place.y, 0.08))


def city(place: Place) -> None:
    place.stars()
    buildings(place, 0.19, 0.30, 0.26, 2.3, (0.58, 0.60, 0.68))
    buildings(place, 0.26, 0.44, 0.24, 4.1, (0.42, 0.44, 0.52))
    place.paint((0.30, 0.31, 0.34), step(0.82, place.y))
    place.paint((0.62, 0.62, 0.60), step(0.80, place.y) * (1 - step(0.83, place.y)))
    dash = step(0.5, (place.x * 4) % 1.0, 0.1) * step(0.90, place.y) * (1 - step(0.925, place.y))
    place.paint((0.90, 0.85, 0.60), 0.8 * dash)


def buildings(place: Place, pitch: float, top: float, spread: float, salt: float, colour) -> None:
    number = np.floor(place.x / pitch)
    roof = top + spread * (0.5 + 0.5 * np.sin(salt * number + salt))
    inside = place.x / pitch - number
    wall = step(roof, place.y) * step(0.05, inside, 0.05) * (1 - step(0.95, inside, 0.05))
    place.paint(colour, wall)
    pane = step(0.45, (inside * 4) % 1.0, 0.2) * step(0.5, (place.y / 0.07) % 1.0, 0.2)
    lit = (0.98, 0.85, 0.50) if place.time != "day" else (0.74, 0.84, 0.92)
    shown = wall * step(roof + 0.04, place.y) * (1 - step(0.79, place.y))
    place.paint(lit, 0.8 * pane * shown, lit=False)


def mountains(place: Place) -> None:
    place.stars()
    for base, high, pitch, at, colour in ((0.66, 0.42, 0.62, 0.1, (0.54, 0.58, 0.68)),
                                          (0.70, 0.34, 0.50, 0.4, (0.42, 0.45, 0.54))):
        beside = np.abs((place.x + at) / pitch % 1.0 - 0.5) * 2
        edge = base - high * (1 - beside) - 0.012 * np.sin(31 * place.x)
        place.paint(colour, step(edge, place.y))
        cap = edge + 0.10 + 0.03 * np.sin(40 * place.x)
        place.paint((0.93, 0.95, 0.98), step(edge, place.y) * (1 - step(cap, place.y, 0.03)) * (beside < 0.45))
    place.ridge(0.72, ((0.03, 3.0, 1.0),), (0.42, 0.56, 0.32))
    place.ridge(0.86, ((0.02, 3.7, 0.0),), (0.52, 0.64, 0.36))


PAINTERS = {
    "sky": sky, "sea": sea, "beach": beach, "desert": desert,
    "snow": snow, "forest": forest, "city": city, "mountains": mountains,
}
