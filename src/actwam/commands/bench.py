"""How fast a policy acts: `bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from actwam.commands.acting import load_policy
from actwam.commands.options import Json
from actwam.console import progress_bars, stdout


def bench(
    policies: Positional[tuple[str, ...]],
    *,
    layers: int | None = None,
    robot: str | None = None,
    precision: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16"),
    batch: tuple[int, ...] = (1,),
    repeats: int = 50,
    warmup: int = 5,
    threads: int | None = None,
    device: str = "cpu",
    out: Path | None = None,
    as_json: Json = False,
) -> int:
    """Time every way to act with a policy, against what this machine could do at best.

    Args:
        policies: Checkpoints, folders of training runs, or shapes with random weights: tiny, small, gwp0, gwp05.
        layers: Of a shape, only so many.
        robot: Of a checkpoint for several robots, which one.
        precision: What the model computes in.
        batch: Observations in one call; the first number is for all ways, the others for the policy's own alone.
        repeats: Timed calls of each.
        warmup: Calls before them.
        threads: Of the CPU; as many as PyTorch chooses if not given.
        device: Where the model runs.
        out: Write the results here as JSON, and a figure beside it as PNG.
        as_json: Print the results as JSON.
    """
    import torch

    from actwam.bench.shapes import need, random_policy, shape_named
    from actwam.bench.ways import Settings, time_ways
    from actwam.memory import device_of, require
    from actwam.model.files import DTYPES
    from actwam.policy import Policy
    from actwam.provenance import provenance
    from actwam.report.bench import markdown, write_figure

    if threads is not None:
        torch.set_num_threads(threads)
    device_of(device)
    settings = Settings(batches=batch, repeats=repeats, warmup=warmup)
    found = {}
    versions: dict[str, Policy]
    for name in policies:
        if Path(name).is_dir():
            versions = {p: load_policy(Path(name), device, p, robot) for p in precision}
        else:
            shape = shape_named(name, layers)
            versions = {}
            for p in precision:
                require(need(shape, device=device, dtype=DTYPES[p]), device_of(device))
                versions[p] = random_policy(shape, device=device, dtype=DTYPES[p])
        with progress_bars() as progress:
            found[name] = time_ways(versions, settings, progress)
    results = {"policies": found, "device": device, "threads": torch.get_num_threads(), "provenance": provenance()}
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        write_figure(results, out.with_suffix(".png"))
    print(json.dumps(results, indent=2)) if as_json else stdout.print(markdown(results), markup=False, soft_wrap=True)
    return 0
