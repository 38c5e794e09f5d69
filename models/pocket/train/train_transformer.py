"""Trains the transformer on latents; see README.md for the order of the stages.

    python -m train.train_transformer --run RUN --stage small --minutes 30
    python -m train.train_transformer --run RUN --stage full --minutes 90
    python -m train.train_transformer --run RUN --stage rollout --minutes 30

`small` learns words, shapes and motions on half-size pictures, `full` goes on at full size, both on
the few noise levels that the sampler uses: blocks alone behind clean ones, and several in flight as
a cascade has them. `rollout` then denoises the model's *own* rollouts: what it sees of the past is
what it made itself, and the clip that the rollout should have been is the target. The world is
determined by prompt and past, so that target is well posed; this is Self-Forcing's cure for drift
with a regression instead of a distribution loss.
"""

import argparse
import copy
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import captions, schedule
from .attributes import VALUES, Scene, first_scene
from .clips import BLOCKS, Clip
from .muon import Muon
from .schedule import FRAMES_PER_BLOCK, SIGMAS, WINDOW, mix
from .text import TextEncoder
from .transformer import Config, Sight, Slots, Text, Transformer

BATCH = {"small": 8, "full": 4, "rollout": 4}
PEAK_RATE = {"small": 3e-3, "full": 1.5e-3, "rollout": 5e-4}
# Steps by what they learn. In most blocks of a stream nothing is new: those that a prompt decides
# are learned apart.
SHARES = {"starts": 0.4, "cuts": 0.25, "alone": 0.15, "cascade": 0.2}
OBJECT_WEIGHT = 4.0  # of cells that the object touches, beside 1 for all
EMA = 0.998


@dataclass
class Batch:
    """Some clips, in blocks."""

    x0: Tensor  # (B, BLOCKS, frames, z, h, w)
    weight: Tensor  # (B, BLOCKS, frames, 1, h, w), 0 where there is nothing to learn
    text: Text  # two prompts a clip
    which: Tensor  # (B, BLOCKS)


class Data:
    """Clips, their latents and prompts."""

    def __init__(self, run: Path, size: str, seed: int, device: str):
        clips, starts = (np.load(run / f"{name}{size}.npz") for name in ("latents", "starts"))
        self.latents, self.covers = clips["latents"], clips["covers"]
        self.clips = [Clip.number(index) for index in range(len(self.latents))]
        self.start_latents, self.start_covers = starts["latents"], starts["covers"]
        self.changed = [i for i, clip in enumerate(self.clips) if WINDOW <= clip.cut_block < BLOCKS]
        self.first = [i for i, clip in enumerate(self.clips) if clip.is_start]
        self.encoder = TextEncoder(run / "text", device)
        self.rng, self.device = np.random.default_rng(seed), device

    def batch(self, size: int, from_start: bool = False) -> Batch:
        """Whole clips; all of them the starts of streams, if it must be."""
        chosen = self.rng.choice(self.first if from_start else len(self.clips), size)
        clips = [self.clips[index] for index in chosen]
        which = [[int(b >= clip.cut_block) for b in range(BLOCKS)] for clip in clips]
        batch = self.blocks(clips, self.latents[chosen], self.covers[chosen], which)
        for number, clip in enumerate(clips):
            if not clip.is_start:
                batch.weight[number, 0] = 0  # nothing tells where in its motion a later block is
        return batch

    def starts(self, size: int) -> Batch:
        """First blocks of streams: all that they show comes from the prompt."""
        chosen = self.rng.integers(0, len(self.start_latents), size)
        clips = [Clip.start(int(index)) for index in chosen]
        return self.blocks(clips, self.start_latents[chosen], self.start_covers[chosen], [[0]] * size)

    def cuts(self, size: int) -> Batch:
        """Blocks in which a prompt changes, behind a window of those before."""
        chosen = self.rng.choice(self.changed, size)
        clips = [self.clips[index] for index in chosen]
        firsts = FRAMES_PER_BLOCK * np.array([[clip.cut_block - WINDOW] for clip in clips])
        groups = firsts + np.arange(FRAMES_PER_BLOCK * (WINDOW + 1))
        parts = (array[chosen[:, None], groups] for array in (self.latents, self.covers))
        return self.blocks(clips, *parts, [[0] * WINDOW + [1]] * size)

    def blocks(self, clips: list[Clip], latents: np.ndarray, covers: np.ndarray, which: list) -> Batch:
        x0 = torch.from_numpy(latents).float().to(self.device)
        covered = torch.from_numpy(covers).float().to(self.device).unsqueeze(2)
        x0, covered = (part.unflatten(1, (-1, FRAMES_PER_BLOCK)) for part in (x0, covered))
        text = self.text([prompt for clip in clips for prompt in self.prompts(clip)], len(clips))
        return Batch(x0, 1 + OBJECT_WEIGHT * covered, text, torch.tensor(which).to(self.device))

    def text(self, prompts: list[str], size: int) -> Text:
        embedding, lengths = self.encoder.encode(prompts)
        pairs = (size, len(prompts) // size)
        return Text(embedding.float().unflatten(0, pairs), lengths.view(pairs).to(self.device))

    def prompts(self, clip: Clip) -> tuple[str, str]:
        first, last = clip.scenes[0], clip.scenes[-1]
        if len(clip.scenes) > 1 and self.rng.random() < 0.5:
            changes = {name: getattr(last, name) for name in clip.changes}
            return self.prompt(first), captions.edit(self.rng, changes, first)
        return self.prompt(first), self.prompt(last)

    def prompt(self, scene: Scene) -> str:
        """A prompt that sometimes leaves out what would have come without it."""
        named = {name: getattr(scene, name) for name in VALUES}
        for name in self.rng.permutation(list(VALUES)):
            rest = {key: value for key, value in named.items() if key != name}
            if self.rng.random() < 0.3 and first_scene(rest) == scene:
                named = rest
        return captions.caption(self.rng, scene, named)


def window_sight(blocks: int) -> Sight:
    """Clean blocks, each of which sees the window before it."""
    seen = tuple(tuple(range(max(0, b - WINDOW), b + 1)) for b in range(blocks))
    return Sight(tuple(range(blocks)), seen)


def alone_sight(blocks: int) -> Sight:
    """Noisy blocks, each of which sees the clean window before it and itself."""
    seen = tuple(tuple(range(max(0, b - WINDOW), b)) + (blocks + b,) for b in range(blocks))
    return Sight(tuple(range(blocks)), seen)


def cascade_sight(past: int, count: int, causal: bool) -> Sight:
    """Blocks in flight, behind `past` clean ones."""
    last = [past + (b if causal else count - 1) for b in range(count)]
    return Sight(tuple(range(past, past + count)), tuple(tuple(range(end + 1)) for end in last))


class Learner:
    """A model, its moving average and its optimisers."""

    def __init__(self, cfg: Config, stage: str, device: str):
        self.model = Transformer(cfg).to(device)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.peak, self.steps, self.seconds = PEAK_RATE[stage], 0, 0.0
        self.recent: dict[str, list[float]] = {}
        matrices = [p for n, p in self.model.named_parameters() if is_hidden_matrix(n, p)]
        others = [p for n, p in self.model.named_parameters() if not is_hidden_matrix(n, p)]
        self.optimisers = [
            Muon(matrices),
            torch.optim.AdamW(others, lr=self.peak, betas=(0.9, 0.98), weight_decay=0.0),
        ]

    def learn(self, losses: dict[str, Tensor], progress: float) -> None:
        for name, loss in losses.items():
            loss.backward()
            self.recent.setdefault(name, []).append(loss.item())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        rate = self.peak * min(1, (self.steps + 1) / 50) * (0.02 + 0.98 * falling(progress))
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.steps += 1
        keep = min(EMA, self.steps / (self.steps + 20))
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.model.parameters()):
                mean.lerp_(now, 1 - keep)

    def save(self, path: Path) -> None:
        state = {"model": self.model.state_dict(), "average": self.average.state_dict(),
                 "optimisers": [o.state_dict() for o in self.optimisers],
                 "steps": self.steps, "seconds": self.seconds}
        torch.save(state, path.with_suffix(".new"))
        path.with_suffix(".new").rename(path)

    def resume(self, path: Path) -> None:
        state = torch.load(path, map_location="cpu")
        self.start_from(path)
        for optimiser, kept in zip(self.optimisers, state["optimisers"]):
            optimiser.load_state_dict(kept)
        self.steps, self.seconds = state["steps"], state["seconds"]

    def start_from(self, path: Path) -> None:
        """Takes the weights of another stage."""
        state = torch.load(path, map_location="cpu")
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    return parameter.ndim == 2 and name.startswith("blocks.")


def falling(progress: float) -> float:
    return 0.5 + 0.5 * math.cos(math.pi * min(1.0, progress))


def flow_loss(flow: Tensor, x0: Tensor, noise: Tensor, weight: Tensor) -> Tensor:
    error = (flow - (noise - x0)).square() * weight
    return error.mean() / weight.mean().clamp(min=1e-6)


def spoiled(x0: Tensor) -> Tensor:
    """The past as a model makes it: not quite clean."""
    strength = 0.25 * torch.rand(x0.shape[0], 1, 1, 1, 1, 1, device=x0.device) ** 2
    tilt = torch.randn(*x0.shape[:2], 1, x0.shape[3], 1, 1, device=x0.device)
    return x0 + strength * (torch.randn_like(x0) + 0.5 * tilt)


def keys_of(model: Transformer, batch: Batch, x0: Tensor, blocks: int):
    """Keys and values that clean blocks leave behind."""
    with torch.no_grad():
        timesteps = torch.zeros(x0.shape[0], blocks, device=x0.device)
        clean = Slots(x0[:, :blocks], timesteps, window_sight(blocks), batch.text, batch.which[:, :blocks])
        return model(clean)[1]


def alone_loss(model: Transformer, batch: Batch, generator: torch.Generator) -> Tensor:
    """Every block at some noise level, behind clean ones."""
    past = keys_of(model, batch, spoiled(batch.x0), BLOCKS)
    sigma = schedule.random_sigmas(batch.x0.shape[:2], generator).to(batch.x0.device)
    noise = torch.randn_like(batch.x0)
    slots = Slots(mix(batch.x0, noise, sigma), 1000 * sigma, alone_sight(BLOCKS), batch.text, batch.which)
    return flow_loss(model(slots, past)[0], batch.x0, noise, batch.weight)


def last_loss(model: Transformer, batch: Batch, generator: torch.Generator) -> Tensor:
    """The last block of each clip, behind the clean ones before it."""
    last = batch.x0.shape[1] - 1
    past = keys_of(model, batch, spoiled(batch.x0), last) if last else None
    x0, weight, which = (part[:, last:] for part in (batch.x0, batch.weight, batch.which))
    sigma = schedule.random_sigmas(x0.shape[:2], generator).to(x0.device)
    noise = torch.randn_like(x0)
    sight = Sight((last,), (tuple(range(last + 1)),))
    slots = Slots(mix(x0, noise, sigma), 1000 * sigma, sight, batch.text, which)
    return flow_loss(model(slots, past)[0], x0, noise, weight)


def cascade_loss(model: Transformer, batch: Batch, rng: np.random.Generator) -> Tensor:
    """The blocks in flight of one tick, at the noise levels that a timetable gives them."""
    stagger = int(rng.integers(1, 4))
    passes = schedule.in_flight(stagger, int(rng.integers(0, stagger)))
    past = min(int(rng.integers(0, WINDOW + 1)), BLOCKS - len(passes))
    first = int(rng.integers(0, BLOCKS - past - len(passes) + 1)) if past else 0
    part = slice(first + past, first + past + len(passes))
    x0, which = batch.x0[:, part], batch.which[:, part]
    kept = None
    if past:
        before = slice(first, first + past)
        earlier = Batch(batch.x0[:, before], batch.weight[:, before], batch.text, batch.which[:, before])
        kept = keys_of(model, earlier, spoiled(earlier.x0), past)
    sigma = torch.tensor([SIGMAS[p] if p < len(SIGMAS) else 0.0 for p in passes], device=x0.device)
    weight = batch.weight[:, part] * (sigma > 0).view(1, -1, 1, 1, 1, 1)
    sigma = sigma.expand(x0.shape[:2])
    noise = torch.randn_like(x0)
    sight = cascade_sight(past, len(passes), causal=bool(rng.random() < 0.3))
    slots = Slots(mix(x0, noise, sigma), 1000 * sigma, sight, batch.text, which)
    return flow_loss(model(slots, kept)[0], x0, noise, weight)


def rollout_loss(model: Transformer, batch: Batch, rng: np.random.Generator, given: int) -> Tensor:
    """One step of each block of a rollout, whose past is the model's own but for `given` blocks."""
    loss = torch.zeros((), device=batch.x0.device)
    past = keys_of(model, batch, spoiled(batch.x0), given) if given else None
    for block in range(given, BLOCKS):
        learned = int(rng.integers(0, len(SIGMAS)))
        part, past = roll_block(model, batch, block, past, learned)
        loss = loss + part
    return loss / (BLOCKS - given)


def roll_block(model: Transformer, batch: Batch, block: int, past: list | None, learned: int):
    """Denoises one block and caches it; the gradient is that of one step."""
    target, weight = batch.x0[:, block : block + 1], batch.weight[:, block : block + 1]
    which, loss = batch.which[:, block : block + 1], None
    count = past[0].k.shape[1] if past else 0
    sight = Sight((block,), (tuple(range(count + 1)),))
    x0 = torch.zeros_like(target)
    for step, sigma in enumerate(SIGMAS):
        noise = torch.randn_like(target)
        level = torch.full(target.shape[:2], sigma, device=target.device)
        noisy = mix(x0, noise, level)
        with torch.set_grad_enabled(step == learned):
            flow, _ = model(Slots(noisy, 1000 * level, sight, batch.text, which), past)
            made = noisy - sigma * flow
            if step == learned:
                loss = ((made - target).square() * weight).mean() / (sigma**2 * weight.mean().clamp(min=1e-6))
        x0 = made.detach()
    with torch.no_grad():
        _, kv = model(Slots(x0, torch.zeros_like(level), sight, batch.text, which), past)
    if past:
        kv = [old.then(new).last(WINDOW) for old, new in zip(past, kv)]
    return loss, kv


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    data = Data(args.run, "_small" if args.stage == "small" else "", args.seed, args.device)
    learner = Learner(Config(), args.stage, args.device)
    path = args.run / f"dit_{args.stage}.pt"
    if path.exists():
        learner.resume(path)
    elif args.start:
        learner.start_from(args.start)
    generator = torch.Generator().manual_seed(args.seed + learner.steps)
    budget, begun, saved = 60 * args.minutes, time.time() - learner.seconds, 0.0
    while (seconds := time.time() - begun) < budget:
        learner.learn(stage_loss(args.stage, learner.model, data, generator), seconds / budget)
        if learner.steps % 25 == 0:
            report(args, learner, seconds)
        if seconds - saved > 120:
            learner.seconds, saved = seconds, seconds
            learner.save(path)
    learner.seconds = budget
    learner.save(path)


def stage_loss(stage: str, model: Transformer, data: Data, generator: torch.Generator) -> dict[str, Tensor]:
    """The loss of one step, by its name: what is learned is drawn by lot."""
    size = BATCH[stage]
    if stage == "rollout":
        given = int(data.rng.integers(0, 2))
        return {"rollout": rollout_loss(model, data.batch(size, from_start=not given), data.rng, given)}
    drawn = str(data.rng.choice(list(SHARES), p=list(SHARES.values())))
    losses = {
        "starts": lambda: last_loss(model, data.starts(BLOCKS * size), generator),
        "cuts": lambda: last_loss(model, data.cuts(BLOCKS * size // 2), generator),
        "alone": lambda: alone_loss(model, data.batch(size), generator),
        "cascade": lambda: cascade_loss(model, data.batch(size), data.rng),
    }
    return {drawn: losses[drawn]()}


def report(args: argparse.Namespace, learner: Learner, seconds: float) -> None:
    line = {"stage": args.stage, "step": learner.steps, "seconds": round(seconds)}
    line |= {name: round(sum(values) / len(values), 4) for name, values in learner.recent.items()}
    learner.recent.clear()
    print(json.dumps(line), flush=True)
    with (args.run / "dit.jsonl").open("a") as log:
        log.write(json.dumps(line) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--stage", choices=tuple(BATCH), required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--start", type=Path, help="a checkpoint of the stage before")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="one, and two trainings, are faster than two")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
