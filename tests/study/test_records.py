"""The file of records: what is in it, what an interruption leaves, and what is made of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actwam.study.cell import Cell
from actwam.study.findings import summarise
from actwam.study.grid import SCALES, Study, study_of
from actwam.study.records import FILE, Records

SCALE = replace(SCALES["smoke"], seeds=2)
MADE = {"commit": "abc"}


def result(cell: Cell, letters: str = "st") -> dict[str, Any]:
    """Of a cell that was not really run: the same outcomes in every task, PSNR by family."""
    psnr = 20.0 + len(str(cell.options.get("family", "")))
    return {
        "episodes": dict.fromkeys(cell.tasks, letters),
        "imagined": {
            "instructions": ["a", "a", "b", "b"],
            "episodes": [0, 0, 1, 1],
            "psnr": [psnr, psnr + 1, psnr, psnr],
            "ssim": [0.5, 0.6, 0.7, 0.8],
        },
        "labels": None,
        "seconds": {"train": 2.0, "evaluate": 1.0},
    }


def recorded(study: Study, folder: Path, letters: str = "st") -> Records:
    records = Records(folder)
    for entry in study.entries:
        for cell in entry.cells:
            if cell not in records:
                records.add(cell, result(cell, "ss" if "family" not in cell.options else letters), MADE)
    return records


def test_what_is_added_is_read_again(tmp_path: Path) -> None:
    study = study_of("mask", SCALE)
    recorded(study, tmp_path)
    again = Records(tmp_path)
    cell = study.entries[1].cells[1]
    assert cell in again
    assert again[cell]["settings"] == cell.settings()
    assert replace(cell, episodes=3) not in again
    episodes = again.episodes(study.entries[1].cells)
    assert (episodes.rate, episodes.n, episodes.n_crashes) == (0.5, 8, 0)
    assert {key[1] for key in episodes.success} == {0, 1}
    assert {key[2] for key, success in episodes.success.items() if success} == {cell.first_seed}


def test_crashes_are_left_out(tmp_path: Path) -> None:
    study = study_of("mask", SCALE)
    episodes = recorded(study, tmp_path, "cs").episodes(study.entries[1].cells)
    assert (episodes.rate, episodes.n, episodes.n_crashes) == (1.0, 4, 4)


def test_half_a_line_is_dropped_and_a_damaged_one_refused(tmp_path: Path) -> None:
    study = study_of("mask", SCALE)
    recorded(study, tmp_path)
    path = tmp_path / FILE
    whole = path.read_text()
    path.write_text(whole[:-20])
    left = Records(tmp_path)
    assert path.read_text() == whole[:-20]  # whoever writes it may not be done
    cells = [cell for entry in study.entries for cell in entry.cells]
    assert [cell in left for cell in cells] == [True] * (len(cells) - 1) + [False]
    left.add(cells[-1], result(cells[-1]), MADE)
    assert all(cell in Records(tmp_path) for cell in cells)
    for damaged in ("nonsense", '{"key": "0123"}', "[]"):
        path.write_text(f"{damaged}\n{whole}")
        with pytest.raises(ValueError, match="line 1 is damaged"):
            Records(tmp_path)


def test_windows_are_averaged_over_an_episode(tmp_path: Path) -> None:
    study = study_of("mask", SCALE)
    cells = study.entries[0].cells
    windows = recorded(study, tmp_path).windows(cells, "psnr")
    assert windows == {("a", 0, 0): 20.5, ("b", 0, 1): 20.0, ("a", 1, 0): 20.5, ("b", 1, 1): 20.0}


def test_a_summary_compares_every_entry_with_the_reference(tmp_path: Path) -> None:
    study = study_of("mask", SCALE)
    finding = json.loads(json.dumps(summarise(study, recorded(study, tmp_path, "tt"), {"name": "smoke"})))
    assert [cell["success"]["rate"] for cell in finding["cells"]] == [1.0, 0.0, 0.0]
    assert [(d["cell"], d["success"]["mean"], d["success"]["verdict"]) for d in finding["differences"]] == [
        ("BIDIRECTIONAL", -1.0, "worse"),
        ("UNCOUPLED", -1.0, "worse"),
    ]
    assert finding["differences"][0]["psnr"]["mean"] == pytest.approx(len("BIDIRECTIONAL"))
    assert finding["provenance"]["commits"] == ["abc"]


def test_quality_is_compared_where_the_frames_are_the_same(tmp_path: Path) -> None:
    study = study_of("future", SCALE)
    finding = summarise(study, recorded(study, tmp_path), {"name": "smoke"})
    compared = {difference["cell"] for difference in finding["differences"] if "psnr" in difference}
    assert compared == {"2 frames in a quarter of the batches", "2 frames, narrow visual expert"}
    assert all("success" in difference for difference in finding["differences"])


def test_the_study_of_data_gets_laws(tmp_path: Path) -> None:
    study = study_of("data", replace(SCALE, demos=20))
    finding = summarise(study, recorded(study, tmp_path), {"name": "smoke"})
    assert {(law["family"], law["standing"]) for law in finding["laws"]} == {
        (family, standing) for family in ("ACTION_CENTERED", "ACTION_ONLY") for standing in ("samples", "compute")
    }
    assert {(each["cell"], each["reference"]) for each in finding["multipliers"]} == {
        ("ACTION_CENTERED (samples)", "ACTION_ONLY"),
        ("ACTION_CENTERED (compute)", "ACTION_ONLY"),
    }
