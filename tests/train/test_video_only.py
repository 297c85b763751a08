"""Learning from video without actions: clips, other robots and humans, before demonstrations and beside them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import clip_files
import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor

from actwam import cli
from actwam.checkpoint import Checkpoint, checkpoints, load
from actwam.data.clips import Clips
from actwam.data.dataset import LeRobotDataset
from actwam.data.embodiment import Embodiment
from actwam.data.loader import Window
from actwam.data.transforms import Slot, View, ViewLayout, t_layout, whole_picture
from actwam.objective import add_noise
from actwam.policy import Policy
from actwam.train.config import Recipe, SourceConfig
from actwam.train.datasets import open_datasets
from actwam.train.encode import mixture
from actwam.train.loop import Run, train
from actwam.train.metrics import read_metrics
from actwam.train.prepare import fit_robots, initial
from actwam.train.step import forward_losses
from actwam.types import Batch, Group, Mode

CLIPS = SourceConfig(dataset="clips", mode=Mode.VIDEO)
DEMOS = SourceConfig(dataset="demos", mode=Mode.POLICY)


def silent(what: str, done: int, total: int) -> None:
    pass


def another(name: str, **changes: Any) -> Embodiment:
    """What a dataset was recorded on that is not the recipe's robot: without state and actions if not said."""
    nothing = {"state_names": (), "action_names": (), "delta_mask": ()}
    return tiny.robot(0, **{"name": name, "cameras": {"any": "chest"}, **nothing, **changes})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`clips` are two files of 20 fps and different sizes: 1.4 and 1.9 seconds."""
    root = tmp_path_factory.mktemp("video")
    both = {"any": "chest", "other": "glasses"}
    return {
        "clips": clip_files.write_clips(
            root / "clips", tiny.squares(36, 60, 29, 70), tiny.squares(64, 48, 39, 71), fps=20
        ),
        "demos": tiny.write_dataset(root / "demos", tiny.robot(0)),
        "human": tiny.write_dataset(root / "human", another("human")),
        "two": tiny.write_dataset(root / "two", another("human", cameras=both)),
        "fast": tiny.write_dataset(root / "fast", another("human", fps=30), length=30),
        "silent": tiny.write_dataset(root / "silent", another("robot_0", cameras=tiny.robot(0).cameras)),
        "stateless": write_stateless(root / "stateless"),
    }


def write_stateless(folder: Path) -> Path:
    robot = tiny.robot(0, state_names=(), delta_mask=(False,) * 3)
    return tiny.write_dataset(folder, robot, episodes=2, length=10)


def recipe(*sources: SourceConfig, **changes: Any) -> Recipe:
    return tiny.recipe(tiny.stage(sources=sources), **changes)


def video(dataset: str, **more: Any) -> SourceConfig:
    return SourceConfig(dataset=dataset, mode=Mode.VIDEO, **more)


def test_clips_are_read_at_the_rate_of_the_robot(folders: dict[str, Path]) -> None:
    found = open_datasets(recipe(CLIPS, DEMOS), folders)
    assert (found["clips"].fps, [e.length for e in found["clips"].episodes]) == (10, [15, 20])
    assert isinstance(found["demos"], LeRobotDataset)
    slow = open_datasets(recipe(video("clips", fps=4), DEMOS), folders)["clips"]
    assert (slow.fps, [e.length for e in slow.episodes]) == (4, [6, 8])


def test_video_of_anything_is_read_at_the_rate_of_the_robot(folders: dict[str, Path]) -> None:
    found = open_datasets(recipe(video("human"), video("fast"), DEMOS), folders)
    assert isinstance(found["human"], LeRobotDataset)
    assert isinstance(found["fast"], Clips)
    assert (found["fast"].fps, [e.length for e in found["fast"].episodes]) == (10, [10, 11, 11])


def test_robots_of_two_rates_leave_it_to_the_source(folders: dict[str, Path]) -> None:
    robots = (tiny.robot(0), tiny.robot(1, fps=20))
    both: dict[str, Any] = {"robots": robots, "model": tiny.config()}
    with pytest.raises(ValueError, match=r"its robots have 10 fps, 20 fps: say at which .*dataset clips is read, with"):
        open_datasets(recipe(CLIPS, DEMOS, **both), folders)
    found = open_datasets(recipe(video("clips", fps=20), video("silent"), DEMOS, **both), folders)
    assert (found["clips"].fps, found["silent"].fps) == (20, 10)  # that of its robot is known


@pytest.mark.parametrize("dataset", ["clips", "human", "silent"])
@pytest.mark.parametrize("mode", [Mode.POLICY, Mode.WORLD, Mode.INVERSE])
def test_a_mode_that_needs_actions_is_refused_without_them(folders: dict[str, Path], dataset: str, mode: Mode) -> None:
    source = SourceConfig(dataset=dataset, mode=mode)
    with pytest.raises(ValueError) as caught:
        open_datasets(recipe(source, video(dataset), DEMOS), folders)
    needs = {
        "clips": f"is a folder of videos; mode {mode} needs actions: use mode video",
        "human": f"has no actions; mode {mode} needs them: use mode video, or label it with `actwam label`",
    }
    what = needs["clips" if dataset == "clips" else "human"]
    assert str(caught.value) == f"{folders[dataset]}: dataset {dataset} {what}"


def pictures(dataset: str, source: SourceConfig, folders: dict[str, Path], tmp_path: Path) -> np.ndarray:
    """The first latent of the first episode, decoded."""
    made = tiny.checkpoint(robots=(tiny.transform(tiny.robot(0)),))
    opened = open_datasets(recipe(source, DEMOS), folders)
    batches = mixture(tiny.stage(sources=(source,)), made, opened, tmp_path / "cache", silent)
    latents = torch.from_numpy(batches.sources[0].latents.single(np.zeros((1, 1), int)))
    return made.codec.decode(latents).numpy()[0, 0].astype(int)


def test_a_single_camera_fills_the_picture_and_a_view_says_more(folders: dict[str, Path], tmp_path: Path) -> None:
    layout = ViewLayout(16, 32, (Slot("a", 0, 0, 16, 16), Slot("b", 0, 16, 16, 16)))
    view = View(layout, {"a": "glasses", "b": "chest"})
    episode = tiny.episode(0, another("human", cameras={"any": "chest", "other": "glasses"}))
    codec = tiny.codec()

    def expected(drawn: View) -> np.ndarray:
        picture = drawn.picture({name: frames[:1] for name, frames in episode.images.items()})
        return codec.decode(codec.encode(torch.from_numpy(picture)[None])).numpy()[0, 0].astype(int)

    cases = (
        ("human", None, whole_picture("chest", tiny.LAYOUT)),
        ("two", view, view),
        ("two", whole_picture("glasses", tiny.LAYOUT), whole_picture("glasses", tiny.LAYOUT)),
    )
    for dataset, given, drawn in cases:
        found = pictures(dataset, video(dataset, view=given), folders, tmp_path)
        assert np.abs(found - expected(drawn)).mean() < 3
        assert np.abs(found - expected(drawn)[:, ::-1]).mean() > 6


def test_a_robot_of_the_recipe_has_its_own_layout(folders: dict[str, Path], tmp_path: Path) -> None:
    """Its video without actions is seen as its demonstrations are."""
    found = pictures("silent", video("silent"), folders, tmp_path)
    known = pictures("demos", DEMOS, folders, tmp_path)
    assert np.abs(found - known).mean() < 1
    given = whole_picture("front", tiny.LAYOUT)
    other = pictures("silent", video("silent", view=given), folders, tmp_path)  # but its source may say otherwise
    assert np.abs(other - known).mean() > 6


def test_what_a_view_lacks_is_said(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"two: recorded on 'human', none of robot_0, by cameras chest, glasses: give"):
        open_datasets(recipe(video("two"), DEMOS), folders)
    given = whole_picture("nose", tiny.LAYOUT)
    for name in ("two", "clips"):
        with pytest.raises(ValueError, match=r"has cameras .*, not nose: give its source a view of those that it has"):
            open_datasets(recipe(video(name, view=given), DEMOS), folders)


def test_sources_that_do_not_fit_are_refused() -> None:
    view = whole_picture("chest", tiny.LAYOUT)
    with pytest.raises(ValueError, match="dataset x: a view or a rate of its own is for mode video; in mode policy"):
        SourceConfig(dataset="x", mode=Mode.POLICY, view=view)
    with pytest.raises(ValueError, match="is for mode video; in mode world"):
        SourceConfig(dataset="x", mode=Mode.WORLD, fps=5)
    with pytest.raises(ValueError, match="dataset x: fps must be at least 1, not 0"):
        video("x", fps=0)
    with pytest.raises(ValueError, match="dataset x: its view is 20 x 32, the picture 16 x 32"):
        recipe(video("x", view=whole_picture("chest", t_layout(32, 10, 10))))
    for other in (video("x"), video("x", view=view, fps=3)):
        with pytest.raises(ValueError, match="dataset x has two views or rates: give its folder two names"):
            recipe(video("x", view=view), other)


def test_a_clip_too_short_for_the_future_is_named(folders: dict[str, Path]) -> None:
    far = Window(action_horizon=1, future_offsets=(16,))
    with pytest.raises(ValueError, match=r"clip_0\.mp4 has 15 frames, fewer than the 17 of one window; drop it or"):
        open_datasets(recipe(CLIPS, window=far), folders)
    long = Window(action_horizon=18, future_offsets=(1,))  # there is no action
    assert open_datasets(recipe(CLIPS, window=long), folders)["clips"].fps == 10


def test_an_instruction_that_cannot_be_read_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = clip_files.write_clips(tmp_path / "wordy", tiny.squares(32, 32, 9, 0), instruction="a b c d e f g")
    made = tiny.checkpoint(robots=(tiny.transform(tiny.robot(0)),))
    stage = tiny.stage(sources=(CLIPS,))
    opened = open_datasets(tiny.recipe(stage), {"clips": folder})
    with pytest.raises(ValueError, match=r"clip_0\.mp4: instruction has 7 words, this model reads 1 to 6"):
        mixture(stage, made, opened, tmp_path / "cache", silent)
    assert not (tmp_path / "cache").exists()


def test_statistics_never_look_at_video(folders: dict[str, Path], tmp_path: Path) -> None:
    sources = (CLIPS, video("human"), video("fast"), video("silent"), DEMOS)
    alone = recipe(DEMOS)
    for mixed in (recipe(*sources), recipe(*reversed(sources))):
        found, expected = (fit_robots(made, open_datasets(made, folders), tmp_path) for made in (mixed, alone))
        assert found == expected
    none = recipe(*sources[:-1])
    with pytest.raises(ValueError, match="no dataset of robot robot_0 to take statistics from: one with its state"):
        fit_robots(none, open_datasets(none, folders), tmp_path)


def test_the_codec_is_fitted_on_video_too(folders: dict[str, Path], tmp_path: Path) -> None:
    alone, both = (
        initial(made, open_datasets(made, folders), tmp_path, silent) for made in (recipe(DEMOS), recipe(DEMOS, CLIPS))
    )
    assert alone.codec.digest() != both.codec.digest()
    assert alone.robots == both.robots


def test_actions_without_state_are_learned_beside_demonstrations(folders: dict[str, Path], tmp_path: Path) -> None:
    labelled = SourceConfig(dataset="stateless", mode=Mode.POLICY)
    mixed = recipe(labelled, DEMOS)
    datasets = open_datasets(mixed, folders)
    made = initial(mixed, datasets, tmp_path, silent)
    assert made.robots == initial(recipe(DEMOS), {"demos": datasets["demos"]}, tmp_path, silent).robots
    batch = mixture(mixed.stages[0], made, datasets, tmp_path, silent).batch(0)
    assert 0 < batch.state_valid.sum() < len(batch.modes)
    assert batch.action_valid[:, 0].all()
    with pytest.raises(ValueError, match="no dataset of robot robot_0 to take statistics from: one with its state"):
        fit_robots(recipe(labelled), open_datasets(recipe(labelled), folders), tmp_path)
    relative = (tiny.robot(0, delta_mask=(True, True, False)),)
    with pytest.raises(ValueError, match="stateless: has no state, and embodiment robot_0 learns x, y relative to it"):
        open_datasets(recipe(labelled, DEMOS, robots=relative), folders)


def test_a_state_of_other_dimensions_is_still_refused(folders: dict[str, Path]) -> None:
    robots = (tiny.robot(0, state_names=("x", "y", "z")),)
    with pytest.raises(ValueError, match=r"not recorded on embodiment robot_0: state is \('x', 'y', 'grip'\) here"):
        open_datasets(recipe(DEMOS, robots=robots), folders)


def mixed_batch(folders: dict[str, Path], tmp_path: Path, experts: str) -> tuple[Checkpoint, Batch]:
    """Video, AC-WM and policy samples in one batch: half of the latter two of the very same demonstrations."""
    sources = (
        video("clips", weight=2.0),
        SourceConfig(dataset="demos", mode=Mode.WORLD),
        DEMOS,
        SourceConfig(dataset="stateless", mode=Mode.POLICY),
    )
    made = tiny.checkpoint(experts, robots=(tiny.transform(tiny.robot(0)),))
    batches = mixture(tiny.stage(sources=sources), made, open_datasets(recipe(*sources), folders), tmp_path, silent)
    batch = replace(batches, batch_size=24).batch(3)
    assert {*batch.modes} == {Mode.VIDEO, Mode.WORLD, Mode.POLICY}
    assert batch.state_valid.any()
    return made, batch


def gradients(made: Checkpoint, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The losses, and the gradient of every weight; the noise is always the same."""
    made.model.zero_grad()
    noisy = add_noise(batch, tiny.stage().objective, tiny.draws(0, batch)).without_absent()
    parts = forward_losses(tiny.stage(), made.model, made.table, tiny.lesson(noisy, batch, made.text), None)
    parts["loss"].backward()
    return parts, {name: p.grad.clone() for name, p in made.model.named_parameters() if p.grad is not None}


def test_every_sample_of_a_mixed_batch_has_its_own_groups_and_losses(folders: dict[str, Path], tmp_path: Path) -> None:
    _, batch = mixed_batch(folders, tmp_path, "one")
    noisy = add_noise(batch, tiny.stage().objective, tiny.draws(0, batch)).without_absent()
    for i, mode in enumerate(batch.modes):
        embodied = mode is not Mode.VIDEO
        assert bool(noisy.present[Group.ACTION][i]) == embodied
        assert bool(noisy.present[Group.STATE][i]) == (embodied and bool(batch.state_valid[i]))
        assert bool(noisy.weighs[Group.ACTION][i].any()) == (mode is Mode.POLICY)
        assert torch.equal(noisy.weighs[Group.FUTURE][i, 0, :, 0, 0], batch.future_valid[i])
        assert (noisy.sigmas[Group.ACTION][i] > 0) == (mode is Mode.POLICY)
        assert noisy.sigmas[Group.FUTURE][i] > 0


@pytest.mark.parametrize("experts", ["one", "two"])
def test_what_a_sample_lacks_moves_nothing(folders: dict[str, Path], tmp_path: Path, experts: str) -> None:
    """Other numbers in its place, however large, give the same losses and gradients to the bit; what it has does."""
    made, batch = mixed_batch(folders, tmp_path, experts)
    absent = torch.tensor([mode is Mode.VIDEO for mode in batch.modes])
    shouted = replace(
        batch,
        state=torch.where(batch.state_valid[:, None], batch.state, 50 * tiny.noise_of(1, *batch.state.shape)),
        action=torch.where(absent[:, None, None], 50 * tiny.noise_of(2, *batch.action.shape), batch.action),
    )
    assert not torch.equal(batch.state, shouted.state)
    assert not torch.equal(batch.action, shouted.action)
    (losses, grads), (again, moved) = gradients(made, batch), gradients(made, shouted)
    assert set(losses) == {"loss", "loss_action", "loss_future"}
    assert all(torch.equal(losses[name], again[name]) for name in losses)
    assert set(grads) == set(moved)
    assert all(torch.equal(grads[name], moved[name]) for name in grads)
    for name in ("state", "action"):
        changed, _ = gradients(made, replace(batch, **{name: getattr(batch, name) + 1}))
        assert not torch.equal(changed["loss_future"], losses["loss_future"])


def stages() -> Recipe:
    """Video of clips and of people, then demonstrations, with some video beside them."""
    general = tiny.stage("general", sources=(CLIPS, video("fast")), steps=5)
    align = tiny.stage("align", sources=(DEMOS, video("clips", weight=0.5)), steps=5)
    return tiny.recipe(general, align, future_as_change=True)


class StoppedError(Exception):
    """Ends a run in its middle, as a signal would."""


def kept(folder: Path) -> dict[str, Tensor]:
    newest = checkpoints(folder)[-1]
    files = ("model.safetensors", "codec.safetensors", tiny.STATE_FILE)
    return {f"{name}/{key}": tensor for name in files for key, tensor in load_file(newest / name).items()}


def test_training_on_clips_first_and_demonstrations_later_resumes_to_the_bit(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    whole = train(stages(), folders, Run(out=tmp_path / "whole", cache=tmp_path / "cache"))
    for stop in (("general", 3), ("align", 4)):

        def progress(what: str, done: int, total: int, stop: tuple[str, int] = stop) -> None:
            if (what, done) == (f"train {stop[0]}", stop[1]):
                raise StoppedError

        where = Run(out=tmp_path / "cut", cache=tmp_path / "cache", progress=progress, resume=True)
        with pytest.raises(StoppedError):
            train(stages(), folders, where)
    cut = train(stages(), folders, Run(out=tmp_path / "cut", cache=tmp_path / "cache", resume=True))
    for name in ("1-general", "2-align"):
        one, other = (kept(folder.parent / name) for folder in (whole, cut))
        assert set(one) == set(other)
        assert all(torch.equal(one[key], other[key]) for key in one)
    general = read_metrics(tmp_path / "cut" / "1-general" / "metrics.jsonl")
    assert "loss_action" not in general[0]
    steps = kept(tmp_path / "cut" / "1-general")
    assert float(steps[f"{tiny.STATE_FILE}/step/action_encoder.last.weight"]) == 0
    assert Policy.load(cut).act(tiny.observation()).actions.shape == (tiny.HORIZON, 3)
    assert load(cut).future.scale is not None


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["actwam", *words])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    return int(exit_.value.code or 0)


def test_a_folder_of_clips_is_trained_on_from_the_command_line(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("actwam.recipes.metaworld.video_first", stages, raising=False)
    words = ["train", "metaworld.video_first", "--out", str(tmp_path / "run"), "--data"]
    words += [str(word) for name in ("clips", "demos", "fast") for word in (name, folders[name])]
    assert run(words, monkeypatch) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "run" / "2-align")


def test_check_counts_clips(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["check", str(folders["clips"]), "--fps", "10", "--action-horizon", "16", "--json"]
    assert run(words, monkeypatch) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["episodes"], said["frames"], said["seconds"]) == (2, 68, pytest.approx(3.3))
    assert said["problems"][0]["what"] == "15 rows at 10 fps are fewer than the 16 of one window"


def test_batches_are_the_same_every_time(folders: dict[str, Path], tmp_path: Path) -> None:
    first, again = (mixed_batch(folders, tmp_path / str(i), "one")[1] for i in range(2))
    tensors = [name for name, value in vars(first).items() if isinstance(value, Tensor)]
    assert all(torch.equal(getattr(first, name), getattr(again, name)) for name in tensors)
