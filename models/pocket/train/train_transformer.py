"""Trains the transformer on latents; see README.md for the order of the stages.

    python -m train.train_transformer --run RUN --stage small --minutes 30
    python -m train.train_transformer --run RUN --stage full --minutes 90
    python -m train.train_transformer --run RUN --stage rollout --minutes 30

`small` learns words, shapes and motions on half-size pictures, `full` goes on at full size: blocks alone
behind clean ones, at the steps of the sampler, each reached by the model's *own* steps before it, and several
in flight at once, in ticks that its own have led to. `rollout` takes the past, too, from what the model made
itself, and the clip that the rollout should have been is the target. The world is determined by prompt and
past, so that target is well posed; this is Self-Forcing's cure for drift with a regression instead of a distribution loss.
Started by torchrun, several processes learn together.
"""

import argparse
import copy
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from . import captions, schedule
from .attributes import VALUES, Scene, first_scene
from .clips import BLOCKS, Clip
from .muon import Muon
from .schedule import FRAMES_PER_BLOCK, SIGMAS, WINDOW, mix
from .text import TEXT_LEN, TextEncoder
from .transformer import Config, Sight, Slots, Text, Transformer

BATCH = {"small": 8, "full": 2, "rollout": 2}
PEAK_RATE = {"small": 3e-3, "full": 1.5e-3, "rollout": 5e-4}
# Steps by what they learn. In most blocks of a stream nothing is new: those that a prompt decides
# are learned apart.
SHARES = {"starts": 0.3, "cuts": 0.25, "alone": 0.25, "cascade": 0.2}
SHARES_OF_ROLLOUT = {"rollout": 0.4, "starts": 0.2, "cuts": 0.2, "cascade": 0.2}
# Of blocks with another prompt, those that show something new; and of prompts under which nothing changes, those that
# name some of what is there, and leave the rest to the past.
NEWS, REMINDED = 0.65, 0.5
OBJECT_WEIGHT = 10.0  # of cells that the object touches, beside 1 for all
EMA = 0.998


@dataclass
class Batch:
    """Some clips, in blocks."""

    x0: Tensor  # (B, BLOCKS, frames, z, h, w)
    weight: Tensor  # (B, BLOCKS, frames, 1, h, w), 0 where there is nothing to learn
    text: Text  # of each clip
    which: Tensor  # (B, BLOCKS)

    def part(self, blocks: slice) -> "Batch":
        return Batch(self.x0[:, blocks], self.weight[:, blocks], self.text, self.which[:, blocks])


class Data:
    """Clips, their latents and prompts."""

    def __init__(self, run: Path, size: str, often: str | None, seed: int, rank: int, device: str):
        clips, starts = (np.load(run / f"{name}{size}.npz") for name in ("latents", "starts"))
        self.latents, self.covers = clips["latents"], clips["covers"]
        self.clips = [Clip.number(index) for index in range(len(self.latents))]
        self.start_latents, self.start_covers = starts["latents"], starts["covers"]
        begun = [Clip.start(index) for index in range(len(self.start_latents))]
        self.started, self.all = thrice(begun, often), thrice(self.clips, often)
        self.unchanged = [i for i in self.all if len(self.clips[i].scenes) == 1]
        self.changed = [i for i in self.all if WINDOW <= self.clips[i].cut_block < BLOCKS]
        self.first = [i for i in self.all if self.clips[i].is_start]
        self.encoder = TextEncoder(run / "text", device)
        self.lots = np.random.default_rng(seed)  # the same in all processes, so that none waits for others
        self.rng, self.device = np.random.default_rng((seed, rank)), device

    def batch(self, size: int, from_start: bool = False) -> Batch:
        """Whole clips; all of them the starts of streams, if it must be."""
        chosen = self.rng.choice(self.first if from_start else self.all, size)
        clips = [self.clips[index] for index in chosen]
        told = [self.told(clip, 1) for clip in clips]
        which = [[int(b >= block) for b in range(BLOCKS)] for _, block in told]
        prompts = [prompts for prompts, _ in told]
        batch = self.blocks(self.latents[chosen], self.covers[chosen], prompts, which)
        for number, clip in enumerate(clips):
            if not clip.is_start:
                batch.weight[number, 0] = 0  # nothing tells where in its motion a later block is
        return batch

    def starts(self, size: int) -> Batch:
        """First blocks of streams: all that they show comes from the prompt."""
        chosen = self.rng.choice(self.started, size)
        prompts = [[self.prompt(Clip.start(int(index)).scenes[0])] for index in chosen]
        return self.blocks(self.start_latents[chosen], self.start_covers[chosen], prompts, [[0]] * size)

    def cuts(self, size: int) -> Batch:
        """Blocks in which the prompt is another one, behind a window of those before."""
        news = self.rng.random(size) < NEWS
        chosen = np.where(news, self.rng.choice(self.changed, size), self.rng.choice(self.unchanged, size))
        told = [self.told(self.clips[index], WINDOW) for index in chosen]
        firsts = FRAMES_PER_BLOCK * np.array([[block - WINDOW] for _, block in told])
        groups = firsts + np.arange(FRAMES_PER_BLOCK * (WINDOW + 1))
        parts = (array[chosen[:, None], groups] for array in (self.latents, self.covers))
        return self.blocks(*parts, [prompts for prompts, _ in told], [[0] * WINDOW + [1]] * size)

    def blocks(self, latents: np.ndarray, covers: np.ndarray, prompts: list, which: list) -> Batch:
        x0 = torch.from_numpy(latents).float().to(self.device)
        covered = torch.from_numpy(covers).float().to(self.device).unsqueeze(2)
        x0, covered = (part.unflatten(1, (-1, FRAMES_PER_BLOCK)) for part in (x0, covered))
        text = self.text([prompt for pair in prompts for prompt in pair], len(prompts))
        return Batch(x0, 1 + OBJECT_WEIGHT * covered, text, torch.tensor(which).to(self.device))

    def text(self, prompts: list[str], size: int) -> Text:
        embedding, lengths = self.encoder.encode(prompts)
        embedding = F.pad(embedding, (0, 0, 0, TEXT_LEN - embedding.shape[1]))  # always the same shape
        pairs = (size, len(prompts) // size)
        return Text(embedding.float().unflatten(0, pairs), lengths.view(pairs).to(self.device))

    def told(self, clip: Clip, first_block: int) -> tuple[tuple[str, str], int]:
        """Two prompts, and the block from which on the second one holds."""
        first, last = clip.scenes[0], clip.scenes[-1]
        if first is not last:
            changes = {name: getattr(last, name) for name in clip.changes}
            is_edit = self.rng.random() < 0.5
            second = captions.edit(self.rng, changes, first) if is_edit else self.prompt(last)
            return (self.prompt(first), second), clip.cut_block
        block = int(self.rng.integers(first_block, BLOCKS))
        return (self.prompt(first), self.reminder(first)), block

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


def thrice(clips: list[Clip], motion: str | None) -> list[int]:
    """Their numbers, those that show a motion three times."""
    return [i for i, clip in enumerate(clips) for _ in range(3 if clip.scenes[0].motion == motion else 1)]


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

    def __init__(self, cfg: Config, peak_rate: float, device: str):
        self.model = Transformer(cfg).to(device)
        self.compiled = torch.compile(self.model, dynamic=False)  # for what has always the same shapes
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.peak, self.steps, self.seconds = peak_rate, 0, 0.0
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
        share_gradients(self.model)
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
        """Takes the weights of another stage, or those that are shipped."""
        if path.suffix == ".safetensors":
            shipped = load_file(path)
            state = {"model": shipped, "average": shipped}
        else:
            state = torch.load(path, map_location="cpu")
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])


def share_gradients(model: Transformer) -> None:
    """Several processes, as torchrun starts them, learn from all their batches."""
    if dist.is_initialized():
        gradients = [parameter.grad for parameter in model.parameters()]
        flat = mean_of_all(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients])):
            gradient.copy_(part.view_as(gradient))


def mean_of_all(x: Tensor) -> Tensor:
    if dist.is_initialized():
        dist.all_reduce(x)
        x /= dist.get_world_size()
    return x


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    return parameter.ndim == 2 and name.startswith("blocks.")


def falling(progress: float) -> float:
    return 0.5 + 0.5 * math.cos(math.pi * min(1.0, progress))


def flow_loss(made: Tensor, batch: Batch, sigmas: Tensor) -> Tensor:
    """How far estimates are off, as flow: as much at every sigma, and nothing without noise."""
    sigmas = sigmas[..., None, None, None, None]
    weight = batch.weight * (sigmas > 0)
    error = ((made - batch.x0) / sigmas.clamp(min=SIGMAS[-1])).square() * weight
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


def alone_loss(model: Transformer, batch: Batch, rng: np.random.Generator) -> Tensor:
    """Every block at one step of the sampler, behind clean ones."""
    past = keys_of(model, batch, spoiled(batch.x0), BLOCKS)
    return denoised(model, batch, alone_sight(BLOCKS), past, int(rng.integers(0, len(SIGMAS))))[0]


def last_loss(model: Transformer, batch: Batch, rng: np.random.Generator) -> Tensor:
    """The last block of each clip, behind the clean ones before it."""
    last = batch.x0.shape[1] - 1
    past = keys_of(model, batch, spoiled(batch.x0), last) if last else None
    part = batch.part(slice(last, last + 1))
    sight = Sight((last,), (tuple(range(last + 1)),))
    return denoised(model, part, sight, past, int(rng.integers(0, len(SIGMAS))))[0]


def denoised(model: Transformer, batch: Batch, sight: Sight, past: list | None, learned: int, steps: int = 0):
    """The loss of one step, which the model's own steps before it have led to, and its last estimate.

    Of the clip itself the model is shown nothing, so it has to take from the prompt what it should be.
    Makes `steps` steps, or no more than are needed.
    """
    x0, loss = torch.zeros_like(batch.x0), None
    for step, sigma in enumerate(SIGMAS[: steps or learned + 1]):
        sigmas = torch.full(x0.shape[:2], sigma, device=x0.device)
        with torch.set_grad_enabled(step == learned):
            x0 = estimate(model, batch, x0, sigmas, sight, past)
        if step == learned:
            loss = flow_loss(x0, batch, sigmas)
        x0 = x0.detach()
    return loss, x0


def cascade_loss(model: Transformer, batch: Batch, rng: np.random.Generator) -> Tensor:
    """The blocks in flight of one tick, which the model's own ticks before it have led to."""
    stagger = int(rng.integers(1, 4))
    passes = schedule.in_flight(stagger, int(rng.integers(0, stagger)))
    past = min(int(rng.integers(0, WINDOW + 1)), BLOCKS - len(passes))
    first = int(rng.integers(0, BLOCKS - past - len(passes) + 1)) if past else 0
    earlier = batch.part(slice(first, first + past))
    kept = keys_of(model, earlier, spoiled(earlier.x0), past) if past else None
    flying = batch.part(slice(first + past, first + past + len(passes)))
    causal, x0 = bool(rng.random() < 0.3), torch.zeros_like(flying.x0)
    for back in range(passes[0], -1, -1):
        sigmas = torch.tensor([sigma_of(p - back) for p in passes if p >= back], device=x0.device)
        part, sight = flying.part(slice(0, len(sigmas))), cascade_sight(past, len(sigmas), causal)
        sigmas = sigmas.expand(part.x0.shape[:2])
        with torch.set_grad_enabled(not back):
            made = estimate(model, part, x0[:, : sigmas.shape[1]], sigmas, sight, kept)
        x0 = torch.cat((made, x0[:, sigmas.shape[1] :]), 1)
    return flow_loss(x0, flying, sigmas)


def sigma_of(number: int) -> float:
    """Of a pass: the last one is of the clean block."""
    return SIGMAS[number] if number < len(SIGMAS) else 0.0


def estimate(model: Transformer, batch: Batch, x0: Tensor, sigmas: Tensor, sight: Sight, past: list | None) -> Tensor:
    """What the model takes blocks for that it knew as `x0`; itself where there is no noise."""
    noisy = mix(x0, torch.randn_like(x0), sigmas)
    flow, _ = model(Slots(noisy, 1000 * sigmas, sight, batch.text, batch.which), past)
    return noisy - sigmas[..., None, None, None, None] * flow


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
    part = batch.part(slice(block, block + 1))
    sight = Sight((block,), (tuple(range((past[0].k.shape[1] if past else 0) + 1)),))
    loss, x0 = denoised(model, part, sight, past, learned, len(SIGMAS))
    with torch.no_grad():
        clean = torch.zeros(x0.shape[:2], device=x0.device)
        _, kv = model(Slots(x0, clean, sight, part.text, part.which), past)
    if past:
        kv = [old.then(new).last(WINDOW) for old, new in zip(past, kv)]
    return loss, kv


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    rank = start_together()
    data = Data(args.run, "_small" if args.stage == "small" else "", args.often, args.seed, rank, args.device)
    learner = Learner(Config(), args.rate or PEAK_RATE[args.stage], args.device)
    path = args.run / f"dit_{args.stage}.pt"
    if path.exists():
        learner.resume(path)
    elif args.start:
        learner.start_from(args.start)
    # This thread's own time: what else the machine does takes nothing from the budget.
    budget, begun, saved = 60 * args.minutes, time.thread_time() - learner.seconds, 0.0
    while (seconds := mean_of_all(torch.tensor(time.thread_time() - begun)).item()) < budget:
        with torch.autocast(args.device, torch.bfloat16, enabled=has_bf16(args.device)):
            losses = stage_loss(args.stage, learner, data)
        learner.learn(losses, seconds / budget)
        if learner.steps % 25 == 0 and rank == 0:
            report(args, learner, seconds)
        if seconds - saved > 120 and rank == 0:
            learner.seconds, saved = seconds, seconds
            learner.save(path)
    learner.seconds = budget
    if rank == 0:
        learner.save(path)


def start_together() -> int:
    """The number of this process among those that torchrun has started; 0 without it."""
    if "RANK" not in os.environ:
        return 0
    dist.init_process_group("gloo")
    return dist.get_rank()


def stage_loss(stage: str, learner: Learner, data: Data) -> dict[str, Tensor]:
    """The loss of one step, by its name: what is learned is drawn by lot."""
    size, model, rng = BATCH[stage], learner.model, data.rng
    shares = SHARES_OF_ROLLOUT if stage == "rollout" else SHARES
    drawn = str(data.lots.choice(list(shares), p=list(shares.values())))
    given = int(data.lots.integers(0, 2))
    losses = {
        "starts": lambda: last_loss(learner.compiled, data.starts(BLOCKS * size), rng),
        "cuts": lambda: last_loss(learner.compiled, data.cuts(BLOCKS * size // 2), rng),
        "alone": lambda: alone_loss(model, data.batch(size), rng),
        "cascade": lambda: cascade_loss(model, data.batch(size), rng),
        "rollout": lambda: rollout_loss(model, data.batch(size, from_start=not given), rng, given),
    }
    return {drawn: losses[drawn]()}


def has_bf16(device: str) -> bool:
    return device == "cuda" or torch.cpu.get_capabilities().get("avx512_bf16", False)


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
    parser.add_argument("--start", type=Path, help="a checkpoint of another stage, or dit.safetensors, which is shipped")
    parser.add_argument("--rate", type=float, help="the highest; a stage has its own")
    parser.add_argument("--often", choices=VALUES["motion"], help="a motion to be learned three times as often")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="two are hardly faster; torchrun is")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
