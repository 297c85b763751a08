"""The whole way at its smallest size, through the command line, as a user walks it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from actwam import cli
from actwam.checkpoint import newest
from actwam.policy import Policy

RESULT_KEYS = {
    "success_rate", "n_episodes", "wilson_low", "wilson_high", "per_task", "randomized", "psnr", "ssim",
    "latency_ms", "seconds",
}  # fmt: skip
TASKS = ["--tasks", "drawer-open-v3"]


def actwam(*words: object) -> int:
    """Run the command in this process and return its exit code."""
    arguments, sys.argv = sys.argv, ["actwam", *map(str, words)]
    try:
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    finally:
        sys.argv = arguments
    return int(stopped.value.code or 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished smoke demo."""
    out = tmp_path_factory.mktemp("smoke") / "demo"
    assert actwam("demo", "--smoke", "--out", out) == 0
    return out


@pytest.fixture(scope="module")
def policy(folder: Path) -> Path:
    return folder / "train" / "3-align"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_results_hold_every_number(folder: Path) -> None:
    results = read(folder / "results.json")
    assert set(results) >= RESULT_KEYS
    assert set(results["per_task"]) == {"drawer-open-v3"}
    assert 0 <= results["wilson_low"] <= results["success_rate"] <= results["wilson_high"] <= 1
    assert results["latency_ms"]["action_only"]["p50"] > 0
    assert results["latency_ms"]["joint"]["tokens_denoised"] > results["latency_ms"]["action_only"]["tokens_denoised"]
    assert all(seconds > 0 for seconds in results["seconds"].values())
    page = (folder / "report.html").read_text()
    assert page.startswith(("<!DOCTYPE html>", "<!doctype html>"))
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_second_run_reuses_every_step(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = {path: path.stat().st_mtime_ns for path in (folder / "steps").iterdir() if path.stem != "settings"}
    assert actwam("demo", "--smoke", "--out", folder) == 0
    assert {path: path.stat().st_mtime_ns for path in steps} == steps
    assert capsys.readouterr().out.strip() == str(folder / "report.html")


def test_other_settings_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert actwam("demo", "--out", folder) == 2
    assert "other settings" in capsys.readouterr().err


def test_an_interrupted_step_is_done_again(folder: Path) -> None:
    before = read(folder / "results.json")
    for step in ("imagine", "evaluate-clean"):
        (folder / "steps" / f"{step}.json").unlink()
    assert actwam("demo", "--smoke", "--out", folder) == 0
    after = read(folder / "results.json")
    for key in ("success_rate", "per_task", "psnr", "ssim"):
        assert after[key] == before[key]


def test_evaluating_twice_gives_the_same(policy: Path, tmp_path: Path) -> None:
    records = []
    for run, workers in (("a", 1), ("b", 2)):
        words = ("--episodes", 2, "--max-steps", 20, "--workers", workers, "--out", tmp_path / run)
        assert actwam("eval", policy, *TASKS, *words) == 0
        records.append((tmp_path / run / "episodes.jsonl").read_text())
    assert records[0] == records[1]
    assert len(records[0].splitlines()) == 2


def test_numbers_come_as_json(folder: Path, policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heldout = folder / "data" / "heldout"
    commands: tuple[tuple[object, ...], ...] = (
        ("check", heldout, "--constant", "center"),
        ("eval", policy, *TASKS, "--episodes", 1, "--max-steps", 8),
        ("imagine", policy, heldout, "--windows", 2, "--out", tmp_path / "imagined"),
        (
            "bench",
            policy,
            "tiny",
            "--precision",
            "fp32",
            "--repeats",
            2,
            "--warmup",
            1,
            "--out",
            tmp_path / "bench.json",
        ),
    )
    for command in commands:
        capsys.readouterr()
        assert actwam(*command, "--json") == 0
        assert json.loads(capsys.readouterr().out)


def test_training_from_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words: list[object] = ["train", "metaworld.laptop", "--out", tmp_path / "run", "--options", "align_steps", 3]
    words += ["general_steps", 1, "adapt_steps", 1, "--data"]
    for name in ("general", "adapt", "demos"):
        words += [name, folder / "data" / name]
    assert actwam(*words) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "run" / "3-align")
    Policy.load(tmp_path / "run" / "3-align")
    assert actwam(*words) == 2
    assert "--resume" in capsys.readouterr().err.replace("\n", " ")
    assert actwam(*words, "--resume") == 0


def test_check_names_the_problem(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(folder / "data" / "heldout", broken)
    video = next((broken / "videos").rglob("*.mp4"))
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    assert actwam("check", broken) == 1
    assert video.name in capsys.readouterr().err.replace("\n", "")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("collect", "OUT", "--tasks", "draw-open-v3"), "did you mean drawer-open-v3"),
        (("collect", "OUT", *TASKS, "--first-seed", "1000000"), "not all training seeds"),
        (("eval", "POLICY", *TASKS, "--first-seed", "5"), "not all evaluation seeds"),
        (("eval", "POLICY", "--tasks", "nothing-v3"), "MetaWorld has no task"),
        (("eval", "OUT", *TASKS), "no checkpoint here"),
        (("check", "OUT"), "info.json"),
        (("train", "metaworld.nothing", "--data", "a", "OUT", "--out", "OUT"), "no recipe"),
        (
            ("train", "metaworld.laptop", "--data", "a", "OUT", "--out", "OUT", "--options", "b", "1"),
            "no option 'b'; it has general_steps",
        ),
        (("train", "metaworld.laptop", "--data", "a", "OUT", "--out", "OUT"), "needs datasets adapt, demos, general"),
        (("report", "OUT"), "results.json"),
    ],
)
def test_bad_input_is_one_clear_line(
    words: tuple[str, ...], expected: str, policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"OUT": str(tmp_path / "out"), "POLICY": str(policy)}
    code = actwam(*(places.get(word, word) for word in words))
    said = capsys.readouterr().err.strip().splitlines()
    assert code in (1, 2)
    assert expected in said[-1]
    assert "Traceback" not in "".join(said)
    assert not (tmp_path / "out").exists()


def test_a_changed_byte_is_refused(policy: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(policy, copy, symlinks=True)
    weights = newest(copy) / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ValueError, match="changed since it was written"):
        Policy.load(copy)


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_help_is_short(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert actwam(command, "--help") == 0
    assert len(capsys.readouterr().out.splitlines()) < 60
