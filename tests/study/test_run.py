"""`actwam study` in its smoke size, for real: two tasks, trained for four steps, played for sixteen."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from actwam.bench.latency import time_policies
from actwam.bench.shapes import Shape, random_observation, random_policy
from actwam.commands.study import study
from actwam.data.partial import locked
from actwam.study.cell import Workshop, _labels, run_cell
from actwam.study.grid import SCALES, study_of
from actwam.study.records import FILE, Records
from actwam.study.run import Programme, run_programme


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished study, begun in a process of more threads than its cells have."""
    folder, usual = tmp_path_factory.mktemp("study"), torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        assert study(("mask",), scale="smoke", out=folder, processes=2, as_json=True) == 0
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(usual)
    return folder


def test_a_study_leaves_findings_a_table_and_a_figure(done: Path) -> None:
    finding = json.loads((done / "mask.json").read_text())
    assert [cell["label"] for cell in finding["cells"]] == ["ACTION_CENTERED", "BIDIRECTIONAL", "UNCOUPLED"]
    assert {cell["standing"] for cell in finding["cells"]} == {"both"}
    assert all(cell["success"]["n"] == 4 and cell["psnr"] > 10 for cell in finding["cells"])
    assert "BIDIRECTIONAL" in (done / "mask.md").read_text()
    assert (done / "mask.png").read_bytes().startswith(b"\x89PNG")


def test_cells_read_the_latents_that_were_made_for_them(done: Path) -> None:
    """Those of the demonstrations; others would come of a codec that differs in its last bits."""
    assert len(list((done / "cache").glob("*/*/latents.json"))) == 1


def test_a_finished_cell_is_not_trained_again(done: Path) -> None:
    before = (done / FILE).read_text()
    elsewhere = Programme(
        studies=("mask",), scale="smoke", folder=done / "nothing", results=done, processes=1
    )  # whoever would train would need data
    assert elsewhere.outlook()["mask"]["left"] == 0
    again = run_programme(elsewhere)
    assert (done / FILE).read_text() == before
    assert not (done / "nothing").exists()
    assert [cell["psnr"] for cell in again[0]["cells"]] == [
        cell["psnr"] for cell in json.loads((done / "mask.json").read_text())["cells"]
    ]


def test_a_cell_run_again_gives_the_same(done: Path) -> None:
    cell = study_of("mask", SCALES["smoke"]).entries[1].cells[0]
    recorded = Records(done)[cell]["result"]
    again = run_cell(cell, Workshop(done), threads=1)
    assert {**again, "seconds": None} == {**recorded, "seconds": None}
    assert all(recorded["seconds"].values())
    assert again["seconds"] == {"train": None, "evaluate": None}  # it found all done: its seconds say nothing


def test_two_programmes_do_not_write_the_same_results(done: Path) -> None:
    programme = Programme(studies=("mask",), scale="smoke", folder=done, results=done, processes=1)
    with locked(done), pytest.raises(ValueError, match="another process is writing it now"):
        run_programme(programme)


def test_what_others_trained_is_not_mixed_in(done: Path) -> None:
    with pytest.raises(ValueError, match=r"mask.json: holds this study at another scale or other settings"):
        Programme(studies=("mask",), scale="laptop", folder=done, results=done, processes=1).plan()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"studies": ()}, "no study is named; there are families, future"),
        ({"studies": ("masks",)}, "unknown study 'masks'"),
        ({"scale": "huge"}, "unknown scale 'huge'; there are smoke, laptop, full"),
        ({"processes": 0}, "processes must be at least 1, not 0"),
        ({"threads": -1}, "threads must be at least 1, not -1"),
        ({"device": "cuda:7"}, "cuda"),
    ],
)
def test_nonsense_is_refused_before_anything_is_made(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    usual = Programme(studies=("mask",), scale="smoke", folder=tmp_path / "out", results=tmp_path / "out", processes=1)
    with pytest.raises(ValueError, match=message):
        run_programme(replace(usual, **changes))
    assert not (tmp_path / "out").exists()


def test_a_record_says_how_good_labels_were_and_not_where_they_lay(tmp_path: Path) -> None:
    cell = next(
        cell for entry in study_of("idm", SCALES["smoke"]).entries for cell in entry.cells if "inferred" in cell.data
    )
    workshop = Workshop(tmp_path)
    folder = workshop.dataset(cell.data["inferred"]) / "meta"
    folder.mkdir(parents=True)
    (folder / "labels.json").write_text(json.dumps({"heldout": {"folder": str(tmp_path), "r2": 0.5}}))
    assert _labels(cell, workshop) == {"r2": 0.5}


def test_committed_results_name_no_path_of_a_machine() -> None:
    results = Path(__file__).parents[2] / "benchmarks" / "results"
    files = [path for path in results.rglob("*") if path.suffix in (".json", ".jsonl", ".md")]
    assert files
    assert [path.name for path in files if re.search(r"[\"\s](/[\w.-]+){2,}", path.read_text())] == []


def test_policies_of_a_study_are_timed_untrained() -> None:
    entries = study_of("families", SCALES["smoke"]).entries
    shapes = {entry.label: Shape.of(entry.cells[0].recipe()) for entry in entries}
    policies = {label: random_policy(shape) for label, shape in shapes.items()}
    shape = shapes["ACTION_CENTERED"]
    latencies = time_policies(policies, [random_observation(shape.robot)], repeats=2, warmup=1)
    actions, future = shape.window.action_horizon, 24 * len(shape.window.future_offsets)
    expected = dict.fromkeys(shapes, actions) | dict.fromkeys(
        ("JOINT", "JOINT_HISTORY", "VIDEO_FIRST"), actions + future
    )
    expected["BIDIRECTIONAL"] = 24 + 1 + actions + future
    assert {name: latency.tokens_denoised for name, latency in latencies.items()} == expected
    assert all(latency.p50 > 0 for latency in latencies.values())


def test_a_worker_ends_with_who_started_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, time\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from multiprocessing import get_context\n"
        "from actwam.study.run import follow_parent\n"
        "if __name__ == '__main__':\n"
        "    pool = ProcessPoolExecutor(1, get_context('spawn'), initializer=follow_parent)\n"
        "    print(pool.submit(os.getpid).result(), flush=True)\n"
        "    pool.submit(time.sleep, 600)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, text=True, check=False, timeout=120)
    assert killed.returncode == -9
    worker = int(killed.stdout)
    for _ in range(600):
        if not Path(f"/proc/{worker}").exists() or "zombie" in Path(f"/proc/{worker}/status").read_text():
            return
        time.sleep(0.1)
    pytest.fail(f"process {worker} outlives the one that started it")
