"""Runs `blockcascade generate` and yields its frames as they come."""

import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from . import y4m
from .prompts import Case, Change

ROOT = Path(__file__).parents[3]
BINARY = ROOT / "target/release/blockcascade"


@dataclass(frozen=True)
class Setting:
    """How blocks are made."""

    width: int = 1
    attention: str = "bidirectional"
    budget: str = "history"
    history: str = "clean"

    def __str__(self) -> str:
        if self.history != "clean":
            return self.history
        if self.width == 1:
            return "sequential"
        budget = "" if self.budget == "history" else f", {self.budget} budget"
        return f"width {self.width} {self.attention}{budget}"

    def flags(self) -> list[str]:
        return [
            "--width", str(self.width), "--attention", self.attention,
            "--history-budget", self.budget, "--history", self.history,
        ]  # fmt: skip


@dataclass(frozen=True)
class Tool:
    """The program, and what is passed on to it for every stream."""

    binary: Path = BINARY
    extra: tuple[str, ...] = ()

    def frames(
        self, case: Case, setting: Setting, count: int, changes: dict[int, Change] | None = None, ahead: int = 0
    ) -> Iterator[np.ndarray]:
        """`count` pictures `(H, W, 3)` in u8, of a stream that goes on for `ahead` more; `changes` by the block from
        which they hold."""
        command = [self.binary, "generate", "-o", "-", "--frames", str(count + ahead)]
        command += ["--seed", str(case.seed), *setting.flags(), *self.extra]
        for block, change in (changes or {}).items():
            command += ["--prompt-at", f"{block}:{change.prompt}"]
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(
                [*command, "--", case.prompt], stdout=subprocess.PIPE, stderr=log, bufsize=1 << 20
            )
            with process:  # closes the pipe, which ends the tool, and waits for it
                shown = 0
                for shown, frame in enumerate(islice(y4m.frames(process.stdout), count), 1):
                    yield frame
                if ahead and shown == count:
                    process.kill()
                    return
            if process.returncode:
                log.seek(0)
                raise RuntimeError(f"{self.binary} ended with {process.returncode}: {log.read().decode()[-800:]}")

    def clip(self, *args, **kwargs) -> np.ndarray:
        """`(count, H, W, 3)` in u8."""
        return np.stack(list(self.frames(*args, **kwargs)))
