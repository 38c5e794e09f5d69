"""What the transformer learns from: batches of ensembles' clips, with prompts as people would write them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import captions
from .attributes import VALUES, Scene, first_scene
from .clips import BLOCKS, Clip
from .ensembles import ALIKE, MEMBERS, Change, Ensemble
from .schedule import FRAMES_PER_BLOCK, WINDOW
from .text import TEXT_LEN, TextEncoder
from .transformer import Text

# Of clips, those that change; of changes, those that a prompt names and leaves the rest to the past. And of prompts
# under which nothing changes, those that name some of what is there.
NEWS, EDITED, REMINDED = 0.8, 0.7, 0.5
LATER = (0.4, 0.35, 0.25)  # of blocks behind a change, the first, second and third
OWN = 3  # blocks of its own that a model makes behind a change
OBJECT_WEIGHT = 10.0  # of cells that the object touches, beside 1 for all


@dataclass
class Batch:
    """Some clips, in blocks."""

    x0: Tensor  # (B, BLOCKS, frames, z, h, w)
    weight: Tensor  # (B, BLOCKS, frames, 1, h, w), 0 where there is nothing to learn
    text: Text  # of each clip
    which: Tensor  # (B, BLOCKS)

    def part(self, blocks: slice) -> "Batch":
        return Batch(self.x0[:, blocks], self.weight[:, blocks], self.text, self.which[:, blocks])


@dataclass
class Told:
    """Six blocks of an ensemble's clips, their two prompts, and the block from which on the second one holds."""

    blocks: list[tuple[int, int]]  # clip and block in it
    prompts: tuple[str, str]
    second: int
    is_start: bool

    def part(self, first: int, end: int) -> "Told":
        return Told(self.blocks[first:end], self.prompts, self.second - first, self.is_start and not first)


class Data:
    """Clips, their latents and prompts."""

    def __init__(self, run: Path, size: str, often: str | None, seed: int, rank: int, device: str):
        clips, starts = (np.load(run / f"{name}{size}.npz") for name in ("latents", "starts"))
        self.latents, self.covers = (in_blocks(clips[name]) for name in ("latents", "covers"))
        self.ensembles = [Ensemble.number(index) for index in range(len(self.latents) // MEMBERS)]
        self.chosen = thrice([ensemble.alike[0].motion for ensemble in self.ensembles], often)
        self.begin = [number for number in self.chosen if self.ensembles[number].is_start]
        self.start_latents, self.start_covers = (in_blocks(starts[name]) for name in ("latents", "covers"))
        self.started = [Clip.start(index).scenes[0] for index in range(len(self.start_latents))]
        self.starting = thrice([scene.motion for scene in self.started], often)
        self.encoder = TextEncoder(run / "text", device)
        self.lots = np.random.default_rng(seed)  # the same in all processes, so that none waits for others
        self.rng, self.device = np.random.default_rng((seed, rank)), device

    def batch(self, size: int, from_start: bool = False) -> Batch:
        """Whole clips; all of them the starts of streams, if it must be."""
        chosen = self.rng.choice(self.begin if from_start else self.chosen, size)
        told = [self.told(int(number), int(self.rng.integers(1, BLOCKS)), 1) for number in chosen]
        batch = self.shown(told)
        for number, clip in enumerate(told):
            if not clip.is_start:
                batch.weight[number, 0] = 0  # nothing tells where in its motion a later block is
        return batch

    def starts(self, size: int) -> Batch:
        """First blocks of streams: all that they show comes from the prompt."""
        chosen = self.rng.choice(self.starting, size)
        prompts = [(self.prompt(self.started[index]),) for index in chosen]
        return self.blocks(self.start_latents[chosen], self.start_covers[chosen], prompts, [[0]] * size)

    def cuts(self, size: int) -> Batch:
        """Blocks under another prompt, the first of them or a later one, behind a window of those before."""
        return self.shown([self.cut(int(number)) for number in self.rng.choice(self.chosen, size)])

    def cut(self, number: int) -> Told:
        later = int(self.rng.choice(len(LATER), p=LATER))
        told = self.told(number, int(self.rng.integers(max(1, WINDOW - later), BLOCKS - later)), later + 1)
        end = told.second + later + 1
        return told.part(end - WINDOW - 1, end)

    def edits(self, size: int) -> Batch:
        """A window, and OWN blocks under another prompt."""
        cut = int(self.rng.integers(WINDOW, BLOCKS - OWN + 1))
        chosen = self.rng.choice(self.chosen, size)
        told = [self.told(int(number), cut, OWN) for number in chosen]
        return self.shown([one.part(one.second - WINDOW, one.second + OWN) for one in told])

    def told(self, number: int, block: int, shown: int) -> Told:
        """A clip of an ensemble whose prompt is another one from `block` on, or elsewhere where `shown` are left."""
        ensemble, first = self.ensembles[number], MEMBERS * number
        if self.rng.random() < NEWS:
            change = ensemble.change(self.rng, block, shown)
            blocks = [(first + clip, at) for clip, at in change.blocks()]
            return Told(blocks, self.prompts(ensemble, change), change.cut, ensemble.is_start)
        clip = int(self.rng.integers(0, ALIKE))
        scene = ensemble.shows(clip)
        blocks = [(first + clip, at) for at in range(BLOCKS)]
        return Told(blocks, (self.prompt(scene), self.reminder(scene)), block, ensemble.is_start)

    def prompts(self, ensemble: Ensemble, change: Change) -> tuple[str, str]:
        before, after = ensemble.shows(change.before), ensemble.shows(change.after)
        is_edit = self.rng.random() < EDITED
        second = captions.edit(self.rng, ensemble.changed(change), before) if is_edit else self.prompt(after)
        return self.prompt(before), second

    def shown(self, told: list[Told]) -> Batch:
        clips, blocks = np.array([one.blocks for one in told]).transpose(2, 0, 1)
        which = [[int(block >= one.second) for block in range(len(one.blocks))] for one in told]
        prompts = [one.prompts for one in told]
        return self.blocks(self.latents[clips, blocks], self.covers[clips, blocks], prompts, which)

    def blocks(self, latents: np.ndarray, covers: np.ndarray, prompts: list, which: list) -> Batch:
        x0 = torch.from_numpy(latents).float().to(self.device)
        covered = torch.from_numpy(covers).float().to(self.device).unsqueeze(3)
        text = self.text([prompt for pair in prompts for prompt in pair], len(prompts))
        return Batch(x0, 1 + OBJECT_WEIGHT * covered, text, torch.tensor(which).to(self.device))

    def text(self, prompts: list[str], size: int) -> Text:
        embedding, lengths = self.encoder.encode(prompts)
        embedding = F.pad(embedding, (0, 0, 0, TEXT_LEN - embedding.shape[1]))  # always the same shape
        pairs = (size, len(prompts) // size)
        return Text(embedding.float().unflatten(0, pairs), lengths.view(pairs).to(self.device))

    def reminder(self, scene: Scene) -> str:
        """A prompt for what is there already: of what it does not name, only the past can tell."""
        if self.rng.random() > REMINDED:
            return self.prompt(scene)
        names = self.rng.choice(list(VALUES), int(self.rng.integers(1, 4)), replace=False)
        return captions.edit(self.rng, {str(name): getattr(scene, name) for name in names})

    def prompt(self, scene: Scene) -> str:
        """A prompt that sometimes leaves out what would have come without it."""
        named = {name: getattr(scene, name) for name in VALUES}
        for name in self.rng.permutation(list(VALUES)):
            rest = {key: value for key, value in named.items() if key != name}
            if self.rng.random() < 0.3 and first_scene(rest) == scene:
                named = rest
        return captions.caption(self.rng, scene, named)


def in_blocks(x: np.ndarray) -> np.ndarray:
    """`(clips, groups, ...)` to `(clips, blocks, frames of a block, ...)`."""
    return x.reshape(len(x), -1, FRAMES_PER_BLOCK, *x.shape[2:])


def thrice(motions: list[str], often: str | None) -> list[int]:
    """Their numbers, those of one motion three times."""
    return [i for i, motion in enumerate(motions) for _ in range(3 if motion == often else 1)]
