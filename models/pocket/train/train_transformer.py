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
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from . import curves, sample, schedule
from .attributes import VALUES
from .clips import BLOCKS
from .data import Batch, Data
from .muon import Muon
from .schedule import SIGMAS, WINDOW, mix
from .transformer import Config, Sight, Slots, Transformer

BATCH = {"small": 8, "full": 2, "rollout": 2}
PEAK_RATE = {"small": 3e-3, "full": 1.5e-3, "rollout": 5e-4}
# Steps by what they learn. In most blocks of a stream nothing is new: those that a prompt decides
# are learned apart.
SHARES = {"starts": 0.12, "cuts": 0.38, "alone": 0.22, "cascade": 0.28}
SHARES_OF_ROLLOUT = {"rollout": 0.15, "edits": 0.28, "starts": 0.15, "cuts": 0.17, "cascade": 0.25}
EMA = 0.998


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
        state = weights(path)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])


def weights(path: Path) -> dict:
    """Of a checkpoint, the model as it is and its moving average; of a shipped one, twice the latter."""
    if path.suffix != ".safetensors":
        return torch.load(path, map_location="cpu")
    shipped = {name: value.float() for name, value in load_file(path).items()}
    return {"model": shipped, "average": shipped}


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


def keys_of(model: Transformer, batch: Batch, x0: Tensor, blocks: int, learned: bool = True):
    """Keys and values that clean blocks leave behind; what to leave there can be `learned`, too."""
    with torch.set_grad_enabled(learned):
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


def cascade_loss(model: Transformer, data: Data, size: int) -> Tensor:
    """The blocks in flight of one tick, which the model's own ticks before it have led to.

    Without a past they start a stream: nothing else tells where in a motion they are. Behind a whole window the
    youngest of as many as there can be is left out, for clips are too short.
    """
    rng = data.rng
    stagger, past = int(rng.integers(1, 4)), int(rng.integers(0, WINDOW + 1))
    batch = data.batch(size, from_start=not past)
    passes = schedule.in_flight(stagger, int(rng.integers(0, stagger)))[: BLOCKS - past]
    first = int(rng.integers(0, BLOCKS - past - len(passes) + 1)) if past else 0
    earlier = batch.part(slice(first, first + past))
    kept = keys_of(model, earlier, spoiled(earlier.x0), past, learned=False) if past else None
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
    past = keys_of(model, batch, spoiled(batch.x0), given, learned=False) if given else None
    blocks = batch.x0.shape[1]
    for block in range(given, blocks):
        learned = int(rng.integers(0, len(SIGMAS)))
        part, past = roll_block(model, batch, block, past, learned)
        loss = loss + part
    return loss / (blocks - given)


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
    # On a CPU this thread's own time: what else the machine does takes nothing from the budget.
    clock = time.thread_time if args.device == "cpu" else time.monotonic
    budget, begun, saved = 60 * args.minutes, clock() - learner.seconds, 0.0
    while (seconds := mean_of_all(torch.tensor(clock() - begun)).item()) < budget:
        with torch.autocast(args.device, torch.bfloat16, enabled=has_bf16(args.device)):
            losses = stage_loss(args.stage, args.batch or BATCH[args.stage], learner, data)
        learner.learn(losses, seconds / budget)
        if learner.steps % 25 == 0 and rank == 0:
            report(args, learner, seconds)
        if seconds - saved > 120 and rank == 0:
            learner.seconds, saved = seconds, seconds
            learner.save(path)
    learner.seconds = max(budget, learner.seconds)
    if rank == 0:
        learner.save(path)
        sample.draw(args.run, args.stage).save(path.with_suffix(".png"))


def start_together() -> int:
    """The number of this process among those that torchrun has started; 0 without it."""
    if "RANK" not in os.environ:
        return 0
    dist.init_process_group("gloo")
    return dist.get_rank()


def stage_loss(stage: str, size: int, learner: Learner, data: Data) -> dict[str, Tensor]:
    """The loss of one step of `size` clips, by its name: what is learned is drawn by lot."""
    model, rng = learner.model, data.rng
    shares = SHARES_OF_ROLLOUT if stage == "rollout" else SHARES
    drawn = str(data.lots.choice(list(shares), p=list(shares.values())))
    given = int(data.lots.integers(0, 2))
    losses = {
        "starts": lambda: last_loss(learner.compiled, data.starts(BLOCKS * size), rng),
        "cuts": lambda: last_loss(learner.compiled, data.cuts(BLOCKS * size // 2), rng),
        "alone": lambda: alone_loss(model, data.batch(size), rng),
        "cascade": lambda: cascade_loss(model, data, size),
        "rollout": lambda: rollout_loss(model, data.batch(size, from_start=not given), rng, given),
        "edits": lambda: rollout_loss(model, data.edits(2 * size), rng, WINDOW),
    }
    return {drawn: losses[drawn]()}


def has_bf16(device: str) -> bool:
    return device == "cuda" or torch.cpu.get_capabilities().get("avx512_bf16", False)


def report(args: argparse.Namespace, learner: Learner, seconds: float) -> None:
    line = {"stage": args.stage, "step": learner.steps, "seconds": round(seconds)}
    line |= {name: round(sum(values) / len(values), 4) for name, values in learner.recent.items()}
    learner.recent.clear()
    print(json.dumps(line), flush=True)
    log = args.run / "dit.jsonl"
    with log.open("a") as lines:
        lines.write(json.dumps(line) + "\n")
    curves.draw(log).save(args.run / "losses.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--stage", choices=tuple(BATCH), required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--start", type=Path, help="a checkpoint of another stage, or dit.safetensors, which is shipped")
    parser.add_argument("--rate", type=float, help="the highest; a stage has its own")
    parser.add_argument("--batch", type=int, help="clips of an update, in each process; a stage has its own")
    parser.add_argument("--often", choices=VALUES["motion"], help="a motion to be learned three times as often")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="two are hardly faster; torchrun is")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
