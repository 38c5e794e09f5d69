#!/usr/bin/env python3
"""Makes one table of JSON lines from stdin: each workload of ours beside its peers, and beside the least time
that its arithmetic takes at the rate of a dense product, 790 TFLOP/s in bf16, measured on an H200."""

import json
import sys

DENSE_TFLOPS = 790
WIDTHS = (22, 10, 10, 10, 9, 13, 10, 12, 11, 12, 9, 11)


def cells(ours, peers):
    ms = f"{ours['ms']:.1f}", f"{ours['worst_ms']:.1f}"
    gflop = next((peer["gflop"] for peer in peers), None)
    rate = floor = over = "-"
    if gflop is not None:
        least = gflop / DENSE_TFLOPS
        rate, floor, over = f"{gflop / ours['ms']:.1f}", f"{least:.2f}", f"{ours['ms'] / least:.1f}x"
    of_peers = []
    for is_compiled in (False, True):
        peer = next((p for p in peers if (p["peer"] == "compiled") == is_compiled), None)
        of_peers += [f"{peer['ms']:.1f}", f"{peer['ms'] / ours['ms']:.2f}x"] if peer else ["-", "-"]
    mib = [f"{figures['mib'] or '-'}" for figures in (ours, *peers[:1])]
    return [ours["bench"], *ms, rate, floor, over, *of_peers, *mib]


def show(row):
    print(f"{row[0]:<{WIDTHS[0]}}" + "".join(f"{cell:>{width}}" for cell, width in zip(row[1:], WIDTHS[1:])))


def main():
    lines = [json.loads(line) for line in sys.stdin if line.startswith("{")]
    show(["workload", "ours ms", "worst", "TFLOP/s", "floor", "ours / floor", "PyTorch", "PyT. / ours", "compiled", "c. / ours", "MiB", "PyT. MiB"])
    for ours in (line for line in lines if line["peer"] == "ours"):
        peers = [line for line in lines if line["bench"] == ours["bench"] and line["peer"] != "ours"]
        show(cells(ours, peers))
    print("MiB: in use at most. PyTorch's transformers hold keys and values for each layer, ours one pair for all.")
    for peer in lines:
        if not any(line["bench"] == peer["bench"] and line["peer"] == "ours" for line in lines):
            print(f"{peer['bench']}: only {peer['peer']}, {peer['ms']:.1f} ms")


if __name__ == "__main__":
    main()
