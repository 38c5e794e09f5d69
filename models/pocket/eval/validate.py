"""Judges rendered clips, of which it is known what they show: is the judge right, and is it strict?

    python -m eval.validate --count 200

The first table has clips as drawn and lightly degraded, half of them a stream's first frames and
half from its middle; at least 98 % must be right. The second has clips that do not show what was
asked for: in the columns in question at most a quarter may be called right.
"""

import argparse
import time
from collections.abc import Iterator

import numpy as np

from train.world import Variation, World, random_scene

from .judge import ATTRIBUTES, judge
from .spoil import BEARABLE, Forger

Rng = np.random.Generator
BAR = 0.98
MOST = 0.25
FRAMES = 33
COLUMNS = (*ATTRIBUTES, "time")
# What each forgery lacks.
FORGERIES = {
    "faded": "colour kind motion", "absent": "colour kind motion", "recoloured": "colour",
    "frozen": "motion", "shuffled": "motion", "smeared": "kind", "washed": "colour setting",
    "noise": "colour setting kind motion",
}  # fmt: skip


def scenes(world: World, count: int, frames: int, salt: int) -> Iterator[tuple[Forger, Rng]]:
    """Random scenes, held out or not, from the stream's start and from its middle by turns."""
    for index in range(count):
        rng = np.random.default_rng((salt, index))
        first = int(rng.integers(1, 2000)) if index % 2 else 0
        yield Forger(world, random_scene(rng), Variation.random(rng), first, frames), rng


def forged(forger: Forger, name: str, rng: Rng) -> np.ndarray:
    clips = {
        "faded": forger.faded, "absent": forger.empty, "frozen": forger.frozen,
        "smeared": forger.smeared, "washed": forger.washed,
        "recoloured": lambda: forger.recoloured(rng), "noise": lambda: forger.noise(rng),
        "shuffled": lambda: forger.shuffled(rng),
    }  # fmt: skip
    return clips[name]()


def row(name: str, rights: list[dict[str, bool]], missing: str = "") -> str:
    means = {c: np.mean([right[c] for right in rights]) for c in COLUMNS}
    marked = [f"**{100 * m:.1f}**" if c in missing.split() else f"{100 * m:.1f}" for c, m in means.items()]
    return f"| {name} | {len(rights)} | " + " | ".join(marked) + " |"


def heading(first: str) -> str:
    return f"| {first} | clips | " + " | ".join(COLUMNS) + " |\n|---" + "|---" * (len(COLUMNS) + 1) + "|"


def bearable(world: World, args: argparse.Namespace) -> bool:
    """The first table, and whether all of it reaches the bar."""
    print(heading(f"{args.size}, {args.frames} frames, right %"))
    reached = True
    for salt, (name, spoil) in enumerate(BEARABLE.items()):
        rights, begun = [], time.process_time()
        for forger, rng in scenes(world, args.count, args.frames, salt):
            verdict = judge(spoil(forger.true(), rng))
            rights.append(verdict.right(forger.scene))
            if args.verbose and not all(rights[-1].values()):
                print(explained(name, forger, verdict))
        print(row(name, rights), f" {(time.process_time() - begun) / args.count:.2f} s a clip")
        reached &= all(np.mean([r[c] for r in rights]) >= BAR for c in ATTRIBUTES)
    return reached


def unbearable(world: World, args: argparse.Namespace) -> bool:
    """The second table, and whether the judge believes little of it."""
    print("\n" + heading("what is wrong, right %"))
    seen_through = True
    for salt, (name, missing) in enumerate(FORGERIES.items()):
        rights = []
        for forger, rng in scenes(world, args.count // 2, args.frames, 100 + salt):
            verdict = judge(forged(forger, name, rng))
            rights.append(verdict.right(forger.scene))
            if args.verbose and any(rights[-1][c] for c in missing.split()):
                print(explained(name, forger, verdict))
        print(row(name, rights, missing))
        seen_through &= all(np.mean([r[c] for r in rights]) <= MOST for c in missing.split())
    return seen_through


def explained(name: str, forger: Forger, verdict) -> str:
    told = {c: getattr(verdict, c) for c in COLUMNS}
    numbers = {k: round(v, 2) for k, v in verdict.movement.numbers.items()}
    return (f"{name} from {forger.first}: {tuple(vars(forger.scene).values())}\n  {told}\n"
            f"  {verdict.background}\n  {verdict.hue}\n  {verdict.outline}\n"
            f"  {verdict.movement.scores} {numbers}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=200, help="clips per row")
    parser.add_argument("--size", default="192x112")
    parser.add_argument("--frames", type=int, default=FRAMES)
    parser.add_argument("--only", choices=("bearable", "unbearable"))
    parser.add_argument("--verbose", action="store_true", help="the evidence of what went wrong")
    args = parser.parse_args()
    world = World(*map(int, args.size.split("x")))
    reached = args.only == "unbearable" or bearable(world, args)
    seen_through = args.only == "bearable" or unbearable(world, args)
    if not reached:
        raise SystemExit(f"fewer than {100 * BAR:.0f} % right")
    raise SystemExit(0 if seen_through else f"more than {100 * MOST:.0f} % of a forgery believed")


if __name__ == "__main__":
    main()
