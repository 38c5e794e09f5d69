"""Draws how losses fall; of the transformer's training a panel for each of what it learns, as far as it has come.

    python -m train.curves --run RUN --out losses.png

From one line of the log to the next are 25 updates, few of which are of one loss: in grey as they are told, in black
their mean over an eighth of all. On a logarithmic scale; a line down the panel is where another stage begins.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

OTHER = ("stage", "step", "seconds")  # of a line of the log, what is no loss
WIDTH, HEIGHT, MARGIN = 640, 160, 16
INK, TOLD, EDGE = "black", "darkgray", "lightgray"


def draw(log: Path) -> Image.Image:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    names = sorted({name for line in lines for name in line} - set(OTHER))
    columns = across(len(lines))
    begun = [c for c, before, after in zip(columns[1:], lines, lines[1:]) if before["stage"] != after["stage"]]
    picture = Image.new("RGB", (WIDTH, HEIGHT * len(names)), "white")
    for number, name in enumerate(names):
        told = [index for index, line in enumerate(lines) if name in line]
        losses = [lines[index][name] for index in told]
        picture.paste(panel(name, losses, columns[told], begun), (0, HEIGHT * number))
    return picture


def across(count: int) -> np.ndarray:
    """Columns of so many values, from one margin to the other."""
    return np.linspace(MARGIN, WIDTH - MARGIN, max(count, 2))[:count]


def panel(name: str, losses: Sequence[float], columns: np.ndarray, begun: Sequence[float] = ()) -> Image.Image:
    """One loss, its name, and what it was at first and is at last, in the mean; lines stand at the columns `begun`."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen = ImageDraw.Draw(picture)
    for column in begun:
        pen.line([(column, 0), (column, HEIGHT)], fill=EDGE)
    losses = np.array(losses)
    means = smooth(losses)
    for values, colour in ((losses, TOLD), (means, INK)):
        pen.line(list(zip(columns, heights(values, losses))), fill=colour)
    pen.text((MARGIN, 2), f"{name}: {means[0]:.3f} to {means[-1]:.3f}", fill=INK)
    pen.line([(0, HEIGHT - 1), (WIDTH, HEIGHT - 1)], fill=EDGE)
    return picture


def smooth(losses: np.ndarray) -> np.ndarray:
    """The mean over an eighth of all; of as many as there are at the ends."""
    half = len(losses) // 16
    return np.array([losses[max(0, i - half) : i + half + 1].mean() for i in range(len(losses))])


def heights(values: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Where values are in the panel of such losses, from its top."""
    logs = np.log(losses)
    return (logs.max() - np.log(values)) / max(np.ptp(logs), 1e-6) * (HEIGHT - 3 * MARGIN) + 2 * MARGIN


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    draw(args.run / "dit.jsonl").save(args.out)


if __name__ == "__main__":
    main()
