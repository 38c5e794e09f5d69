"""How far the transformer is off behind a change of prompt, by what the prompt leaves to the past.

    python -m train.probe --run RUN --weights dit.safetensors

Mean squared error of latents, after the sampler's four steps behind clean blocks: of cells that the object touches,
and of all others. The first rows name all that is to be seen, the last ones nothing but the place.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from . import captions
from .attributes import VALUES, Scene
from .clips import BLOCKS
from .data import Batch, Data, Told
from .ensembles import ALIKE, MEMBERS, OTHER, Change, Ensemble
from .schedule import SIGMAS, WINDOW
from .train_transformer import denoised, keys_of, weights
from .transformer import Config, Sight, Transformer

SEED = 5
KINDS = ("everything, all named", "object, all named", "place, all named",
         "object, edit", "place, edit", "nothing, edit")  # fmt: skip
ALL_ANEW = ALIKE + 1  # the clip of an ensemble that shows everything anew


def full(rng: np.random.Generator, scene: Scene) -> str:
    return captions.caption(rng, scene, list(VALUES))


def changed(number: int, ensemble: Ensemble, name: str, rng: np.random.Generator, blocks: int) -> Told:
    """A change of what `name` says, up to `blocks` behind it."""
    what, says = name.split(", ")
    before = int(rng.integers(0, ALIKE))
    after = {"everything": ALL_ANEW, "nothing": before}.get(what, before ^ OTHER.get(what, 0))
    change = Change(before, after, ensemble.cut, 0 if what == "everything" else ensemble.cut)
    named = ensemble.changed(change) or {"setting": ensemble.shows(before).setting}
    old, new = ensemble.shows(before), ensemble.shows(after)
    second = full(rng, new) if says == "all named" else captions.edit(rng, named, old)
    shown = [(MEMBERS * number + clip, block) for clip, block in change.blocks()]
    told = Told(shown, (full(rng, old), second), ensemble.cut, ensemble.is_start)
    return told.part(ensemble.cut + blocks - 1 - WINDOW, ensemble.cut + blocks)


@torch.no_grad()
def errors(model: Transformer, batch: Batch) -> tuple[float, float]:
    """Of the last block: where the object is, and elsewhere."""
    torch.manual_seed(SEED)
    last = batch.x0.shape[1] - 1
    past, wanted = keys_of(model, batch, batch.x0, last), batch.part(slice(last, None))
    sight = Sight((last,), (tuple(range(last + 1)),))
    _, made = denoised(model, wanted, sight, past, learned=-1, steps=len(SIGMAS))
    error, on_object = (made - wanted.x0).square().mean(3, keepdim=True), wanted.weight > 1
    return float(error[on_object].mean()), float(error[~on_object].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="a checkpoint, or dit.safetensors")
    parser.add_argument("--count", type=int, default=16, help="clips of each kind")
    args = parser.parse_args()
    data, model = Data(args.run, "", None, SEED, 0, "cpu"), Transformer(Config()).eval()
    model.load_state_dict(weights(args.weights)["average"])
    chosen = np.linspace(0, len(data.ensembles) - 1, args.count).astype(int)
    print("| changes, and what the prompt says | blocks after | object | elsewhere |\n|---|---|---|---|")
    for name in KINDS:
        for blocks in (1, 2, BLOCKS // 2):
            rng = np.random.default_rng((SEED, blocks))
            told = [changed(int(n), data.ensembles[n], name, rng, blocks) for n in chosen]
            on_object, elsewhere = errors(model, data.shown(told))
            print(f"| {name} | {blocks} | {on_object:.3f} | {elsewhere:.3f} |", flush=True)


if __name__ == "__main__":
    main()
