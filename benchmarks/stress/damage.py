"""Checkpoint files with a bit turned round, or cut short: each must be noticed before anything of it is used."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from actwam.bench.shapes import random_policy
from actwam.checkpoint import load, save
from benchmarks.stress.host import fast, figure


def run(n: int, seed: int) -> dict[str, Any]:
    """Half of the times a bit of some file, half of the times its end; then the file is as it was."""
    draw, counts = random.Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "step_00000001"
        save(random_policy(fast()).checkpoint, folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for turn in range(n):
            path = draw.choice(files)
            whole = path.read_bytes()
            place = draw.randrange(len(whole))
            kind = "turned" if turn % 2 else "cut"
            bit = bytes([whole[place] ^ 1 << draw.randrange(8)])
            path.write_bytes(whole[:place] + bit + whole[place + 1 :] if kind == "turned" else whole[:place])
            try:
                load(folder)
            except ValueError as error:
                counts[f"{kind}, noticed"] += 1
                counts["of several lines"] += "\n" in str(error)
            else:
                counts[f"{kind}, not noticed: {path.name}"] += 1
            path.write_bytes(whole)
        load(folder)
    missed = sum(count for name, count in counts.items() if "not noticed" in name)
    return {
        "n": n,
        "seed": seed,
        "files": len(files),
        "counts": dict(counts),
        "figures": {
            "damages": figure(sum(count for name, count in counts.items() if "notice" in name), at_least=n),
            "that were not noticed": figure(missed, at_most=0),
        },
    }
