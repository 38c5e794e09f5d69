"""The picture of the losses."""

import json
import tempfile
import unittest
from pathlib import Path

import numpy as np

from .curves import HEIGHT, MARGIN, WIDTH, draw

DARK = 128


class Curves(unittest.TestCase):
    def draw(self, *lines: dict) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "dit.jsonl"
            log.write_text("".join(json.dumps(line) + "\n" for line in lines))
            return np.asarray(draw(log))

    def height(self, picture: np.ndarray, column: int) -> float:
        """Of the curve, below the words, from the top."""
        return np.flatnonzero(picture[MARGIN : HEIGHT - 1, column].max(1) < DARK).mean()

    def test_a_loss_that_falls_goes_down_and_one_that_is_told_rarely_is_drawn(self):
        lines = [{"stage": "full", "step": 25 * n, "seconds": n, "cuts": 0.5 / n} for n in range(1, 5)]
        lines[0]["alone"], lines[3]["alone"] = 0.1, 0.4
        picture = self.draw(*lines)
        self.assertEqual(picture.shape, (2 * HEIGHT, WIDTH, 3))
        alone, cuts = picture[:HEIGHT], picture[HEIGHT:]
        ends = MARGIN + 2, WIDTH - MARGIN - 2
        self.assertGreater(*(self.height(alone, column) for column in ends))
        self.assertLess(*(self.height(cuts, column) for column in ends))

    def test_another_stage_is_marked(self):
        lines = [{"stage": stage, "step": 25, "seconds": 9, "cuts": 0.5} for stage in ("full", "full", "rollout")]
        grey = (self.draw(*lines)[HEIGHT - 3] < 255).all(1)
        self.assertEqual(np.flatnonzero(grey).tolist(), [WIDTH - MARGIN])

    def test_one_line_is_enough(self):
        self.assertEqual(self.draw({"stage": "full", "step": 25, "seconds": 1, "cuts": 0.5}).shape[0], HEIGHT)
