"""How soon a new prompt is seen: the element, prompted while it runs, judged frame by frame.

    python -m eval.latency --out OUT

For each policy and cascade width, streams whose prompt changes to another setting while frames are read as
fast as they come. The change is seen in the first of some frames in a row that show the new setting. Needs
the plugin (`cargo build --release`). OUT gets latency.md and latency.json.
"""

import argparse
import json
import os
import shlex
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import numpy as np

from .evaluate import progress
from .judge import backgrounds
from .prompts import CHANGES, Case, Change, change
from .tool import BINARY

Array = np.ndarray
POLICIES = ("in-flight", "next-block", "recache", "cut")
WIDTHS = (1, 2, 3, 5)
SIZE = (192, 112)
FILLED = 9 + 12 * 6  # frames after which cascade and window are full at any width
PATIENCE = 12 * 8  # frames within which the change has to be seen
STEADY = 4  # frames in a row that settle it
OF_SETTING = CHANGES.index(("setting",))


@dataclass(frozen=True)
class Takeover:
    """How a prompt takes over, and how blocks are made."""

    policy: str
    width: int


@dataclass(frozen=True)
class Seen:
    """The first frame of the new setting, counted from the moment the prompt was given; `None`: never."""

    frames: int | None
    seconds: float | None


def seen(before: Case, after: Change, takeover: Takeover, extra: list[str]) -> Seen:
    """Prompts a stream that is running, and reads on until the change shows."""
    with stream(before, takeover, extra) as process:
        pictures = frames(process.stdout)
        for _ in range(FILLED):
            next(pictures)
        process.stdin.write((after.prompt + "\n").encode())
        process.stdin.flush()
        given, row = time.monotonic(), []
        for number in range(1, PATIENCE + 1):
            shown = shows(next(pictures), after)
            row = [*row, Seen(number, time.monotonic() - given)] if shown else []
            if len(row) == STEADY:
                return row[0]
    return Seen(None, None)


@contextmanager
def stream(before: Case, takeover: Takeover, extra: list[str]) -> Iterator[subprocess.Popen]:
    """The element: pictures on its stdout, prompts on its stdin."""
    command = [
        "gst-launch-1.0", "--quiet",
        "blockcascadesrc", "name=src", f"seed={before.seed}", f'prompt="{before.prompt}"',
        f"prompt-policy={takeover.policy}", f"cascade-width={takeover.width}",
        "wait-prompt=false", "queue-blocks=1", *extra,
        "!", f"video/x-raw,format=RGB,width={SIZE[0]},height={SIZE[1]}", "!", "fdsink", "sync=false",
        "fdsrc", "!", "text/x-raw,format=utf8", "!", "src.prompt",
    ]  # fmt: skip
    environment = os.environ | {"GST_PLUGIN_PATH": str(BINARY.parent)}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def frames(pipe: IO[bytes]) -> Iterator[Array]:
    """`(H, W, 3)` in u8."""
    width, height = SIZE
    while data := pipe.read(width * height * 3):
        yield np.frombuffer(data, np.uint8).reshape(height, width, 3)


def shows(frame: Array, after: Change) -> bool:
    match = backgrounds(*SIZE).match(frame[None].astype(np.float32) / 255)
    return match.verdict == after.scene.setting


def measure(takeover: Takeover, count: int, extra: list[str]) -> list[Seen]:
    results = []
    for index in range(count):
        before, after = change(len(CHANGES) * index + OF_SETTING)
        results.append(seen(before, after, takeover, extra))
        progress(f"{takeover}: {index + 1} of {count}")
    return results


def table(results: dict[Takeover, list[Seen]]) -> str:
    """A row for each policy, a column for each width."""
    widths = sorted({takeover.width for takeover in results})
    count = len(next(iter(results.values())))
    lines = [
        f"| frames (ms) to the new setting, median of {count} | "
        + " | ".join("sequential" if width == 1 else f"width {width}" for width in widths) + " |",
        "|---" + "|---" * len(widths) + "|",
    ]  # fmt: skip
    for policy in dict.fromkeys(takeover.policy for takeover in results):
        cells = (cell(results[Takeover(policy, width)]) for width in widths)
        lines.append(f"| {policy} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(results: list[Seen]) -> str:
    """The middle one, and how many were never seen."""
    never = sum(result.frames is None for result in results)
    found = sorted((r.frames, r.seconds) for r in results if r.frames is not None)
    if not found:
        return "never"
    middle = len(found) // 2
    seconds = sorted(seconds for _, seconds in found)[middle]
    missing = f", {never} never" if never else ""
    return f"{found[middle][0]} ({1000 * seconds:.0f}){missing}"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument("--count", type=int, default=9, help="changes for each policy and width")
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--policies", nargs="+", default=POLICIES, choices=POLICIES)
    parser.add_argument("--extra", type=shlex.split, default=[], help="more properties of the element")
    return parser.parse_args()


def main() -> None:
    args = options()
    args.out.mkdir(parents=True, exist_ok=True)
    takeovers = [Takeover(policy, width) for policy in args.policies for width in args.widths]
    results = {takeover: measure(takeover, args.count, args.extra) for takeover in takeovers}
    data = [asdict(takeover) | {"seen": [asdict(r) for r in seen]} for takeover, seen in results.items()]
    (args.out / "latency.json").write_text(json.dumps(data, indent=1))
    (args.out / "latency.md").write_text(table(results) + "\n")
    print("\n\n" + table(results))


if __name__ == "__main__":
    main()
