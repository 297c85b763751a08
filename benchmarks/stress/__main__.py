"""All fault runs, and what must hold in each:

    python -m benchmarks.stress OUT.json [--only THEME ...] [--scale 1.0] [--seed 0] [--table TABLE.md]

A theme that OUT holds already, with the same numbers, is not run again. `--scale` multiplies how often, or how long,
each does what it does; below 1 the figures say less. It needs Linux, `pip install "actwam[dev]"`, about two hours,
and a machine that does nothing else: every theme says under which load it ran.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from actwam.provenance import provenance
from benchmarks.stress.host import figure
from benchmarks.stress.table import table


@dataclass(frozen=True)
class Theme:
    """A module with `run`, what is counted, how much of it is the full run, and what else `run` is given."""

    counted: str
    full: float
    more: Mapping[str, Any] = field(default_factory=dict)


THEMES = {
    "fuzz": Theme("n", 100_000),
    "rude": Theme("seconds", 120),
    "clients": Theme("n", 300),
    "stopping": Theme("n", 300),
    "access": Theme("n", 1000),
    "gadgets": Theme("n", 6),
    "overhead": Theme("n", 200),
    "throughput": Theme("seconds", 10),
    "soak": Theme("seconds", 1800),
    "faults": Theme("n", 100),
    "start": Theme("n", 3),
    "kills": Theme("n", 200),
    "damage": Theme("n", 2000),
    "mixture": Theme("n", 1000),
    "dataset_faults": Theme("n", 10),
    "safety": Theme("sequences", 1_000_000, {"steps": 100}),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", default=list(THEMES), choices=THEMES, metavar="THEME")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=Path, help="Markdown, of all that OUT holds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.only:
        theme = THEMES[name]
        amount = type(theme.full)(max(1, theme.full * options.scale))
        given = {theme.counted: amount, **theme.more, "seed": options.seed}
        if _found(options.out).get(name, {}).get("given") == given:
            continue
        print(f"{name}: {given}", flush=True)
        result = _run(name, given)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({**_found(options.out), name: result}, indent=1) + "\n", encoding="utf-8")
        for what, each in result["figures"].items():
            print(f"  {'holds' if each['holds'] else 'FAILS'}: {what}: {each}", flush=True)
    found = _found(options.out)
    if options.table:
        options.table.write_text(table(found), encoding="utf-8")
    held = [each["holds"] for name in options.only for each in found[name]["figures"].values()]
    print(f"{sum(held)} of {len(held)} figures hold")
    return 0 if all(held) else 1


def _found(out: Path) -> dict[str, Any]:
    return json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}


def _run(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    before, start = os.getloadavg()[0], time.monotonic()
    result = importlib.import_module(f"benchmarks.stress.{name}").run(**given)
    if name == "safety":
        result["figures"] = _of_safety(result, given["sequences"])
    took, load = time.monotonic() - start, [round(each, 1) for each in (before, os.getloadavg()[0])]
    said = {"given": dict(given), "took_s": round(took, 1), "load_before_and_after": load}
    return {**said, **result, "provenance": provenance()}


def _of_safety(found: Mapping[str, Any], sequences: int) -> dict[str, Any]:
    """Its figures: it counts, and says of no number what it must be."""
    whole = found["by SafetyFilter"]
    unchanged, smooth = found["unchanged"]["smooth"]
    return {
        "sequences": figure(found["sequences"], at_least=sequences),
        "commands outside a limit": figure(sum(found["violations"].values()) + whole["violations"], at_most=0),
        "robots that did not stop": figure(found["not stopped"], at_most=0),
        "smooth sequences that were changed": figure(smooth - unchanged, at_most=0),
    }


if __name__ == "__main__":
    sys.exit(main())
