"""Goes on from what is shipped: fills a folder with what training would have left there.

    python -m train.shipped --run RUN

After it, make latents, and train the transformer with `--start dit.safetensors`. The
auto-encoder stays as it is: all latents are its own.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from .text import TOKENIZER, WEIGHTS

POCKET = Path(__file__).resolve().parent.parent
ENCODER = POCKET / "train" / "encoder.safetensors"
MOMENTS = ("mean", "std")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    run = parser.parse_args().run
    for folder in ("vae", "text"):
        (run / folder).mkdir(parents=True, exist_ok=True)
    for name in (WEIGHTS, TOKENIZER):
        shutil.copyfile(POCKET / name, run / "text" / name)
    encoder = {name: value.float() for name, value in load_file(ENCODER).items()}
    moments = {name: [round(x, 4) for x in encoder.pop(name).tolist()] for name in MOMENTS}
    (run / "vae" / "moments.json").write_text(json.dumps(moments) + "\n")
    torch.save(encoder, run / "vae" / "encoder.pt")
    decoder = load_file(POCKET / "vae.safetensors")
    average = {f"decoder.{name}": value.float() for name, value in decoder.items()}
    torch.save({"average": average}, run / "vae" / "autoencoder.pt")


if __name__ == "__main__":
    main()
