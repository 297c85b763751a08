"""From a few labelled episodes to a dataset whose actions nobody recorded, and a policy that learns from both."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import lamps
import numpy as np
import pytest
import tiny

from actwam import cli, labels
from actwam.checkpoint import checkpoints
from actwam.commands.training import find_recipe
from actwam.data import remux
from actwam.data.check import check
from actwam.data.dataset import LeRobotDataset
from actwam.data.latents import Latents
from actwam.data.loader import Source
from actwam.inverse import Inference
from actwam.labels import Calibration, label, rank_correlation
from actwam.policy import Policy
from actwam.tokens import ACTION_CENTERED
from actwam.train.config import SourceConfig
from actwam.train.loop import Run, train
from actwam.train.metrics import read_metrics
from actwam.types import Mode

VIDEO = range(200, 203)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Datasets, and a model that learned from the labelled one."""
    root = tmp_path_factory.mktemp("labels")
    lamps.write(root / "labelled", range(24))
    lamps.write(root / "heldout", range(100, 103))
    lamps.write(root / "video", VIDEO, lamps.video_only())
    lamps.write(root / "recorded", VIDEO)
    train(lamps.recipe(), {"labelled": root / "labelled"}, Run(out=root / "model", cache=root / "cache"))
    return {path.name: path for path in root.iterdir()}


@pytest.fixture(scope="module")
def policy(folders: dict[str, Path]) -> Policy:
    return Policy.load(folders["model"])


@pytest.fixture(scope="module")
def labelled(folders: dict[str, Path], policy: Policy) -> tuple[LeRobotDataset, labels.LabelReport]:
    """The video without state or action, labelled."""
    out = folders["video"].parent / "out"
    report = label(policy, open_("video", folders), out, heldout=open_("heldout", folders))
    return LeRobotDataset.open(out), report


def open_(name: str, folders: dict[str, Path]) -> LeRobotDataset:
    return LeRobotDataset.open(folders[name])


def truth() -> np.ndarray:
    return np.concatenate([lamps.walk(seed, 20 + seed % 3).action[:-1] for seed in VIDEO])


def dark() -> np.ndarray:
    """Rows whose action no picture shows, because before, after or both it is dark."""
    rows = []
    for seed in VIDEO:
        unseen = np.zeros(20 + seed % 3, bool)
        if seed % 3 == 2:
            unseen[lamps.DARK] = True
        rows.append(unseen[:-1] | unseen[1:])
    return np.concatenate(rows)


def test_the_actions_of_a_video_are_found(labelled: tuple[LeRobotDataset, labels.LabelReport]) -> None:
    dataset, report = labelled
    error = np.square(dataset.action - truth())
    varies = np.square(truth() - truth().mean(0)).mean(0)
    lit = ~dark()
    assert (error[lit].mean(0) < 0.3 * varies).all()
    assert report.heldout is not None
    assert min(each.r2 or 0 for each in report.heldout.dimensions.values()) > 0.3


def test_less_is_trusted_where_nothing_is_seen(labelled: tuple[LeRobotDataset, labels.LabelReport]) -> None:
    dataset, report = labelled
    assert dataset.confidence is not None
    assert np.median(dataset.confidence[dark()]) < np.quantile(dataset.confidence[~dark()], 0.1)
    assert report.heldout is not None
    assert (report.heldout.rank_correlation or 0) > 0.3
    lowest, *_, highest = report.heldout.quarters.values()
    assert lowest.rmse_normalised > 2 * highest.rmse_normalised
    assert lowest.confidence_to <= highest.confidence_from


def test_what_is_written_is_a_dataset(
    labelled: tuple[LeRobotDataset, labels.LabelReport], folders: dict[str, Path], policy: Policy
) -> None:
    dataset, report = labelled
    video = open_("video", folders)
    assert check(dataset.folder).ok
    assert (dataset.robot_type, dataset.state_names) == (lamps.ROBOT.name, ())
    assert dataset.action_names == lamps.ROBOT.action_names
    assert [e.length for e in dataset.episodes] == [e.length - 1 for e in video.episodes]  # nobody saw the last action
    assert (report.frames, report.left_out) == (len(dataset.action), len(video.episodes))
    assert [e.instruction for e in dataset.episodes] == [e.instruction for e in video.episodes]
    for episode in dataset.episodes:
        for camera in lamps.ROBOT.cameras.values():
            whole = video.video(camera, episode.index)
            assert np.array_equal(dataset.video(camera, episode.index), whole[:-1])
    assert set(report.videos.values()) == {"copied"}
    assert dataset.confidence is not None
    assert 0 < dataset.confidence.min() < dataset.confidence.max() <= 1
    sheet = json.loads((dataset.folder / "meta/labels.json").read_text())
    assert sheet["policy"]["digest"] == policy.checkpoint.digest
    assert sheet["datasets"]["heldout"] == {
        "folder": str(folders["heldout"]),
        "digest": open_("heldout", folders).digest,
    }
    assert sheet["asked"] == {"stride": None, "samples": 4, "seed": 0, "batch_size": 32}
    assert (sheet["with_state"], sheet["own_actions"]) == (False, None)
    assert sheet["heldout"]["frames"] == report.heldout.frames if report.heldout else 0


def test_errors_against_recorded_actions(folders: dict[str, Path], policy: Policy, tmp_path: Path) -> None:
    """Those of the dataset are compared with, and change nothing else."""
    recorded = open_("recorded", folders)
    report = label(policy, recorded, tmp_path / "out")
    dataset = LeRobotDataset.open(tmp_path / "out")
    shuffled = replace(recorded, action=recorded.action[::-1].copy())
    other = label(policy, shuffled, tmp_path / "other")
    assert np.array_equal(dataset.action, LeRobotDataset.open(tmp_path / "other").action)
    assert np.array_equal(dataset.state, np.concatenate([lamps.walk(s, 20 + s % 3).state[:-1] for s in VIDEO]))
    found, wrong = report.own_actions, other.own_actions
    assert found is not None
    assert wrong is not None
    assert (found.r2 or 0) > 0.7 > (wrong.r2 or 0)
    std = np.array(policy.robot.action.stats.std)
    for i, (name, each) in enumerate(found.dimensions.items()):
        error, away = dataset.action[:, i] - truth()[:, i], truth()[:, i] - truth()[:, i].mean()
        assert name == lamps.ROBOT.action_names[i]
        expected = {
            "rmse": np.sqrt(np.mean(error**2)),
            "mae": np.abs(error).mean(),
            "rmse_normalised": np.sqrt(np.mean(error**2)) / std[i],
            "mae_normalised": np.abs(error).mean() / std[i],
            "r2": 1 - np.sum(error**2) / np.sum(away**2),
            "baseline_rmse": np.sqrt(np.mean(away**2)),
            "baseline_mae": np.abs(away).mean(),
        }
        assert vars(each) == pytest.approx(expected, rel=1e-4)
    by_row = np.sqrt(np.square((dataset.action - truth()) / std).mean(1))
    assert found.rmse_normalised == pytest.approx(np.sqrt(np.square(by_row).mean()), rel=1e-4)
    assert dataset.confidence is not None
    order = np.argsort(dataset.confidence, kind="stable")
    for quarter, part in zip(found.quarters.values(), np.array_split(order, 4), strict=True):
        assert quarter.frames == len(part)
        assert quarter.confidence_to == pytest.approx(dataset.confidence[part].max())
        assert quarter.rmse_normalised == pytest.approx(np.sqrt(np.square(by_row[part]).mean()), rel=1e-4)
    assert (report.confidence["floor"], report.confidence["gain"], report.heldout) == (0, 1, None)


def test_a_state_that_the_video_lacks_is_hidden_in_the_held_out_episodes_too(
    folders: dict[str, Path],
    policy: Policy,
    labelled: tuple[LeRobotDataset, labels.LabelReport],
    tmp_path: Path,
) -> None:
    """So it makes no difference whether they have one; nor does the size of a batch."""
    dataset, report = labelled
    assert report.confidence["fitted_on"] == str(folders["heldout"])
    assert (report.confidence["floor"], report.confidence["gain"]) != (0, 1)
    stateless = LeRobotDataset.open(
        lamps.write(tmp_path / "heldout", range(100, 103), replace(lamps.ROBOT, state_names=()))
    )
    again = label(policy, open_("video", folders), tmp_path / "again", heldout=stateless, ask=Inference(batch_size=5))
    made = LeRobotDataset.open(tmp_path / "again")
    np.testing.assert_allclose(made.action, dataset.action, atol=1e-5)
    assert made.confidence is not None
    assert dataset.confidence is not None
    np.testing.assert_allclose(made.confidence, dataset.confidence, atol=1e-5)
    assert again.confidence["gain"] == pytest.approx(report.confidence["gain"], rel=1e-3)


def test_calibration_finds_what_it_was_made_from() -> None:
    spread = np.linspace(0, 2, 50)
    found = Calibration.fit(spread, np.sqrt(0.1 + 0.5 * spread**2))
    assert (found.floor, found.gain) == pytest.approx((0.1, 0.5))
    through_zero = Calibration.fit(spread + 1, np.maximum(spread, 0.1))
    assert through_zero.floor == 0
    assert through_zero.gain > 0
    assert Calibration.fit(spread, 2 - spread).gain == 0  # never more trust where answers disagree more
    assert Calibration.fit(np.ones(3), np.array([1.0, 1.0, 2.0])) == Calibration(2.0, 0.0)
    trust = found.confidence(spread)
    assert (np.diff(trust) < 0).all()
    assert Calibration().confidence(np.array([0.0, 1.0])).tolist() == [1.0, 0.5]


def test_rank_correlation() -> None:
    a = np.array([0.1, 0.5, 0.2, 0.9])
    assert rank_correlation(a, np.exp(a)) == pytest.approx(1)
    assert rank_correlation(a, -a) == pytest.approx(-1)
    assert rank_correlation(np.array([1.0, 2, 2, 3]), np.array([1.0, 2, 3, 4])) == pytest.approx(0.9486833)
    assert rank_correlation(a, np.ones(4)) is None


REFUSED = {
    "the folder exists": ({"out": "heldout"}, "heldout: exists already"),
    "an action-centered policy": ({"table": ACTION_CENTERED}, "its actions never see the future"),
    "nothing to measure on": ({"heldout": "video"}, "video: has no actions to measure the error on"),
    "a held-out set without state": (
        {"dataset": "recorded", "heldout": "stateless"},
        "stateless: has no state, and what is labelled has",
    ),
    "another robot": ({"dataset": "fast"}, "fast: no video of embodiment robot_0: fps is 20 here, 10 there"),
    "too short": ({"dataset": "short"}, "short: episode 0 has 4 frames, fewer than the 5 of one window"),
    "a held-out set of another robot": ({"heldout": "fast"}, "fast: no video of embodiment robot_0"),
    "other actions": ({"heldout": "renamed"}, r"renamed: not recorded on .*action is \('a', 'b', 'c'\) here"),
    "an action that is no number": ({"heldout": "nan"}, "heldout: row 7: y is nan"),
    "an instruction that is empty": ({"dataset": "silent"}, "video: episode 1: .*instruction"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_before_anything_is_inferred(
    case: str, folders: dict[str, Path], policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, said = REFUSED[case]
    robots: dict[str, dict[str, Any]] = {
        "stateless": {"state_names": ()},
        "fast": {"fps": 20},
        "renamed": {"action_names": ("a", "b", "c")},
        "short": {},
    }
    known = {name: open_(name, folders) for name in ("heldout", "video", "recorded")}
    for name in robots.keys() & set(changes.values()):
        length = 4 if name == "short" else 20
        folder = lamps.write(tmp_path / name, range(1), replace(lamps.ROBOT, **robots[name]), length)
        known[name] = LeRobotDataset.open(folder)
    action = known["heldout"].action.copy()
    action[7, 1] = np.nan
    known["nan"] = replace(known["heldout"], action=action)
    first, second, *_ = known["video"].episodes
    known["silent"] = replace(known["video"], episodes=(first, replace(second, instruction="")))
    monkeypatch.setattr(labels, "infer", lambda *_, **__: pytest.fail("something was inferred"))
    table, heldout = changes.get("table", policy.table), changes.get("heldout")
    out = folders[changes["out"]] if "out" in changes else tmp_path / "labelled"
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=said) as error:
        label(
            replace(policy, table=table),
            known[changes.get("dataset", "video")],
            out,
            heldout=None if heldout is None else known[heldout],
        )
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


def test_videos_that_cannot_be_cut_are_encoded_again(
    folders: dict[str, Path], policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remux, "copyable", lambda path, firsts: None)
    video = open_("video", folders)
    report = label(policy, video, tmp_path / "out")
    made = LeRobotDataset.open(tmp_path / "out")
    assert set(report.videos.values()) == {"encoded again"}
    difference = made.video("front", 1).astype(int) - video.video("front", 1)[:-1]
    assert 0 < np.abs(difference).max() < 10


def test_a_failure_half_way_leaves_nothing(
    folders: dict[str, Path], policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise ValueError("disk is full")

    monkeypatch.setattr(labels.DatasetWriter, "write_json", full)
    with pytest.raises(ValueError, match="disk is full"):
        label(policy, open_("video", folders), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def run(*words: object, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["actwam", *map(str, words)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    return int(exit_.value.code or 0)


def test_the_command(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("label", folders["video"], "--policy", folders["model"], "--out", tmp_path / "out")
    more = ("--heldout", folders["heldout"], "--samples", 2, "--stride", 4, "--json")
    assert run(*words, *more, monkeypatch=monkeypatch) == 0
    said = json.loads(capsys.readouterr().out)
    sheet = json.loads((tmp_path / "out/meta/labels.json").read_text())
    assert said == {name: sheet[name] for name in said}
    assert sheet["asked"]["samples"] == 2
    assert run(*words, monkeypatch=monkeypatch) == 2
    assert "out: exists already" in capsys.readouterr().err
    words = (*words[:-1], tmp_path / "second")
    assert run(*words, "--heldout", folders["heldout"], monkeypatch=monkeypatch) == 0
    table = capsys.readouterr().out
    assert all(word in table for word in ("grip", "baseline", "lowest", "highest", "copied", "held-out"))
    assert "its own" not in table
    assert run(*words[:-1], tmp_path / "third", "--robot", "other", monkeypatch=monkeypatch) == 2
    assert "trained on robot_0; name one of them, not 'other'" in capsys.readouterr().err


def test_a_policy_learns_from_both(
    folders: dict[str, Path], labelled: tuple[LeRobotDataset, labels.LabelReport], tmp_path: Path
) -> None:
    dataset, _ = labelled
    assert dataset.confidence is not None
    middle = float(np.median(dataset.confidence))
    sources = (
        SourceConfig(dataset="demos", mode=Mode.POLICY),
        SourceConfig(dataset="labels", mode=Mode.POLICY, weight=0.5, min_confidence=middle),
    )
    recipe = tiny.recipe(tiny.stage(sources=sources))
    data = {"demos": folders["labelled"], "labels": dataset.folder}
    folder = train(recipe, data, Run(out=tmp_path / "run", cache=tmp_path / "cache"))
    assert np.isfinite([row["loss_action"] for row in read_metrics(folder / "metrics.jsonl")]).all()
    trained = Policy.load(checkpoints(folder)[-1])
    assert trained.act(tiny.observation()).actions.shape == (tiny.HORIZON, 3)
    for least, name, said in (
        (1.0, "labels", "out: no window has a confidence of 1, the best has 0"),
        (0.5, "demos", "labelled: has no action_confidence, which only `actwam label` writes"),
    ):
        strict = SourceConfig(dataset=name, mode=Mode.POLICY, min_confidence=least)
        with pytest.raises(ValueError, match=said):
            train(
                tiny.recipe(tiny.stage(sources=(strict,))), data, Run(out=tmp_path / "other", cache=tmp_path / "cache")
            )
    assert not (tmp_path / "other").exists()


def test_windows_below_the_confidence_are_left_out(
    labelled: tuple[LeRobotDataset, labels.LabelReport], policy: Policy
) -> None:
    made, _ = labelled
    assert made.confidence is not None
    trust = np.where(np.arange(len(made.action)) % 7 == 0, 0.1, 0.9).astype(np.float32)
    dataset = replace(made, confidence=trust)
    latents = Latents(made.folder, [np.zeros((len(trust), 1, tiny.CHANNELS, 2, 4), np.float16)])

    def source(mode: Mode, least: float) -> Source:
        return Source(dataset, latents, policy.robot, lamps.WINDOW, mode, min_confidence=least)

    for mode in (Mode.POLICY, Mode.INVERSE):
        expected = []
        every = source(mode, 0.0)
        for start, last in zip(*every._windows.find(np.arange(len(every)))[:2], strict=True):
            rows = trust[start : min(start + tiny.HORIZON, last + 1)]
            if rows.astype(np.float64).mean() >= 0.75:
                expected.append(start)
        found = source(mode, 0.75)
        assert 0 < len(expected) < len(source(mode, 0.0))
        assert found._windows.find(np.arange(len(found)))[0].tolist() == expected
        assert not found.batch(np.array([0])).state_valid.any()
    with pytest.raises(ValueError, match=r"no window has a confidence of 0\.95, the best has 0\.9"):
        source(Mode.POLICY, 0.95)


@pytest.mark.parametrize(("mode", "least"), [(Mode.POLICY, -0.1), (Mode.POLICY, 1.1), (Mode.VIDEO, 0.5)])
def test_a_confidence_that_cannot_be_is_refused(mode: Mode, least: float) -> None:
    with pytest.raises(ValueError, match="min_confidence must be from 0 to 1, and 0 for mode video"):
        SourceConfig(dataset="d", mode=mode, min_confidence=least)


def test_the_recipe_of_the_guide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    made = find_recipe("pseudo_labels:mixed", {"weight": "0.5", "align_steps": "7"})
    (stage,) = made.stages
    assert stage.steps == 7
    assert [(source.dataset, source.weight) for source in stage.sources] == [("demos", 1.0), ("labels", 0.5)]
    assert stage.sources[1].min_confidence == 0.9


def test_the_recipe_of_a_model_that_labels() -> None:
    made = find_recipe("metaworld.inverse", {"steps": "9"}, datasets=("labelled", "clips"))
    (stage,) = made.stages
    assert [(source.dataset, source.mode) for source in stage.sources] == [
        ("labelled", Mode.INVERSE),
        ("clips", Mode.VIDEO),
    ]
    assert stage.objective.state_dropout == 0.5
    assert made.window.future_offsets == tuple(range(1, made.window.action_horizon + 1))
