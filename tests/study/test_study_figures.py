"""Every figure and table of a study: nothing overlaps, nothing is cut off, every number is there."""

from __future__ import annotations

import copy
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox
from PIL import Image
from study_results import STUDIES

from actwam.report.labels import spread
from actwam.report.study import FIGURES, markdown, write_figure
from actwam.report.style import STYLE

RESULTS = {name: make() for name, make in STUDIES.items()}


def drawn(results: dict[str, Any]) -> Figure:
    with rc_context(STYLE):
        figure = FIGURES[results["study"]](results)
        figure.draw_without_rendering()
    return figure


def texts(figure: Figure) -> list[Text]:
    """All that is drawn: matplotlib keeps labels of ticks beyond the ends of an axis too."""
    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            hidden |= {tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high}
    return [t for t in figure.findobj(Text) if t.get_visible() and t.get_text() and t not in hidden]


def extents(texts: list[Text]) -> list[Bbox]:
    return [text.get_window_extent() for text in texts]


def overlapping(boxes: list[Bbox]) -> list[tuple[int, int]]:
    return [
        (i, j)
        for (i, a), (j, b) in combinations(enumerate(boxes), 2)
        if min(a.x1, b.x1) > max(a.x0, b.x0) + 0.5 and min(a.y1, b.y1) > max(a.y0, b.y0) + 0.5
    ]


def labels(figure: Figure) -> list[Text]:
    return [text for text in texts(figure) if isinstance(text, Annotation)]


def crowded() -> dict[str, Any]:
    """All families as fast as one another, and of almost the same success."""
    results = copy.deepcopy(RESULTS["families"])
    for cell in results["cells"]:
        cell["latency_ms_p50"] = 20.0
    return results


def test_there_is_a_figure_of_every_study() -> None:
    assert set(RESULTS) == set(FIGURES)


@pytest.mark.parametrize("name", RESULTS)
def test_the_picture(name: str, tmp_path: Path) -> None:
    write_figure(RESULTS[name], tmp_path / "new" / "a.png")
    write_figure(RESULTS[name], tmp_path / "b.png")
    assert (tmp_path / "new" / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "b.png") as image:
        assert image.width == 1600
        assert len(image.getcolors(1 << 24) or []) > 50


@pytest.mark.parametrize("name", RESULTS)
def test_no_text_lies_on_text_or_beyond_the_edge(name: str) -> None:
    figure = drawn(RESULTS[name])
    found = texts(figure)
    boxes = extents(found)
    assert [(found[i].get_text(), found[j].get_text()) for i, j in overlapping(boxes)] == []
    page = figure.bbox
    outside = [t.get_text() for t, b in zip(found, boxes, strict=True) if b.x0 < 0 or b.x1 > page.x1 or b.y1 > page.y1]
    assert outside == []
    assert min(text.get_fontsize() for text in found) >= 9


@pytest.mark.parametrize("results", [RESULTS["families"], crowded()], ids=["usual", "crowded"])
def test_every_family_is_named_beside_its_markers(results: dict[str, Any]) -> None:
    figure = drawn(results)
    names = labels(figure)
    assert {text.get_text().split("\n")[0] for text in names} == {cell["label"] for cell in results["cells"]}
    assert all(text.get_text().endswith(" tokens") for text in names)
    boxes = extents(names)
    whiskers = [line for line in figure.axes[0].lines if line.get_linewidth() == 2.2]
    assert len(whiskers) == len(results["cells"])
    places = figure.axes[0].transData.transform([line.get_xydata()[0] for line in whiskers])
    assert np.diff(np.sort(places[:, 0])).min() > 9  # pixels: markers are as wide
    assert overlapping(boxes + [line.get_window_extent() for line in whiskers]) == []
    frame = figure.axes[0].bbox
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 for box in boxes)


def test_whiskers_and_markers_stand_at_the_numbers() -> None:
    results = RESULTS["weights"]
    axes = drawn(results).axes[0]
    whiskers = [line.get_xydata().tolist() for line in axes.lines if line.get_linewidth() == 2.2]
    for cell, ((x, low), (same, high)) in zip(sorted(results["cells"], key=lambda c: c["x"]), whiskers, strict=True):
        assert 10**x == pytest.approx(cell["x"])
        assert (same, low, high) == (x, cell["success"]["low"], cell["success"]["high"])
    rates = [line.get_ydata()[0] for line in axes.lines if line.get_markersize() == 8.5 and len(line.get_ydata())]
    assert sorted(rates) == sorted(cell["success"]["rate"] for cell in results["cells"])
    tasks = [rate for line in axes.lines if line.get_markersize() == 5.5 for rate in line.get_ydata()]
    expected = [task["rate"] for cell in results["cells"] for task in cell["per_task"].values()]
    assert sorted(tasks) == pytest.approx(sorted(expected))


def test_a_cell_in_which_all_crashed_is_not_drawn(tmp_path: Path) -> None:
    for name in RESULTS:
        results = copy.deepcopy(RESULTS[name])
        cell = results["cells"][1]
        cell["success"] = {"rate": None, "n": 0, "low": 0.0, "high": 1.0, "crashes": 240}
        cell["per_seed"] = [None] * 3
        cell["per_task"] = {task: {**score, "rate": None} for task, score in cell["per_task"].items()}
        write_figure(results, tmp_path / "a.png")
        assert "| \N{EN DASH} | 0% to 100% | 0 | 240 |" in markdown(results)
    for cell in results["cells"]:
        cell["success"]["rate"] = None
    with pytest.raises(ValueError, match="every episode crashed"):
        write_figure(results, tmp_path / "a.png")


def test_one_task_and_one_cell(tmp_path: Path) -> None:
    for name in RESULTS:
        results = copy.deepcopy(RESULTS[name])
        results["cells"] = results["cells"][:1]
        results["cells"][0]["per_task"] = {"reach-v3": results["cells"][0]["per_task"]["door-open-v3"]}
        write_figure(results, tmp_path / "a.png")
        assert not any("single tasks" in text.get_text() for text in texts(drawn(results)))


@pytest.mark.parametrize("name", RESULTS)
def test_the_tables_hold_every_number(name: str) -> None:
    results = RESULTS[name]
    text = markdown(results)
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    for table in tables:
        assert len({line.count("|") for line in table}) == 1
    cells, tasks, differences = tables[:3]
    assert len(cells) == len(tasks) == len(results["cells"]) + 2
    assert len(differences) == len(results["differences"]) + 2
    assert ("PSNR (dB)" in text) == ("latency" not in text) == (name == "mask") or name not in ("mask", "families")
    assert "commit 0123456789ab; Some CPU" in text
    assert "4 tasks: the interval is coarse" in text
    for cell, line in zip(results["cells"], cells[2:], strict=True):
        assert line.startswith(f"| {cell['label']} |")
        assert f"{100 * cell['success']['rate']:.1f}".removesuffix(".0") in line
        assert "| 1.23 M | 19.2 k | 1.50e+15 | 7 min 11 s |" in line


def test_the_paper_is_in_the_tables_and_not_in_the_figure() -> None:
    assert "The paper, with other robots, tasks and sizes: success: none 0.6, stride 12 0.83." in markdown(
        RESULTS["future"]
    )
    assert not any("0.83" in text.get_text() for text in texts(drawn(RESULTS["future"])))


def test_notes_and_the_errors_of_inferred_actions_are_in_the_tables() -> None:
    results = copy.deepcopy(RESULTS["idm"])
    results["notes"] = ["Mind the gap."]
    errors = {"rmse": 0.123, "baseline_rmse": 0.6, "r2": 0.958}
    results["cells"][1]["labels"] = {"episodes": 6, "frames": 504, "dimensions": {"move_x": errors}}
    text = markdown(results)
    assert "Mind the gap." in text
    assert "Inferred actions of 6 held-out episodes, 504 frames" in text
    assert "| move_x | 0.123 | 0.6 | 0.958 |" in text


def test_laws_and_multipliers_are_listed() -> None:
    text = markdown(RESULTS["data"])
    law = RESULTS["data"]["laws"][0]
    assert f"| ACTION_CENTERED | samples, compute | {law['a']:.3g} | {law['b']:.3g} |" in text
    assert "times fewer demonstrations" in text
    nothing = {"cell": "A", "reference": "B", "value": None, "low": None, "high": None, "success": 0.5}
    results = {**RESULTS["data"], "multipliers": [{**nothing, "verdict": "inconclusive", "note": "flat"}]}
    assert "| A | B | 50% | \N{EN DASH} | \N{EN DASH} | inconclusive | flat |" in markdown(results)


def test_differences_of_other_measures_keep_their_unit() -> None:
    difference = RESULTS["mask"]["differences"][0]
    psnr = {**difference["success"], "mean": -0.42, "low": -0.5, "high": -0.3, "n_dropped": 3, "note": "one task"}
    text = markdown({**RESULTS["mask"], "differences": [{**difference, "psnr": psnr}]})
    where = "| BIDIRECTIONAL | samples | ACTION_CENTERED |"
    mean = f"{100 * difference['success']['mean']:+.1f}"
    assert f"{where} success (percentage points) | {mean} |" in text
    assert f"{where} PSNR (dB) | -0.42 | -0.5 to -0.3 | 240 (3 unpaired) |" in text
    assert "\n\nOne task.\n" in text


@pytest.mark.parametrize(
    ("study", "change", "message"),
    [
        ("families", {"study": "famlies"}, "unknown study 'famlies': there are figures of families, future"),
        ("families", {"cells": []}, "study families: has no cells"),
        ("families", {"latency_ms_p50": None}, "study families: cell 'ACTION_CENTERED' has no latency_ms_p50"),
        ("data", {"family": None}, "has no family"),
        ("weights", {"x": 0.0}, "has no place on a logarithmic axis: x is not above 0"),
        ("mask", {"standing": "time"}, "unknown standing 'time'"),
        ("mask", {"per_task": None}, "has no per_task"),
    ],
)
def test_what_cannot_be_drawn_is_refused(study: str, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    results = copy.deepcopy(RESULTS[study])
    if set(change) <= set(results):
        results.update(change)
    else:
        results["cells"][0].update(change)
    with pytest.raises(ValueError, match=message):
        write_figure(results, tmp_path / "a.png")
    with pytest.raises(ValueError, match=message):
        markdown(results)
    assert not (tmp_path / "a.png").exists()


def test_nothing_is_left_out_for_want_of_colours(tmp_path: Path) -> None:
    results = copy.deepcopy(RESULTS["future"])
    some = next(cell for cell in results["cells"] if cell["x"] > 0)
    results["cells"] += [{**some, "label": f"variant {i}"} for i in range(3)]
    with pytest.raises(ValueError, match=r"a figure can tell 2 apart here, not .*variant 2"):
        write_figure(results, tmp_path / "future.png")


def test_spreading_moves_as_little_as_possible() -> None:
    assert spread([0.0, 5.0, 9.0], 1.0) == [0, 5, 9]
    assert spread([0.0, 0.0, 0.0], 1.0) == pytest.approx([-1, 0, 1])
    assert spread([0.0, 0.2, 5.0], 1.0) == pytest.approx([-0.4, 0.6, 5])
    wanted = np.sort(np.random.default_rng(0).random(12)) * 5
    places = spread(wanted.tolist(), 0.5)
    assert np.diff(places).min() >= 0.5 - 1e-9
    # No feasible place nearby is better, which for a convex problem is enough.
    rng = np.random.default_rng(1)
    cost = ((np.array(places) - wanted) ** 2).sum()
    for _ in range(2000):
        other = np.array(places) + rng.normal(0, 0.05, 12)
        if np.diff(other).min() >= 0.5:
            assert ((other - wanted) ** 2).sum() >= cost
