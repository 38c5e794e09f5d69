"""Trains pocket's tokenizer and text encoder: `python -m train.train_text --out FOLDER`.

Every token of a prompt is to know which value of each attribute the prompt names, or that it names
none. Linear heads ask for it and are thrown away; what stays is frozen for the video network.
"""

import argparse
import copy
import json
import math
import re
import sysconfig
import time
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from .attributes import VALUES, Scene, is_held_out
from .captions import Rng, TIME_ADJECTIVES, TIME_NOUNS, WORDS, caption, chance, edit, name_of, pick
from .muon import Muon
from .text import TOKENIZER, WEIGHTS, TextConfig, Umt5Encoder, clean, tokenize, train_tokenizer

FUNCTION_WORDS = set("a to the on in it up of is at by and with x go one come get keep down".split())
STAY = 2.0  # what it costs to leave an encoder that is known
FALLBACK_ENGLISH = (
    "this is a sentence about nothing in particular", "please wait until the file has been read",
    "returns the number of items in the list", "i do not know what they think of it",
)  # fmt: skip

# Prompts from no template, with kind, colour, setting, motion, size and time; "-" is not named.
HANDWRITTEN = (
    ("a crimson ball bounces across a night sky", "ball red sky bouncing - night"),
    ("make it a blue cube", "cube blue - - - -"),
    ("A huge heart, pink, rotating slowly above the ocean at sunset", "heart pink sea spinning large dusk"),
    ("Now let's see what happens when night comes", "- - - - - night"),
    ("could you turn the whole thing green?", "- green - - - -"),
    ("There's this tiny yellow star falling over a snowy landscape in the evening.", "star yellow snow falling small dusk"),
    ("white cross, city, circling", "cross white city circling - -"),
    ("An orange donut hops along the beach on a sunny morning", "ring orange beach bouncing - day"),
    ("Deep in the woods, a black diamond is growing.", "diamond black forest growing - -"),
    ("purple pyramid rising out of the dunes, golden hour", "triangle purple desert rising - dusk"),
    ("a cyan orb drifts left past tall mountain peaks", "ball cyan mountains left - -"),
    ("Under a pink evening sky, a small white cube spins on the beach", "cube white beach spinning small dusk"),
    ("a red ball in a green forest", "ball red forest - - -"),
    ("A green ball lost in the golden desert", "ball green desert - - -"),
    ("blue ring over white snow, midnight", "ring blue snow - - night"),
    ("Big black box! It jumps! In the city!", "cube black city bouncing large -"),
    ("i'd love a really big purple heart please", "heart purple - - large -"),
    ("let it fall", "- - - falling - -"),
    ("we are in the desert now", "- - desert - - -"),
    ("bigger", "- - - - large -"),
    ("a star instead", "star - - - - -"),
    ("now at night", "- - - - - night"),
    ("change the colour to green", "- green - - - -"),
    ("make it smaller and paint it black", "- black - - small -"),
    ("spin!", "- - - spinning - -"),
    ("it should go right", "- - - right - -"),
    ("off to the mountains we go", "- - mountains - - -"),
    ("And suddenly, it is a gigantic turquoise ring", "ring cyan - - large -"),
    ("the cube becomes red", "cube red - - - -"),
    ("same thing but in the forest, at dusk", "- - forest - - dusk"),
    ("Hello there, how are you?", "- - - - - -"),
    ("", "- - - - - -"),
    ("The quick brown dog reads a newspaper", "- - - - - -"),
    ("你好，世界 🎉🎉", "- - - - - -"),
    ("quarterly earnings report of the company", "- - - - - -"),
    ("A cinematic, ultra detailed shot: an emerald gem orbits above the skyscrapers downtown, moonlit", "diamond green city circling - night"),
    ("a scarlet sphere swells in the middle of the sea", "ball red sea growing - -"),
    ("little pink star moving from left to right in the sky", "star pink sky right small -"),
    ("a violet hoop moving from right to left across the waves at dawn", "ring purple sea left - dusk"),
    ("medium-sized orange triangle, desert, bouncing, noon", "triangle orange desert bouncing medium day"),
    ("The snow is white and the diamond is red; it sinks.", "diamond red snow falling - -"),
    ("Yellow plus sign pulsing over a city at night, 4k, masterpiece", "cross yellow city growing - night"),
    ("a BLUE STAR RISES OVER THE OCEAN", "star blue sea rising - -"),
    ("a sky blue cube on a beach", "cube blue beach - - -"),
    ("watch a beach ball roll to the right along the shore", "ball - beach right - -"),
    ("giant heart beating and growing in the clouds", "heart - sky growing large -"),
    ("a falling star, yellow, over the snowy mountains at night", "star yellow mountains falling - night"),
    ("one lonely white ring circling among the trees by moonlight", "ring white forest circling - night"),
    ("Cube. Red. Sky. Spinning.", "cube red sky spinning - -"),
    ("a red sunset over the sea with a black cross that floats up", "cross black sea rising - dusk"),
    ("in a forest at noon a golden ball slides leftwards", "ball yellow forest left - day"),
    ("Three words: tiny green triangle", "triangle green - - small -"),
    ("A blue triangle under the stars, turning", "triangle blue - spinning - night"),
    ("show a ruby heart leaping around a snow-covered field in broad daylight", "heart red snow bouncing - day"),
    ("no longer red, it is now orange", "- orange - - - -"),
    ("stop it from bouncing, let it grow instead", "- - - growing - -"),
    ("daylight again, and back to the seaside", "- - beach - - day"),
    ("Swap the ball for a cross and send it up", "cross - - rising - -"),
    ("An oversized lavender cube tumbles down in front of a skyline at twilight", "cube purple city falling large dusk"),
    ("a pink diamnod bounces in the dessert", "diamond pink desert bouncing - -"),
    ("The video opens on a vast ocean under the midday sun. In the centre a small orange ball moves slowly to the left while the waves roll.", "ball orange sea left small day"),
    ("Bob's favourite toy, a lime green ring, rotates on a beach in Florida", "ring green beach spinning - -"),
    ("the sun goes down over the mountains", "- - mountains - - dusk"),
    ("mountain, cube, white, large, going up, evening", "cube white mountains rising large dusk"),
    ("black ball on black sand at the sea shore", "ball black beach - - -"),
    ("a star made of gold hovers over the city lights after dark", "star yellow city - - night"),
)  # fmt: skip


class Prober(nn.Module):
    """The encoder with a linear head for each attribute."""

    def __init__(self, cfg: TextConfig):
        super().__init__()
        self.encoder = Umt5Encoder(cfg)
        # Ones, so that the embeddings have unit RMS, as the video network likes its inputs.
        self.encoder.norm.weight.requires_grad_(False)
        self.heads = nn.Linear(cfg.dim, sum(len(values) + 1 for values in VALUES.values()))

    def forward(self, ids: Tensor, lengths: Tensor) -> list[Tensor]:
        """Logits of each attribute by token, (B, n, values + 1) with "not named" first."""
        return self.told(self.encoder(ids, lengths))

    def told(self, x: Tensor) -> list[Tensor]:
        return self.heads(x.float()).split([len(values) + 1 for values in VALUES.values()], dim=-1)


def averaged(logits: Tensor, lengths: Tensor) -> Tensor:
    """Logits by token (B, n, c) averaged over the real tokens: (B, c)."""
    real = torch.arange(logits.shape[1], device=logits.device) < lengths[:, None]
    return (logits * real[..., None]).sum(1) / lengths[:, None]


def loss_of(logits: list[Tensor], lengths: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the averaged logits and, less, of each token's.

    `logits` are (B, n, values + 1) by attribute, `labels` (B, attributes).
    """
    n = logits[0].shape[1]
    real = torch.arange(n, device=lengths.device) < lengths[:, None]
    total = torch.zeros((), device=lengths.device)
    for i, by_token in enumerate(logits):
        total += F.cross_entropy(averaged(by_token, lengths), labels[:, i])
        rows = labels[:, i, None].expand(-1, n)
        total += 0.5 * F.cross_entropy(by_token[real], rows[real])
    return total


def english() -> list[str]:
    """Sentences without a word of ours, from the docstrings of Python's standard library."""
    texts = chain.from_iterable(WORDS[name].values() for name in WORDS)
    texts = chain.from_iterable([*texts, *TIME_ADJECTIVES.values(), *TIME_NOUNS.values()])
    ours = set(re.findall(r"[a-z]+", " ".join(texts).replace("_", " "))) - FUNCTION_WORDS
    ours |= {"sun", "moon", "stars", "circles", "rings", "colors", "bigger", "smaller", "larger"}
    sentences = set(FALLBACK_ENGLISH)
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for text in re.findall(r'"""(.*?)"""', path.read_text(errors="ignore"), re.DOTALL):
            sentences.update(re.split(r"(?<=[.:;])\s+|\n\s*\n", text))
    kept = (" ".join(s.split()) for s in sentences)
    words = re.compile(r"[a-z]+")
    return sorted(s for s in kept if 8 < len(s) < 160 and not ours & set(words.findall(s.lower())))


def scene(rng: Rng, held_out: bool) -> Scene:
    while True:
        drawn = Scene(*(pick(rng, values) for values in VALUES.values()))
        if is_held_out(drawn) == held_out:
            return drawn


def some(rng: Rng, most: int) -> list[str]:
    """One to `most` attributes."""
    return list(rng.permutation(list(VALUES))[: 1 + int(rng.integers(most))])


def stray(rng: Rng, sentences: list[str]) -> str:
    """Text that names nothing."""
    kind = rng.random()
    if kind < 0.1:
        return ""
    if kind < 0.3:
        return " ".join(name_of(rng) for _ in range(1 + int(rng.integers(4))))
    text = pick(rng, sentences)
    if kind < 0.6:
        words = text.split()
        at = int(rng.integers(len(words)))
        text = " ".join(words[at : at + 1 + int(rng.integers(6))])
    return text


def example(rng: Rng, sentences: list[str], held_out: bool = False) -> tuple[str, dict[str, str]]:
    """A prompt and the attributes that it names."""
    kind = rng.random()
    if kind < 0.1:
        return stray(rng, sentences), {}
    drawn = scene(rng, held_out)
    names = list(VALUES) if kind < 0.4 else some(rng, 6) if kind < 0.7 else some(rng, 3)
    named = {name: getattr(drawn, name) for name in names}
    text = caption(rng, drawn, names) if kind < 0.7 else edit(rng, named)
    if chance(rng, 0.1):
        text += pick(rng, (" ", ". ", ", ")) + stray(rng, sentences)
    elif chance(rng, 0.06):
        text = " ".join(stray(rng, sentences).split()[:12]) + pick(rng, (" ", ". ", ", ")) + text
    return text, named


def labels_of(named: list[dict[str, str]]) -> Tensor:
    """(B, attributes); 0 is "not named"."""
    rows = [[1 + v.index(n[a]) if a in n else 0 for a, v in VALUES.items()] for n in named]
    return torch.tensor(rows)


def batch(prober: Prober, tokenizer, examples: list[tuple[str, dict[str, str]]]):
    """Token ids (B, n), lengths (B) and labels (B, attributes), where the network is."""
    texts, named = zip(*examples)
    ids, lengths = tokenize(tokenizer, [clean(text) for text in texts])
    device = prober.heads.weight.device
    return ids.to(device), lengths.to(device), labels_of(list(named)).to(device)


def moved(before: Umt5Encoder, x: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
    """How far embeddings `x` are from those that an encoder `before` made, squared."""
    real = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
    with torch.no_grad():
        old = before(ids, lengths)
    return F.mse_loss(x[real], old[real])


def rate_at(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then a cosine down to nothing."""
    return peak * min(1, step / 200) * 0.5 * (1 + math.cos(math.pi * step / steps))


def batches(rng: Rng, tokenizer, sentences: list[str], size: int):
    """Endless lists of examples, each of prompts about equally long: padding costs time."""
    while True:
        pool = [example(rng, sentences) for _ in range(16 * size)]
        lengths = [len(e.ids) for e in tokenizer.encode_batch([text for text, _ in pool])]
        order = np.argsort(lengths, kind="stable").reshape(16, size)
        for rows in rng.permutation(order):
            yield [pool[i] for i in rows]


def muon_and_adamw(prober: Prober) -> list[torch.optim.Optimizer]:
    """Muon for the matrices within, AdamW for tables, vectors and heads."""
    named = [(n, p) for n, p in prober.named_parameters() if p.requires_grad]
    within = {n for n, p in named if p.ndim == 2 and ".blocks." in n and "pos_embedding" not in n}
    others = [p for n, p in named if n not in within]
    return [Muon([p for n, p in named if n in within]),
            torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.01)]


def train(prober: Prober, before: Umt5Encoder | None, tokenizer, sentences: list[str], args: argparse.Namespace) -> None:
    """From nothing, or away from an encoder `before` no more than it has to be."""
    source = batches(np.random.default_rng(args.seed), tokenizer, sentences, args.batch)
    weights = [p for p in prober.parameters() if p.requires_grad]
    optimisers = muon_and_adamw(prober)
    start = time.time()
    for step in range(1, args.steps + 1):
        ids, lengths, labels = batch(prober, tokenizer, next(source))
        embedding = prober.encoder(ids, lengths)
        loss = loss_of(prober.told(embedding), lengths, labels)
        if before:
            loss = loss + STAY * moved(before, embedding, ids, lengths)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        for optimiser in optimisers:
            optimiser.param_groups[0]["lr"] = rate_at(step, args.steps, args.rate)
            optimiser.step()
            optimiser.zero_grad()
        if step % 100 == 0:
            print(f"step {step} loss {loss.item():.4f} {time.time() - start:.0f} s", flush=True)


@torch.no_grad()
def predict(prober: Prober, tokenizer, examples: list) -> tuple[Tensor, Tensor]:
    """What the averaged logits say, and the labels: both (examples, attributes)."""
    said, wanted = [], []
    for at in range(0, len(examples), 256):
        ids, lengths, labels = batch(prober, tokenizer, examples[at : at + 256])
        logits = prober(ids, lengths)
        said.append(torch.stack([averaged(l, lengths).argmax(-1) for l in logits], dim=1))
        wanted.append(labels)
    return torch.cat(said), torch.cat(wanted)


def accuracy(prober: Prober, tokenizer, examples: list, show: bool = False) -> dict[str, float]:
    """Share of right answers per attribute and over all of them."""
    said, wanted = predict(prober, tokenizer, examples)
    right = said == wanted
    for i, j in (~right).nonzero().tolist() if show else []:
        name, values = list(VALUES.items())[j]
        print(f"{name} is {(None, *values)[said[i, j]]}: {examples[i][0]!r}")
    figures = dict(zip(VALUES, right.float().mean(0).tolist()))
    figures = figures | {"all": right.float().mean().item()}
    return {name: round(figure, 5) for name, figure in figures.items()}


def evaluate(prober: Prober, tokenizer, sentences: list[str]) -> dict[str, dict[str, float]]:
    rng = np.random.default_rng(99)
    held_out = [example(rng, sentences, held_out=True) for _ in range(4000)]
    written = [(text, dict(zip(VALUES, values.split()))) for text, values in HANDWRITTEN]
    written = [(text, {n: v for n, v in named.items() if v != "-"}) for text, named in written]
    figures = {}
    for dtype in (torch.float32, torch.bfloat16):
        # Frozen weights are stored in bf16, so the first round changes nothing else.
        prober.encoder.to(torch.bfloat16).to(dtype)
        name = str(dtype).removeprefix("torch.")
        figures[f"held_out_{name}"] = accuracy(prober, tokenizer, held_out, show=False)
        figures[f"handwritten_{name}"] = accuracy(prober, tokenizer, written, show=True)
    return figures


def make_tokenizer(rng: Rng, sentences: list[str], vocab: int):
    """A tokenizer for prompts first and English second."""
    prompts = [clean(example(rng, sentences)[0]) for _ in range(40_000)]
    return train_tokenizer(prompts + sentences, vocab)


def save(prober: Prober, tokenizer, figures: dict, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weights = prober.encoder.state_dict()
    weights = {name: w.to("cpu", torch.bfloat16).contiguous() for name, w in weights.items()}
    save_file(weights, folder / WEIGHTS)
    (folder / TOKENIZER).write_text(tokenizer.to_str(pretty=False))
    (folder / "text_figures.json").write_text(json.dumps(figures, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="a folder with an encoder that a transformer has learned, to go on from")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    start = time.time()
    sentences = english()
    cfg = TextConfig()
    tokenizer = (Tokenizer.from_file(str(args.start / TOKENIZER)) if args.start
                 else make_tokenizer(np.random.default_rng(args.seed + 1), sentences, cfg.vocab))
    pieces = tokenizer.get_vocab_size()
    print(f"{len(sentences)} sentences, {pieces} pieces, {time.time() - start:.0f} s")
    prober, before = Prober(cfg).to(args.device), None
    if args.start:
        prober.encoder.load_state_dict(load_file(args.start / WEIGHTS))
        before = copy.deepcopy(prober.encoder)
    train(prober, before, tokenizer, sentences, args)
    figures = {"config": vars(cfg), "steps": args.steps, "seconds": round(time.time() - start)}
    figures |= evaluate(prober, tokenizer, sentences)
    save(prober, tokenizer, figures, args.out)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
