"""The numbers of a study as Markdown: its cells, their tasks, the differences, and what they were measured with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from actwam.report.markdown import NONE, count, measured_with, number, table
from actwam.report.page import duration, percent, plain

Cell = Mapping[str, Any]
MEASURES = {"success": "success (percentage points)", "psnr": "PSNR (dB)", "ssim": "SSIM"}


def tables(results: Mapping[str, Any]) -> str:
    """`results` as `report.study` describes them; a column in which no cell has a value is left out."""
    parts = [f"**{results['question']}**", _cells(results["cells"]), _per_task(results["cells"])]
    if results.get("differences"):
        parts.append(_differences(results["differences"]))
    if results.get("laws"):
        parts.append(_laws(results["laws"]))
    if results.get("multipliers"):
        parts.append(_multipliers(results["multipliers"]))
    if labelled := next((cell["labels"] for cell in results["cells"] if cell.get("labels")), None):
        parts.append(_labels(labelled))
    parts += results.get("notes", [])
    if results.get("paper"):
        found = "; ".join(f"{name.replace('_', ' ')}: {_paper(value)}" for name, value in results["paper"].items())
        parts.append(f"The paper, with other robots, tasks and sizes: {found}.")
    if results.get("provenance"):
        parts.append(measured_with(results["provenance"]))
    return "\n\n".join(parts) + "\n"


def _labels(errors: Mapping[str, Any]) -> str:
    """How far inferred actions were off, dimension by dimension."""
    rows = [[name, f"{e['rmse']:.3g}", f"{e['baseline_rmse']:.3g}", number(e["r2"], ".3f")]
            for name, e in errors["dimensions"].items()]  # fmt: skip
    said = f"Inferred actions of {errors['episodes']} held-out episodes, {errors['frames']} frames"
    return f"{said}:\n\n" + table(["action", "RMSE", "of the mean action", "R2"], rows)


def _cells(cells: Sequence[Cell]) -> str:
    columns: dict[str, Callable[[Cell], str]] = {
        "cell": lambda c: c["label"],
        "same as the reference": lambda c: _STANDING[c["standing"]],
        "success": lambda c: percent(c["success"]["rate"]),
        "95% interval": lambda c: _interval(c["success"]["low"], c["success"]["high"]),
        "n": lambda c: str(c["success"]["n"]),
        "crashes": lambda c: str(c["success"]["crashes"]),
        "each training seed": lambda c: ", ".join(percent(rate) for rate in c["per_seed"]),
        "tokens denoised": lambda c: number(c.get("tokens_denoised"), "d"),
        "latency p50 (ms)": lambda c: number(c.get("latency_ms_p50"), ".1f"),
        "PSNR (dB)": lambda c: number(c.get("psnr"), ".2f"),
        "SSIM": lambda c: number(c.get("ssim"), ".3f"),
        "parameters": lambda c: count(c.get("parameters")),
        "samples": lambda c: count(c.get("samples")),
        "FLOPs": lambda c: number(c.get("flops"), ".2e"),
        "training": lambda c: NONE if c.get("seconds") is None else duration(float(c["seconds"])),
    }
    rows = [[write(cell) for write in columns.values()] for cell in cells]
    kept = [i for i in range(len(columns)) if any(row[i] != NONE for row in rows)]
    return table([list(columns)[i] for i in kept], [[row[i] for i in kept] for row in rows])


_STANDING = {"samples": "samples", "compute": "compute", "both": "samples, compute"}


def _per_task(cells: Sequence[Cell]) -> str:
    tasks = list(dict.fromkeys(task for cell in cells for task in cell["per_task"]))
    rows = []
    for cell in cells:
        scores = [cell["per_task"].get(task) for task in tasks]
        found = [
            NONE if s is None else f"{percent(s['rate'])} ({_interval(s['low'], s['high'])}, n = {s['n']})"
            for s in scores
        ]
        rows.append([cell["label"], _STANDING[cell["standing"]], *found])
    return table(["cell", "same as the reference", *tasks], rows)


def _differences(differences: Sequence[Mapping[str, Any]]) -> str:
    """A row for each measure that was compared: success in percentage points, the others in their own unit."""
    rows: list[list[str]] = []
    notes: dict[str, None] = {}
    for difference in differences:
        for measure in MEASURES:
            found = difference.get(measure)
            if found is not None:
                mean, low, high = (_signed(found[key], measure) for key in ("mean", "low", "high"))
                pairs = f"{found['n_pairs']}" + (f" ({found['n_dropped']} unpaired)" if found["n_dropped"] else "")
                where = [difference["cell"], _STANDING[difference["standing"]], difference["reference"]]
                rows.append([*where, MEASURES[measure], mean, f"{low} to {high}", pairs, found["verdict"]])
                notes[found["note"]] = None
    header = ["cell", "same as the reference", "less", "of", "difference", "95% interval", "pairs", "verdict"]
    return "\n\n".join([table(header, rows), *(f"{note[0].upper()}{note[1:]}." for note in notes if note)])


def _signed(difference: int | float, measure: str) -> str:
    """0.123 of success -> "+12.3"; -0.42 of PSNR -> "-0.42"."""
    return f"{100 * difference:+.1f}" if measure == "success" else f"{difference:+.3g}"


def _laws(laws: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            w["family"],
            _STANDING[w["standing"]],
            f"{w['a']:.3g}",
            f"{w['b']:.3g}",
            f"{w['b_low']:.3g} to {w['b_high']:.3g}",
        ]
        for w in laws
    ]
    header = ["failure rate = a / demonstrations^b", "same as the reference", "a", "b", "95% interval of b"]
    return table(header, rows)


def _multipliers(multipliers: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for m in multipliers:
        ends = NONE if m["value"] is None else f"{m['low']:.3g} to {m['high']:.3g}"
        rows.append(
            [
                m["cell"],
                m["reference"],
                percent(m["success"]),
                number(m["value"], ".3g"),
                ends,
                m["verdict"],
                m["note"],
            ]
        )
    header = ["cell", "against", "to reach", "times fewer demonstrations", "95% interval", "verdict", "note"]
    return table(header, rows)


def _paper(value: Any) -> str:
    """A table of the paper as its entries, anything else as it is."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {plain(number)}" for name, number in value.items())
    return plain(value)


def _interval(low: float, high: float) -> str:
    return f"{percent(low)} to {percent(high)}"
