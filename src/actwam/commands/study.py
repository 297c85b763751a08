"""Comparing families: `study`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from actwam.commands.options import Json
from actwam.console import print_numbers, progress_bars, stdout


def study(
    names: Positional[tuple[str, ...]],
    *,
    scale: Literal["smoke", "laptop", "full"] = "laptop",
    out: Path = Path("runs/study"),
    results: Path | None = None,
    processes: int | None = None,
    threads: int = 1,
    device: str = "cpu",
    plan: bool = False,
    as_json: Json = False,
) -> int:
    """Answer questions of the GigaWorld-Policy paper: train and evaluate a grid of small policies in MetaWorld.

    An interrupted study goes on where it stopped, and a cell that studies share is trained once.

    Args:
        names: Studies: families, future, mask, pretraining, data, weights, idm, clips, or all.
        scale: How many tasks, demonstrations, training seeds and episodes; smoke is for a look at what it does.
        out: Folder for datasets, trainings and evaluations.
        results: Folder for cells.jsonl, and for NAME.json, NAME.md and NAME.png of each study; OUT if not given.
        processes: Cells that run at a time; one for each core if not given.
        threads: Threads of each.
        device: Where policies are trained and run.
        plan: Only say what would be trained. A cell that studies share is left to the first of them that is named.
        as_json: Print the findings as JSON.
    """
    from actwam.study.grid import STUDIES
    from actwam.study.run import Programme, run_programme

    with progress_bars() as report:
        programme = Programme(
            studies=tuple(STUDIES) if "all" in names else names,
            scale=scale,
            folder=out,
            results=results or out,
            processes=(os.cpu_count() or 1) if processes is None else processes,
            threads=threads,
            device=device,
            progress=report,
        )
        if plan:
            print_numbers(programme.outlook(), as_json=as_json)
            return 0
        findings = run_programme(programme)
    from actwam.report.study import markdown, write_figure

    for finding in findings:
        path = programme.results / finding["study"]
        path.with_suffix(".md").write_text(markdown(finding), encoding="utf-8")
        write_figure(finding, path.with_suffix(".png"))
        if not as_json:
            stdout.print(markdown(finding), markup=False, soft_wrap=True)
            stdout.print(f"{path.with_suffix('.md')} {path.with_suffix('.png')} {path.with_suffix('.json')}\n")
    if as_json:
        print_numbers({finding["study"]: finding for finding in findings}, as_json=True)
    return 0
