"""When a change counts as seen: streams that the world draws, in place of the element's."""

import io
import unittest
from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

from train.world import Cut, Variation, World

from . import latency
from .latency import FILLED, OF_SETTING, PATIENCE, STEADY, Seen, Takeover, cell, seen
from .prompts import change

TAKEOVER = Takeover("in-flight", 1)


def answer(spans: list[tuple[int, int]]) -> Seen:
    """What is found in a stream that shows the new setting in these spans, counted from the prompt."""
    before, after = change(OF_SETTING)
    world = World(*latency.SIZE)
    old, new = (world.clip([Cut(0, case.scene)], Variation(), 0, 1)[0].tobytes() for case in (before, after))
    shown = [any(first <= n <= last for first, last in spans) for n in range(1, PATIENCE + 1)]
    pictures = old * FILLED + b"".join(new if is_new else old for is_new in shown)
    process = SimpleNamespace(stdout=io.BytesIO(pictures), stdin=io.BytesIO())

    @contextmanager
    def stream(*_):
        yield process
        asked = process.stdin.getvalue().decode()
        assert asked == after.prompt + "\n", asked

    with mock.patch.object(latency, "stream", stream):
        return seen(before, after, TAKEOVER, [])


class Latency(unittest.TestCase):
    def test_the_first_frame_of_those_that_stay_counts(self):
        self.assertEqual(answer([(26, PATIENCE)]).frames, 26)

    def test_a_flash_is_no_change(self):
        self.assertEqual(answer([(5, 4 + STEADY - 1), (30, PATIENCE)]).frames, 30)

    def test_what_never_shows_is_never_seen(self):
        self.assertEqual(answer([]), Seen(None, None))

    def test_a_cell_has_the_middle_one_and_how_many_are_missing(self):
        results = [Seen(26, 0.5), Seen(None, None), Seen(14, 0.25), Seen(74, 1.0)]
        self.assertEqual(cell(results), "26 (500), 1 never")
        self.assertEqual(cell([Seen(None, None)]), "never")


if __name__ == "__main__":
    unittest.main()
