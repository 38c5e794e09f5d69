#!/usr/bin/env python3
"""Makes one table of JSON lines, read from stdin: ours of a workload, and then those of its peers."""

import json
import sys

HEAD = ("workload", "peer", "ours ms", "peer ms", "peer / ours", "ours GFLOP/s", "peer GFLOP/s", "ours MiB", "peer MiB")
WIDTHS = (16, 11, 10, 10, 13, 14, 14, 10, 10)


def row(ours, peer):
    rates = [f"{1e3 * peer['gflop'] / figures['ms']:.0f}" for figures in (ours, peer)]
    times = [f"{ours['ms']:.1f}", f"{peer['ms']:.1f}", f"{peer['ms'] / ours['ms']:.2f}"]
    return [peer["bench"], peer["peer"], *times, *rates, f"{ours['mib']:.0f}", f"{peer['mib']:.0f}"]


def show(cells):
    left = "".join(f"{cell:<{width}}" for cell, width in zip(cells[:2], WIDTHS[:2]))
    print(left + "".join(f"{cell:>{width}}" for cell, width in zip(cells[2:], WIDTHS[2:])), flush=True)


def main():
    show(HEAD)
    ours = {}
    for line in sys.stdin:
        figures = json.loads(line)
        if figures["peer"] == "ours":
            ours = figures
        else:
            show(row(ours, figures))


if __name__ == "__main__":
    main()
