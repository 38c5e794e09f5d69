"""Gathers what is shipped: the three networks in f16 or bf16 and the tokenizer.

    python -m train.export --run RUN --stage rollout

Writes them beside this folder, and their sizes and hashes into the manifest, `models/pocket.toml`; and into
this folder the encoder, which only training needs. The moments of the latents, which it prints, belong into
`src/wan/vae.rs`.
"""

import argparse
import hashlib
import json
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from .shipped import ENCODER, MOMENTS, POCKET
from .text import TOKENIZER, WEIGHTS


def halves(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.half().contiguous() for name, value in state.items()}


def describe(manifest: Path) -> None:
    """Brings the manifest's sizes and hashes up to date."""

    def entry(match: re.Match) -> str:
        data = (manifest.parent / match["path"]).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        return f'path = "{match["path"]}"\nsize = {len(data)}\nsha256 = "{digest}"'

    pattern = r'path = "(?P<path>[^"]+)"\nsize = \d+\nsha256 = "\w+"'
    manifest.write_text(re.sub(pattern, entry, manifest.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--stage", required=True, help="of the transformer")
    args = parser.parse_args()
    dit = torch.load(args.run / f"dit_{args.stage}.pt", map_location="cpu")["average"]
    save_file(halves(dit), POCKET / "dit.safetensors")
    decoder = torch.load(args.run / "vae" / "autoencoder.pt", map_location="cpu")["average"]
    decoder = {k.removeprefix("decoder."): v for k, v in decoder.items() if k.startswith("decoder.")}
    save_file(halves(decoder), POCKET / "vae.safetensors")
    moments = json.loads((args.run / "vae" / "moments.json").read_text())
    encoder = torch.load(args.run / "vae" / "encoder.pt", map_location="cpu")
    save_file(halves(encoder) | {name: torch.tensor(moments[name]) for name in MOMENTS}, ENCODER)
    for name in (WEIGHTS, TOKENIZER):
        shutil.copyfile(args.run / "text" / name, POCKET / name)
    describe(POCKET.parent / "pocket.toml")
    print(json.dumps(moments))


if __name__ == "__main__":
    main()
