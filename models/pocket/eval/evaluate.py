"""The table of the model card: frames made by the tool, judged by their pixels.

    python -m eval.evaluate --out OUT                      # 200 held-out prompts, sequential
    python -m eval.evaluate --out OUT --width 3 --skip 6   # what the stream shows behind six blocks
    python -m eval.evaluate --out OUT --matrix             # all widths, modes, budgets, histories
    python -m eval.evaluate --out OUT --parts clips changes long

OUT gets results.md, results.json, sheet.png and strip.png.
"""

import argparse
import json
import shlex
import sys
from collections import deque
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from train.attributes import VALUES
from train.world import FPS, Cut, Variation, World

from . import measure, sheet
from .judge import ATTRIBUTES, Verdict, judge
from .prompts import Case, Change, case, change
from .tool import BINARY, Setting, Tool

Array = np.ndarray
MATRIX = (
    *(Setting(width) for width in (1, 2, 3, 5)),
    *(Setting(width, "causal") for width in (2, 3, 5)),
    *(Setting(width, budget="constant") for width in (2, 3, 5)),
    Setting(5, "causal", "constant"),
    Setting(4, history="stage-matched"),  # the same at any width
)
BARS = {"colour": 0.95, "setting": 0.95, "kind": 0.85, "motion": 0.85}
AHEAD = 5  # blocks that may be in flight behind those that are judged
CHANGE_BLOCK = 3  # whose first frame is the first of the new prompt
WITHIN = 24  # frames in which a change has to show; the last half of them is judged
EDGE = 10 * FPS  # frames at either end of a long stream that are compared
WINDOW = 33  # frames of it that are judged at once
SHEET_ROWS = 10


@dataclass
class Clips:
    """What is kept of a setting's clips."""

    setting: Setting
    cases: list[dict[str, Any]] = field(default_factory=list)
    kept: list[tuple[str, Array]] = field(default_factory=list)  # for the contact sheet

    def add(self, case: Case, clip: Array, start: int) -> None:
        """What a stream shows from its frame `start` on."""
        verdict = judge(clip)
        across, beside = measure.jumps(clip, start)
        self.cases.append({
            "prompt": case.prompt, "seed": case.seed, "asked": vars(case.scene),
            **told(verdict, case), "across": across, "beside": beside,
            **looks(clip, case, start),
        })  # fmt: skip
        if len(self.kept) < SHEET_ROWS:
            self.kept.append((case.prompt, clip))

    def mean(self, name: str) -> float:
        return float(np.mean([c[name] for c in self.cases]))

    def figures(self) -> dict[str, float]:
        right = {n: float(np.mean([c["right"][n] for c in self.cases])) for n in (*ATTRIBUTES, "time")}
        return right | {
            "jump": self.mean("across") / max(self.mean("beside"), 1e-9),
            "contrast": self.mean("contrast"), "sharpness": self.mean("sharpness"),
            "drawn contrast": self.mean("drawn contrast"),
            "drawn sharpness": self.mean("drawn sharpness"),
        }  # fmt: skip


def told(verdict: Verdict, case: Case) -> dict[str, Any]:
    """A verdict and what it rests on, as JSON knows it."""
    return {
        "told": {n: getattr(verdict, n) for n in (*ATTRIBUTES, "time")},
        "right": verdict.right(case.scene),
        "evidence": {
            "setting": verdict.background.distance, "colour": verdict.hue.distance,
            "kind": verdict.outline.overlap, **verdict.movement.scores,
        },
    }  # fmt: skip


def looks(clip: Array, case: Case, start: int) -> dict[str, float]:
    """Contrast and sharpness, and those of the same scene as the world draws it."""
    world = World(clip.shape[2], clip.shape[1])
    drawn = world.clip([Cut(0, case.scene)], Variation(), start + 16, 1)
    return {
        "contrast": measure.contrast(clip), "sharpness": measure.sharpness(clip),
        "drawn contrast": measure.contrast(drawn), "drawn sharpness": measure.sharpness(drawn),
    }  # fmt: skip


def clips(tool: Tool, setting: Setting, prompts: range, frames: int, skip: int) -> Clips:
    """`frames` of a stream for each prompt, behind `skip` blocks: as one that goes on, where there are any."""
    result, start = Clips(setting), measure.block_start(skip)
    ahead = measure.LATER * AHEAD if skip else 0
    for done, index in enumerate(prompts, 1):
        one = case(index)
        result.add(one, tool.clip(one, setting, start + frames, ahead=ahead)[start:], start)
        progress(f"{setting}: clip {done} of {len(prompts)}")
    return result


def changes(tool: Tool, setting: Setting, count: int) -> list[dict[str, Any]]:
    """Streams whose prompt changes: what they show at the end of the frames that it may take."""
    start = measure.block_start(CHANGE_BLOCK)
    results, asked = [], asked_changes(count)
    for index, (before, after) in enumerate(asked):
        told = {CHANGE_BLOCK: after} if after.names else None
        clip = tool.clip(before, setting, start + WITHIN, told)
        verdict = judge(clip[start + WITHIN // 2 :])
        drawn = judge(drawn_change(before, after, clip.shape[1:3], start + WITHIN // 2))
        results.append({
            "prompt": before.prompt, "change": after.prompt, "names": after.names,
            "whole": after.whole, "told": {n: getattr(verdict, n) for n in ATTRIBUTES},
            "right": seen(verdict, after), "drawn": seen(drawn, after),
        })  # fmt: skip
        progress(f"{setting}: change {index + 1} of {len(asked)}")
    return results


def asked_changes(count: int) -> list[tuple[Case, Change]]:
    """As edits; again, those that were none yet by whole prompts; and, to compare with, the same streams unchanged."""
    edits = [change(index) for index in range(count)]
    whole = [change(index, whole=True) for index, (_, after) in enumerate(edits) if not after.whole]
    return edits + whole + [(before, Change(before.scene, before.prompt, (), False)) for before, _ in edits]


def seen(verdict: Verdict, change: Change) -> dict[str, bool]:
    right = verdict.right(change.scene)
    return {"object": right["colour"] and right["kind"], **{n: right[n] for n in ("colour", "kind", "setting")}}


def drawn_change(before: Case, after: Change, size: tuple[int, int], first: int) -> Array:
    """What the world shows where the change is judged: now and then its object is on its way out of the picture."""
    cuts = [Cut(0, before.scene), Cut(measure.block_start(CHANGE_BLOCK), after.scene)]
    return World(size[1], size[0]).clip(cuts, Variation(), first, WITHIN // 2)


def long(tool: Tool, setting: Setting, count: int, minutes: float) -> list[dict[str, Any]]:
    """The two ends of long streams; of each, only these are ever in memory."""
    results = []
    for index in range(count):
        one, total = case(index), int(minutes * 60 * FPS)
        stream = tool.frames(one, setting, total)
        first, last = list(islice(stream, EDGE)), deque(maxlen=EDGE)
        for number, frame in enumerate(stream, EDGE):
            last.append(frame)
            if number % EDGE == 0:
                progress(f"{setting}: stream {index + 1} of {count}, {number / FPS:.0f} s")
        ends = {"first": end(first, one, 0), "last": end(last, one, total - EDGE)}
        results.append({"prompt": one.prompt, **ends})
    return results


def end(frames: list[Array] | deque[Array], case: Case, at: int) -> dict[str, Any]:
    """What is right, by windows, and how it looks, from frame `at` of the stream on."""
    clip = np.stack(list(frames))
    windows = [clip[at : at + WINDOW] for at in range(0, len(clip) - WINDOW + 1, WINDOW)]
    rights = [judge(window).right(case.scene) for window in windows]
    means = {n: float(np.mean([r[n] for r in rights])) for n in ATTRIBUTES}
    across, beside = measure.jumps(clip, at)
    return means | {
        "contrast": measure.contrast(clip), "sharpness": measure.sharpness(clip),
        "jump at block boundaries": across / max(beside, 1e-9),
    }  # fmt: skip


def table(results: list[Clips]) -> str:
    """A column for each setting."""
    figures = [r.figures() for r in results]
    bar = f"{figures[0]['jump']:.2f}" if str(results[0].setting) == "sequential" else ""
    lines = [
        f"| {len(results[0].cases)} held-out prompts | bar | " + " | ".join(str(r.setting) for r in results) + " |",
        "|---|---" + "|---" * len(results) + "|",
    ]
    names = {"colour": "object colour right", "setting": "setting right", "kind": "shape right",
             "motion": "motion right", "time": "hour right"}  # fmt: skip
    for name, text in names.items():
        least = f"{100 * BARS[name]:.0f} %" if name in BARS else ""
        lines.append(f"| {text} | {least} | " + " | ".join(f"{100 * f[name]:.1f} %" for f in figures) + " |")
    jumps = " | ".join(f"{f['jump']:.2f}" for f in figures)
    lines.append(f"| jump at block boundaries | {bar} | {jumps} |")
    for name in ("contrast", "sharpness"):
        shares = " | ".join(f"{100 * f[name] / f['drawn ' + name]:.0f} %" for f in figures)
        lines.append(f"| {name}, of the world's own | | {shares} |")
    return "\n".join(lines)


def change_table(results: list[dict[str, Any]]) -> str:
    columns = {"object": "object right", "colour": "its colour", "kind": "its shape", "setting": "setting right"}
    titles = " | ".join(columns.values())
    lines = [f"| {WITHIN} frames after a change | by | streams | {titles} | object right, as the world draws it |",
             "|---|---|---" + "|---" * (len(columns) + 1) + "|"]  # fmt: skip
    groups = {}
    for result in results:
        names = {0: "nothing", len(VALUES): "everything"}
        name = names.get(len(result["names"]), " and ".join(result["names"]))
        form = "a whole prompt" if result["whole"] else "an edit" if result["names"] else ""
        groups.setdefault(f"of {name} | {form}", []).append(result)
    for name, group in groups.items():
        shares = [np.mean([r["right"][n] for r in group]) for n in columns]
        shares.append(np.mean([r["drawn"]["object"] for r in group]))
        lines.append(f"| {name} | {len(group)} | " + " | ".join(f"{100 * s:.1f} %" for s in shares) + " |")
    return "\n".join(lines)


def long_table(results: list[dict[str, Any]], minutes: float) -> str:
    lines = [f"| {len(results)} streams of {minutes:g} minutes | first 10 s | last 10 s | left |", "|---|---|---|---|"]
    means = {
        n: [float(np.mean([r[e][n] for r in results])) for e in ("first", "last")]
        for n in (*ATTRIBUTES, "contrast", "sharpness", "jump at block boundaries")
    }
    means = {"mean of these four": list(np.mean([means[n] for n in ATTRIBUTES], axis=0)), **means}
    for name, (first, last) in means.items():
        lines.append(f"| {name} | {first:.3f} | {last:.3f} | {100 * last / max(first, 1e-9):.0f} % |")
    return "\n".join(lines)


def progress(text: str) -> None:
    print(f"\r{text} ", end="", file=sys.stderr, flush=True)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument("--parts", nargs="+", default=["clips"], choices=("clips", "changes", "long"))
    parser.add_argument("--tool", type=Path, default=BINARY)
    parser.add_argument("--extra", type=shlex.split, default=[], help="more flags for the tool")
    parser.add_argument("--count", type=int, default=200, help="prompts")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--frames", type=int, default=33, help="of a clip")
    parser.add_argument("--skip", type=int, default=0, help="blocks of a stream that come before its clip")
    parser.add_argument("--width", type=int, default=1)
    parser.add_argument("--attention", default="bidirectional", choices=("bidirectional", "causal"))
    parser.add_argument("--matrix", action="store_true", help="clips of all widths")
    parser.add_argument("--changes", type=int, default=60, help="streams whose prompt changes")
    parser.add_argument("--streams", type=int, default=4, help="long ones")
    parser.add_argument("--minutes", type=float, default=10.0, help="of a long one")
    return parser.parse_args()


def main() -> None:
    args = options()
    tool, setting = Tool(args.tool, tuple(args.extra)), Setting(args.width, args.attention)
    args.out.mkdir(parents=True, exist_ok=True)
    tables, data = [], {"flags": vars(args) | {"out": str(args.out), "tool": str(args.tool)}}
    if "clips" in args.parts:
        settings = MATRIX if args.matrix else (setting,)
        prompts = range(args.first, args.first + args.count)
        results = [clips(tool, s, prompts, args.frames, args.skip) for s in settings]
        tables.append(table(results))
        data["clips"] = {str(r.setting): {"figures": r.figures(), "cases": r.cases} for r in results}
        sheet.save(results[0].kept, args.out)
    if "changes" in args.parts:
        data["changes"] = changes(tool, setting, args.changes)
        tables.append(change_table(data["changes"]))
    if "long" in args.parts:
        data["long"] = long(tool, setting, args.streams, args.minutes)
        tables.append(long_table(data["long"], args.minutes))
    (args.out / "results.json").write_text(json.dumps(data, indent=1))
    (args.out / "results.md").write_text("\n\n".join(tables) + "\n")
    print("\n\n" + "\n\n".join(tables))


if __name__ == "__main__":
    main()
