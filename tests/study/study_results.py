"""Made-up results of every study, as large as real ones: four tasks, three training seeds, twenty episodes."""

from __future__ import annotations

from typing import Any

import numpy as np

from actwam.study.power_law import data_multiplier, fit_power_laws
from actwam.study.statistics import Episodes, paired_difference

TASKS = {"drawer-open-v3": 0.9, "door-open-v3": -0.4, "button-press-topdown-v3": 0.2, "peg-insert-side-v3": -0.8}
PROVENANCE = {
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "dirty": False,
    "versions": {"actwam": "0.1.0", "torch": "2.8.0"},
    "machine": {"cpu": "Some CPU", "gpu": None},
    "date": "2026-01-02T03:04:05+00:00",
}


def episodes(rate: float, seed: int) -> Episodes:
    rng = np.random.default_rng(seed)
    odds = np.log(rate / (1 - rate))
    return Episodes(
        {
            (task, training, env): bool(rng.random() < 1 / (1 + np.exp(-odds - easy)))
            for task, easy in TASKS.items()
            for training in range(3)
            for env in range(20)
        },
        n_crashes=seed % 3,
    )


def cell(label: str, standing: str, rate: float, seed: int, **more: Any) -> tuple[dict[str, Any], Episodes]:
    found = episodes(rate, seed)
    return {
        "label": label, "standing": standing, **found.to_json(), "latency_ms_p50": None, "tokens_denoised": None,
        "psnr": None, "ssim": None, "parameters": 1_234_567, "samples": 19_200, "flops": 1.5e15, "seconds": 431.0,
        **more,
    }, found  # fmt: skip


def study(name: str, question: str, cells: list[tuple[dict[str, Any], Episodes]], **more: Any) -> dict[str, Any]:
    (reference, found), *others = cells
    differences = [
        {"cell": other["label"], "standing": other["standing"], "reference": reference["label"],
         "success": paired_difference(mine, found, resamples=200).to_json()}
        for other, mine in others
    ]  # fmt: skip
    return {
        "study": name, "question": question, "cells": [one for one, _ in cells], "differences": differences,
        "paper": {}, "provenance": PROVENANCE, **more,
    }  # fmt: skip


def families() -> dict[str, Any]:
    facts = {
        "ACTION_CENTERED": (0.82, 0.82, 21.3, 48), "ACTION_ONLY": (0.66, 0.71, 20.4, 48),
        "UNCOUPLED": (0.74, 0.74, 21.1, 48), "VIDEO_FIRST": (0.55, 0.48, 131.0, 176), "JOINT": (0.79, 0.73, 96.0, 176),
        "JOINT_HISTORY": (0.77, 0.66, 112.0, 176), "BIDIRECTIONAL": (0.8, 0.72, 104.0, 176),
    }  # fmt: skip
    cells = []
    for i, (name, (same, compute, latency, tokens)) in enumerate(facts.items()):
        more: dict[str, Any] = {"family": name, "latency_ms_p50": latency, "tokens_denoised": tokens}
        if same == compute:
            cells.append(cell(name, "both", same, i, **more))
        else:
            cells.append(cell(name, "samples", same, i, **more))
            cells.append(cell(name, "compute", compute, i + 50, **{**more, "latency_ms_p50": latency * 1.02}))
    question = "How often does each family succeed, and how long does it take to act?"
    paper = {"latency_ms_a100": {"ACTION_CENTERED": 360, "JOINT (Motus)": 3231}}
    return study("families", question, cells, paper=paper)


def future() -> dict[str, Any]:
    rates = {0: (0.62, 0.7), 1: (0.74, 0.76), 2: (0.82, 0.82), 4: (0.83, 0.78), 8: (0.84, 0.7)}
    cells = [cell("2 frames", "both", 0.82, 2, x=2)]
    for x, (same, compute) in rates.items():
        if x != 2:
            label = "none" if x == 0 else f"{x} frames"
            cells += [cell(label, "samples", same, x, x=x), cell(label, "compute", compute, x + 50, x=x)]
    cells += [
        cell("2 frames in a quarter of the batches", "samples", 0.79, 70, x=2),
        cell("2 frames in a quarter of the batches", "compute", 0.8, 71, x=2),
        cell("2 frames, narrow visual expert", "samples", 0.72, 72, x=2),
    ]
    question = "How many future frames, how far apart, and what do they cost?"
    return study("future", question, cells, paper={"success": {"none": 0.60, "stride 12": 0.83}})


def mask() -> dict[str, Any]:
    facts = {
        "ACTION_CENTERED": (0.82, 24.31, 0.871),
        "BIDIRECTIONAL": (0.78, 24.02, 0.866),
        "UNCOUPLED": (0.75, 21.9, 0.82),
    }
    cells = [cell(name, "samples", s, i, psnr=p, ssim=q) for i, (name, (s, p, q)) in enumerate(facts.items())]
    return study("mask", "Does it matter who may look at whom?", cells)


def pretraining() -> dict[str, Any]:
    rates = {"none": 0.45, "general": 0.57, "embodied": 0.73, "both": 0.83}
    cells = [cell(name, "samples", rate, i) for i, (name, rate) in enumerate(rates.items())]
    question = "What does learning from video before the demonstrations bring?"
    return study("pretraining", question, cells, paper={"success": rates})


def data() -> dict[str, Any]:
    cells, curves = [], {}
    for i, demos in enumerate((5, 12, 25, 50)):
        centred = cell(f"ACTION_CENTERED {demos}", "both", 1 - 1.1 * demos**-0.45, i, x=demos, family="ACTION_CENTERED")
        same = cell(f"ACTION_ONLY {demos}", "samples", 1 - 1.2 * demos**-0.3, i + 10, x=demos, family="ACTION_ONLY")
        more = cell(f"ACTION_ONLY {demos}", "compute", 1 - 1.2 * demos**-0.35, i + 20, x=demos, family="ACTION_ONLY")
        cells += [centred, same, more]
        for key, (_, found) in {("ACTION_CENTERED", "both"): centred, ("ACTION_ONLY", "samples"): same,
                                ("ACTION_ONLY", "compute"): more}.items():  # fmt: skip
            curves.setdefault(" ".join(key), {})[demos] = found
    laws = fit_power_laws(curves, resamples=300)
    listed = [
        {"family": name.split()[0], "standing": name.split()[1], **law.to_json(points=30)} for name, law in laws.items()
    ]
    multipliers = [
        {"cell": "ACTION_CENTERED", "reference": name,
         **data_multiplier(laws["ACTION_CENTERED both"], laws[name], 50).to_json()}
        for name in list(laws)[1:]
    ]  # fmt: skip
    question = "How many demonstrations does the future replace?"
    return study("data", question, cells, laws=listed, multipliers=multipliers)


def weights() -> dict[str, Any]:
    rates = {1.0: 0.8, 0.2: 0.7, 5.0: 0.82, 25.0: 0.75}
    cells = [cell(f"{ratio:g}:1", "samples", rate, int(ratio), x=ratio) for ratio, rate in rates.items()]
    return study("weights", "How much should the action loss weigh against the video loss?", cells)


def clips() -> dict[str, Any]:
    cells = [cell("demonstrations only", "samples", 0.6, 0), cell("with clips of other robots", "samples", 0.7, 1)]
    cells += [cell("with clips of other robots", "compute", 0.66, 3)]
    return study("clips", "Do clips without actions help?", cells)


def idm() -> dict[str, Any]:
    cells = [cell("10 demonstrations", "samples", 0.5, 0), cell("and 40 with inferred actions", "samples", 0.68, 1)]
    cells += [cell("50 demonstrations", "samples", 0.75, 2)]
    return study("idm", "Are actions inferred from video as good as recorded ones?", cells)


STUDIES = {f.__name__: f for f in (families, future, mask, pretraining, data, weights, idm, clips)}
