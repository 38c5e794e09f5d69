"""Draws the losses of the transformer's training, as far as it has come: a panel for each of what it learns.

    python -m train.curves --run RUN --out losses.png

From one line of the log to the next are 25 updates, few of which are of one loss: in grey as they are told, in black
their mean over an eighth of all. On a logarithmic scale; a line down the panel is where another stage begins.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

OTHER = ("stage", "step", "seconds")  # of a line of the log, what is no loss
WIDTH, HEIGHT, MARGIN = 640, 160, 16
INK, TOLD, EDGE = "black", "darkgray", "lightgray"


def draw(log: Path) -> Image.Image:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    names = sorted({name for line in lines for name in line} - set(OTHER))
    picture = Image.new("RGB", (WIDTH, HEIGHT * len(names)), "white")
    for number, name in enumerate(names):
        picture.paste(panel(lines, name), (0, HEIGHT * number))
    return picture


def panel(lines: list[dict], name: str) -> Image.Image:
    """One loss, its name, and what it was at first and is at last, in the mean."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen = ImageDraw.Draw(picture)
    columns = np.linspace(MARGIN, WIDTH - MARGIN, max(len(lines), 2))
    for column, before, after in zip(columns[1:], lines, lines[1:]):
        if before["stage"] != after["stage"]:
            pen.line([(column, 0), (column, HEIGHT)], fill=EDGE)
    told = [index for index, line in enumerate(lines) if name in line]
    losses = np.array([lines[index][name] for index in told])
    means = smooth(losses)
    for values, colour in ((losses, TOLD), (means, INK)):
        pen.line(list(zip(columns[told], heights(values, losses))), fill=colour)
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
