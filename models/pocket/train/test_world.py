"""What the world promises those who learn from it, and those who judge."""

import unittest
from dataclasses import astuple

import numpy as np

from .attributes import KINDS, MOTIONS, Scene, is_held_out
from .clips import BLOCKS, FRAMES, Clip
from .ensembles import ALIKE, MEMBERS, Ensemble
from .world import BLOCK, PERIOD, THICKNESS, Cut, Variation, World


def scene(motion: str, kind: str = "heart") -> Scene:
    return Scene(kind, "red", "snow", motion, "medium", "day")


class Motion(unittest.TestCase):
    def test_comes_back_after_whole_blocks(self):
        world = World(24, 14)
        for motion in MOTIONS:
            self.assertEqual(PERIOD[motion] / BLOCK % 1, 0, motion)
            for seconds in (0.0, 0.4, 1.3):
                before, after = (
                    world.pose(scene(motion), Variation(), t) for t in (seconds, seconds + PERIOD[motion])
                )
                np.testing.assert_allclose(astuple(after), astuple(before), atol=1e-9, err_msg=motion)

    def test_looks_the_same_after_half_a_turn(self):
        world = World(96, 56)
        turn = round(16 * PERIOD["spinning"])
        for kind in KINDS:
            pictures = world.clip([Cut(0, scene("spinning", kind))], Variation(), 3, turn)
            half = turn // 2
            self.assertLessEqual(np.abs(pictures[:half] - pictures[half:].astype(int)).max(), 1, kind)
            self.assertGreater(np.abs(pictures[0] - pictures[half // 2].astype(int)).max(), 50, kind)

    def test_narrows_to_the_side_and_no_further(self):
        world = World(24, 14)
        times = np.linspace(0, PERIOD["spinning"], 97)
        widths = [world.pose(scene("spinning"), Variation(), t).width for t in times]
        self.assertAlmostEqual(max(widths), 1)
        self.assertAlmostEqual(min(widths), THICKNESS)


class Drawn(unittest.TestCase):
    def test_a_frame_depends_on_its_number_alone(self):
        world, cuts = World(48, 28), [Cut(0, scene("left")), Cut(30, scene("bouncing", "star"))]
        whole = world.clip(cuts, Variation(), 0, 40)
        np.testing.assert_array_equal(whole[25:], world.clip(cuts, Variation(), 25, 15))

    def test_a_clip_changes_where_it_says_and_shows_nothing_held_out(self):
        world, changed = World(48, 28), 0
        for clip in map(Clip.number, range(40)):
            self.assertFalse(any(map(is_held_out, clip.scenes)), clip)
            if len(clip.scenes) == 2:
                cut, changed = 12 * clip.cut_block, changed + 1
                self.assertEqual(clip.shown(world, cut - 1)[0], clip.scenes[0])
                self.assertEqual(clip.shown(world, cut)[0], clip.scenes[1])
                self.assertLess(cut, FRAMES)
        self.assertGreater(changed, 10)


class Ensembles(unittest.TestCase):
    """Of what the transformer learns from: clips that are put together are one stream."""

    def test_shows_nothing_held_out_and_no_clip_twice(self):
        for ensemble in map(Ensemble.number, range(200)):
            scenes = [ensemble.shows(clip) for clip in range(MEMBERS)]
            self.assertFalse(any(map(is_held_out, scenes)), scenes)
            self.assertEqual(len(set(scenes[:ALIKE])), ALIKE)

    def test_a_change_is_drawn_as_if_it_were_one_clip(self):
        world, rng, kinds = World(24, 14), np.random.default_rng(7), set()
        for number in range(30):
            ensemble = Ensemble.number(number)
            change = ensemble.change(rng, int(rng.integers(1, BLOCKS)), 1)
            before, after = ensemble.shows(change.before), ensemble.shows(change.after)
            wanted = Clip((before, after), change.cut, ensemble.first, ensemble.is_start).frames(world)
            drawn = {clip: ensemble.clips[clip].frames(world) for clip in (change.before, change.after)}
            blocks = [drawn[clip][12 * block : 12 * block + 12] for clip, block in change.blocks()]
            np.testing.assert_array_equal(np.concatenate(blocks), wanted, err_msg=str((number, change)))
            kinds.add(tuple(ensemble.changed(change)))
            self.assertEqual(before.with_changes(ensemble.changed(change)), after)
        self.assertGreater(len(kinds), 5)


if __name__ == "__main__":
    unittest.main()
