"""`actwam study`: train and evaluate the cells of studies, a few at a time, and say what came of them.

A cell that two studies share is trained once, and a finished one never again: `cells.jsonl` in the folder of results
holds what was measured, and is all that a later run needs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from actwam.data.partial import locked
from actwam.memory import device_of
from actwam.model.files import read_json
from actwam.provenance import provenance
from actwam.study.cell import Cell, Progress, Workshop, run_cell, silent
from actwam.study.findings import add_latency, summarise
from actwam.study.grid import SCALES, STUDIES, Study, study_of
from actwam.study.records import Records
from actwam.train.datasets import open_datasets
from actwam.train.encode import mixture
from actwam.train.prepare import initial


@dataclass(frozen=True, kw_only=True)
class Programme:
    """Which studies to run, how large, where, and on what. `results` keeps the records and the findings, `folder`
    everything that can be made again. `processes` cells run at a time, with `threads` threads each.
    """

    studies: tuple[str, ...]
    scale: str
    folder: Path
    results: Path
    processes: int
    threads: int = 1
    device: str = "cpu"
    progress: Progress = silent

    def plan(self) -> list[Study]:
        """The studies as they would be run. Raises ValueError without a study, on an unknown study, scale or device, on
        cells that contradict each other, and when `results` holds a study at other settings.
        """
        if not self.studies:
            raise ValueError(f"no study is named; there are {', '.join(STUDIES)}")
        if self.scale not in SCALES:
            raise ValueError(f"unknown scale {self.scale!r}; there are {', '.join(SCALES)}")
        for what in ("processes", "threads"):
            if getattr(self, what) < 1:
                raise ValueError(f"{what} must be at least 1, not {getattr(self, what)}")
        device_of(self.device)
        studies = [study_of(name, SCALES[self.scale]) for name in self.studies]
        for study in studies:
            path = self.results / f"{study.name}.json"
            if path.exists() and read_json(path).get("scale") != _scale(self.scale):
                raise ValueError(f"{path}: holds this study at another scale or other settings; choose another folder")
        return studies

    def outlook(self) -> dict[str, Any]:
        """What `run_programme` would do: for each study its cells, how many are not recorded, and what they compute."""
        records, outlook, counted = Records(self.results), {}, set[str]()
        for study in self.plan():
            cells = {cell.key: cell for cell in _cells([study])}
            left = [cell for key, cell in cells.items() if cell not in records and key not in counted]
            counted |= cells.keys()
            outlook[study.name] = {
                "question": study.question,
                "cells": len(cells),
                "left": len(left),
                "left_petaflop": round(sum(cell.flops() for cell in left) / 1e15, 3),
            }
        return outlook


def run_programme(programme: Programme) -> list[dict[str, Any]]:
    """Run what is not recorded yet, write `<study>.json` for every study, and return their contents.

    Raises ValueError as `Programme.plan` does, before anything is collected or trained, and when another programme is
    writing the same results.
    """
    studies = programme.plan()
    programme.results.mkdir(parents=True, exist_ok=True)
    with locked(programme.results):
        return _run(programme, studies)


def _run(programme: Programme, studies: Sequence[Study]) -> list[dict[str, Any]]:
    records = Records(programme.results)
    pending = {cell.key: cell for cell in _cells(studies) if cell not in records}
    workshop = Workshop(programme.folder, programme.device, programme.progress)
    _prepare(pending.values(), workshop, programme.threads)
    made = provenance()
    total = len({cell.key for cell in _cells(studies)})
    done = total - len(pending)
    programme.progress("cells", done, total)
    quiet = Workshop(programme.folder, programme.device)
    pool = ProcessPoolExecutor(programme.processes, get_context("spawn"), initializer=follow_parent)
    try:
        running = {pool.submit(run_cell, cell, quiet, programme.threads): cell for cell in pending.values()}
        for future in as_completed(running):
            records.add(running[future], future.result(), made)
            done += 1
            programme.progress("cells", done, total)
    finally:
        pool.shutdown(cancel_futures=True)
    findings = [summarise(study, records, _scale(programme.scale)) for study in studies]
    for study, finding in zip(studies, findings, strict=True):
        if study.timed:
            add_latency(study, finding, programme.device)
        path = programme.results / f"{finding['study']}.json"
        whole = path.with_suffix(".partial")
        whole.write_text(json.dumps(finding, indent=2) + "\n", encoding="utf-8")
        whole.replace(path)
    return findings


def follow_parent() -> None:
    """End this process when the one that started it ends, however: nobody would note what it finds."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def _prepare(cells: Collection[Cell], workshop: Workshop, threads: int) -> None:
    """Collect the datasets of these cells and encode their latents: cells that run side by side only read them."""
    encoded = {(tuple(sorted(workshop.data(cell).values())), _learned_from(cell)): cell for cell in cells}
    usual = torch.get_num_threads()
    torch.set_num_threads(threads)  # with others the codec would come out otherwise in its last bits, as another codec
    try:
        for cell in cells:
            for data in (*cell.data.values(), cell.heldout):
                workshop.make(data)
        for cell in encoded.values():
            recipe, folders = cell.recipe(), workshop.data(cell)
            datasets = open_datasets(recipe, folders)
            made = initial(recipe, datasets, workshop.cache, workshop.progress)
            for stage in recipe.stages:
                mixture(stage, made, datasets, workshop.cache, workshop.progress)
    finally:
        torch.set_num_threads(usual)


def _learned_from(cell: Cell) -> frozenset[str]:
    """The datasets, by name, whose latents a cell needs."""
    return frozenset(source.dataset for stage in cell.recipe().stages for source in stage.sources)


def _cells(studies: Sequence[Study]) -> list[Cell]:
    return [cell for study in studies for entry in study.entries for cell in entry.cells]


def _scale(name: str) -> dict[str, Any]:
    scale: dict[str, Any] = json.loads(json.dumps(asdict(SCALES[name])))
    return {"name": name, **scale}
