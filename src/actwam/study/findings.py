"""What came of a study: success, quality, differences from the reference and cost of every entry, from the records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actwam.bench.latency import time_policies
from actwam.bench.shapes import Shape, random_observation, random_policy
from actwam.provenance import provenance
from actwam.study.grid import Entry, Study
from actwam.study.power_law import data_multiplier, fit_power_laws
from actwam.study.records import Records
from actwam.study.statistics import Episodes, paired_difference, paired_difference_values


def summarise(study: Study, records: Records, scale: Mapping[str, Any]) -> dict[str, Any]:
    """Success, quality, differences from the reference and cost of every entry, from the records of its cells.

    Quality is compared between entries that imagine the same frames. `provenance` is that of this summary, its
    `commits` are those that the cells were trained at.
    """
    reference = next(e for e in study.entries if e.label == study.reference)
    others = [entry for entry in study.entries if entry is not reference]
    made = [records[cell]["provenance"] for entry in study.entries for cell in entry.cells]
    commits = sorted({f"{each['commit']}{' with changes' if each.get('dirty') else ''}" for each in made})
    return {
        "study": study.name,
        "question": study.question,
        "scale": dict(scale),
        "reference": study.reference,
        "cells": [_point(entry, records) for entry in study.entries],
        "differences": [
            {
                "cell": entry.label,
                "standing": entry.standing,
                "reference": study.reference,
                **{
                    measure: difference
                    for measure in ("success", "psnr", "ssim")
                    if (difference := _difference(entry, reference, measure, records)) is not None
                },
            }
            for entry in others
        ],
        **_laws(study, records),
        "notes": list(study.notes),
        "paper": dict(study.paper),
        "provenance": {**provenance(), "commits": commits},
    }


def add_latency(study: Study, finding: dict[str, Any], device: str) -> None:
    """Add to the entries of a finding how long acting takes and how many tokens it denoises, all timed in one run, with
    random weights.
    """
    shapes = {entry.label: Shape.of(entry.cells[0].recipe()) for entry in study.entries}
    policies = {label: random_policy(shape, device=device) for label, shape in shapes.items()}
    observation = random_observation(next(iter(shapes.values())).robot)
    latencies = time_policies(policies, [observation], repeats=50, warmup=10)
    for point in finding["cells"]:
        latency = latencies[point["label"]]
        point |= {"latency_ms_p50": latency.p50, "latency": latency.to_json()}
        point |= {"tokens_denoised": latency.tokens_denoised}


def _laws(study: Study, records: Records) -> dict[str, Any]:
    """Power laws of success over demonstrations, and how many times fewer of them each curve needs than the last."""
    curves: dict[tuple[str, str], dict[int, Episodes]] = {}
    for entry in study.entries:
        for standing in ("samples", "compute"):
            if entry.family is not None and entry.x is not None and entry.standing in (standing, "both"):
                curves.setdefault((entry.family, standing), {})[int(entry.x)] = records.episodes(entry.cells)
    if not curves:
        return {}
    laws = fit_power_laws({" ".join(name): curve for name, curve in curves.items()})
    laws_of = {name: laws[" ".join(name)] for name in curves}
    *others, last = dict.fromkeys(family for family, _ in curves)
    return {
        "laws": [
            {"family": family, "standing": standing, **law.to_json()} for (family, standing), law in laws_of.items()
        ],
        "multipliers": [
            {
                "cell": f"{family} ({standing})",
                "reference": last,
                **data_multiplier(
                    laws_of[family, standing], laws_of[last, standing], max(curves[last, standing])
                ).to_json(),
            }
            for family in others
            for standing in ("samples", "compute")
        ],
    }


def _point(entry: Entry, records: Records) -> dict[str, Any]:
    """What a figure shows of an entry."""
    cell, results = entry.cells[0], [records[cell]["result"] for cell in entry.cells]
    seconds = [taken for result in results if (taken := result["seconds"]["train"]) is not None]
    quality = {measure: records.windows(entry.cells, measure) for measure in ("psnr", "ssim")}
    return {
        "label": entry.label,
        "standing": entry.standing,
        "x": entry.x,
        "family": entry.family,
        **records.episodes(entry.cells).to_json(),
        **{name: sum(values.values()) / len(values) if values else None for name, values in quality.items()},
        "parameters": cell.parameters(),
        "samples": cell.samples(),
        "flops": cell.flops(),
        "seconds": sum(seconds) / len(seconds) if seconds else None,
        "labels": results[0]["labels"],
        "options": dict(cell.options),
    }


def _difference(entry: Entry, reference: Entry, measure: str, records: Records) -> dict[str, Any] | None:
    if measure == "success":
        return paired_difference(records.episodes(entry.cells), records.episodes(reference.cells)).to_json()
    offsets = [each.cells[0].recipe().window.future_offsets for each in (entry, reference)]
    if offsets[0] != offsets[1]:  # frames that lie nearer are easier to imagine
        return None
    ours, theirs = (records.windows(each.cells, measure) for each in (entry, reference))
    return None if ours is None or theirs is None else paired_difference_values(ours, theirs).to_json()
