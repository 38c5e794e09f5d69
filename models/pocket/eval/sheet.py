"""Pictures of clips: a contact sheet (rows: prompts, columns: frames) and a strip of one clip.

    python -m eval.sheet --out OUT --rows 8
"""

import argparse
import shlex
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .prompts import case
from .tool import BINARY, Setting, Tool

Array = np.ndarray
MARGIN, GAP, LINE, LETTER = 150, 3, 12, 6.2  # pixels


def spread(clip: Array, columns: int) -> Array:
    """`(columns, H, W, 3)`: frames at even distances."""
    return clip[np.linspace(0, len(clip) - 1, columns).astype(int)]


def sheet(rows: list[tuple[str, Array]], columns: int = 8) -> Image.Image:
    """Prompts at the left, frames beside them."""
    height, width = rows[0][1].shape[1:3]
    size = (MARGIN + columns * (width + GAP), len(rows) * (height + GAP) - GAP)
    picture = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(11)
    for i, (prompt, clip) in enumerate(rows):
        top = i * (height + GAP)
        text = "\n".join(textwrap.wrap(plain(prompt), int(MARGIN / LETTER))[: height // LINE])
        draw.text((4, top + 2), text, fill="black", font=font)
        for j, frame in enumerate(spread(clip, columns)):
            picture.paste(Image.fromarray(frame), (MARGIN + GAP + j * (width + GAP), top))
    return picture


def strip(clip: Array, columns: int = 8) -> Image.Image:
    """One row of frames, without gaps or text."""
    return Image.fromarray(np.concatenate(list(spread(clip, columns)), axis=1))


def plain(text: str) -> str:
    """What the built-in font can draw."""
    return text.encode("ascii", "replace").decode()


def save(rows: list[tuple[str, Array]], out: Path, columns: int = 8) -> None:
    """Writes `sheet.png`, and `strip.png` of the first row."""
    out.mkdir(parents=True, exist_ok=True)
    sheet(rows, columns).save(out / "sheet.png", optimize=True)
    strip(rows[0][1], columns).save(out / "strip.png", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument("--tool", type=Path, default=BINARY)
    parser.add_argument("--extra", type=shlex.split, default=[], help="more flags for the tool")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--frames", type=int, default=45)
    parser.add_argument("--width", type=int, default=1)
    args = parser.parse_args()
    tool, setting = Tool(args.tool, tuple(args.extra)), Setting(args.width)
    cases = [case(i) for i in range(args.rows)]
    rows = [(c.prompt, tool.clip(c, setting, args.frames)) for c in cases]
    save(rows, args.out, args.columns)


if __name__ == "__main__":
    main()
