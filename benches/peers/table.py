#!/usr/bin/env python3
"""Joins criterion's estimates with torch_cpu.py's JSON lines, read from stdin, into one table."""

import json
import sys
from pathlib import Path


def ours_ms(criterion, bench):
    """Median in ms, or None where the bench has not been run."""
    path = criterion / bench / "new" / "estimates.json"
    if not path.exists():
        return None
    return json.loads(path.read_text())["median"]["point_estimate"] / 1e6


def row(criterion, peer):
    bench, torch, gflop = peer["bench"], peer["ms"], peer["gflop"]
    ours = ours_ms(criterion, bench)
    if ours is None:
        return [bench, "-", f"{torch:.1f}", "-", "-", f"{1e3 * gflop / torch:.0f}"]
    rates = [f"{1e3 * gflop / ms:.0f}" for ms in (ours, torch)]
    return [bench, f"{ours:.1f}", f"{torch:.1f}", f"{torch / ours:.2f}", *rates]


def main():
    criterion = Path(sys.argv[1])
    print(f"{'bench':<12}{'ours ms':>10}{'torch ms':>10}{'ratio':>8}{'ours GFLOP/s':>14}{'torch GFLOP/s':>15}")
    for line in sys.stdin:
        name, ours, torch, ratio, *rates = row(criterion, json.loads(line))
        print(f"{name:<12}{ours:>10}{torch:>10}{ratio:>8}{rates[0]:>14}{rates[1]:>15}", flush=True)


if __name__ == "__main__":
    main()
