"""The training loop on a tiny system: it learns, it resumes bit for bit, and it stops where it should."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor

from actwam.checkpoint import Checkpoint, checkpoints, load
from actwam.data.dataset import LeRobotDataset
from actwam.data.latents import Latents
from actwam.data.loader import Mixture, Source, Window
from actwam.draws import Draws
from actwam.model.transformer import GroupInput
from actwam.objective import add_noise, losses
from actwam.policy import Policy
from actwam.tokens import ACTION_ONLY, JOINT
from actwam.train import loop
from actwam.train.config import Recipe, SourceConfig, StageConfig
from actwam.train.loop import Run, resolve_precision, train
from actwam.train.metrics import read_metrics
from actwam.train.state import TrainState
from actwam.train.step import train_step
from actwam.types import Batch, Mode


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_dataset(tmp_path_factory.mktemp("data") / "squares", tiny.robot())


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def start(data: Path, cache: Path, tmp_path: Path) -> Callable[..., Path]:
    """`start(recipe, out, ...)` trains a recipe on the squares."""

    def run(recipe: Recipe, out: str = "run", *, resume: bool = False, only: str | None = None) -> Path:
        where = Run(out=tmp_path / out, cache=cache, resume=resume)
        return train(recipe, {"squares": data}, where, only=only)

    return run


def kept(folder: Path) -> dict[str, Tensor]:
    """All tensors of the newest checkpoint in a stage's folder."""
    newest = checkpoints(folder)[-1]
    files = ("model.safetensors", "codec.safetensors", tiny.STATE_FILE)
    return {f"{name}/{key}": tensor for name in files for key, tensor in load_file(newest / name).items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


PASSING = {"samples_per_second", "data_wait_share", "memory_gb"}
"""What differs from run to run."""


class StoppedError(Exception):
    """What a test raises to end a run in its middle, as a signal would."""


def stop_after(step: int) -> Callable[[str, int, int], None]:
    def progress(what: str, done: int, total: int) -> None:
        if what.startswith("train") and done == step:
            raise StoppedError

    return progress


def test_the_loss_falls_and_the_policy_acts(start: Callable[..., Path]) -> None:
    stage = tiny.stage(steps=60, batch_size=16, learning_rate=1e-2, ema_decay=0.9, checkpoint_every=60)
    folder = start(tiny.recipe(stage))
    rows = read_metrics(folder / "metrics.jsonl")
    for name, share in (("loss", 0.6), ("loss_action", 0.6), ("loss_future", 0.93)):
        first, last = (np.mean([row[name] for row in part]) for part in (rows[:5], rows[-10:]))
        assert last < share * first, (name, first, last)
    policy = Policy.load(folder)
    assert policy.checkpoint.trained["step"] == 60
    assert policy.act(tiny.observation()).actions.shape == (tiny.HORIZON, 3)


@pytest.mark.parametrize("modes", [(Mode.POLICY,), (Mode.VIDEO, Mode.POLICY, Mode.WORLD)], ids=["policy", "mixed"])
def test_a_stopped_run_continues_bit_for_bit(
    start: Callable[..., Path], data: Path, cache: Path, tmp_path: Path, modes: tuple[Mode, ...]
) -> None:
    """With two samples a batch, some batches have no action: its moments lag behind those of the rest."""
    sources = tuple(SourceConfig(dataset="squares", mode=mode) for mode in modes)
    recipe = tiny.recipe(tiny.stage(sources=sources, steps=9, batch_size=2, checkpoint_every=3))
    whole = start(recipe, "whole")
    with pytest.raises(StoppedError):
        train(recipe, {"squares": data}, Run(out=tmp_path / "cut", cache=cache, progress=stop_after(5)))
    cut = tmp_path / "cut" / whole.name
    assert [path.name for path in checkpoints(cut)] == ["step_00000003"]
    assert start(recipe, "cut", resume=True) == cut
    assert same(kept(whole), kept(cut))
    rows = [read_metrics(folder / "metrics.jsonl") for folder in (whole, cut)]
    assert [row["step"] for row in rows[1]] == list(range(9))
    for a, b in zip(*rows, strict=True):
        assert {name: a[name] for name in a if name not in PASSING} == {n: b[n] for n in b if n not in PASSING}


def test_optimizer_steps_are_counted_for_every_parameter(start: Callable[..., Path]) -> None:
    """Otherwise the test above could not fail: a batch without actions does not touch the action decoder."""
    sources = tuple(SourceConfig(dataset="squares", mode=mode) for mode in (Mode.VIDEO, Mode.POLICY))
    folder = start(tiny.recipe(tiny.stage(sources=sources, steps=9, batch_size=2)))
    state = load_file(checkpoints(folder)[-1] / tiny.STATE_FILE)
    assert float(state["step/patch_head.weight"]) == 9
    assert 0 < float(state["step/action_decoder.first.weight"]) < 9


@pytest.mark.parametrize("device", ["mps", "cuda:98"])
def test_an_unknown_device_is_refused_before_anything_is_made(device: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"device '?{device}'? is (unknown|not here)"):
        train(tiny.recipe(), {}, Run(out=tmp_path / "run", cache=tmp_path / "cache", device=device))
    assert not list(tmp_path.iterdir())


def test_training_again_gives_the_same_weights(start: Callable[..., Path]) -> None:
    assert same(kept(start(tiny.recipe(), "a")), kept(start(tiny.recipe(), "b")))
    other = tiny.recipe(tiny.stage(seed=1))
    assert not same(kept(start(other, "c")), kept(start(tiny.recipe(), "d")))


def test_a_folder_with_a_run_is_not_touched_without_resume(start: Callable[..., Path]) -> None:
    folder = start(tiny.recipe())
    before = kept(folder)
    with pytest.raises(ValueError, match="holds checkpoints already; resume with --resume"):
        start(tiny.recipe())
    assert same(before, kept(folder))


def test_resuming_a_finished_run_trains_nothing(start: Callable[..., Path]) -> None:
    folder = start(tiny.recipe())
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert start(tiny.recipe(), resume=True) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_the_newest_checkpoints_are_kept(start: Callable[..., Path]) -> None:
    folder = start(tiny.recipe(tiny.stage(steps=9, checkpoint_every=2)))
    assert sorted(path.name for path in folder.iterdir()) == [
        "latest",
        "metrics.jsonl",
        "step_00000008",
        "step_00000009",
    ]
    assert load(folder).trained["step"] == 9
    assert load(folder).trained["stage"] == "align"


def test_metrics_are_logged_at_the_interval_and_at_the_end(start: Callable[..., Path]) -> None:
    folder = start(tiny.recipe(tiny.stage(steps=8, log_every=3)))
    rows = read_metrics(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2, 5, 7]
    names = {"step", "loss", "loss_action", "loss_future", "grad_norm", "learning_rate", "batch_size", *PASSING}
    assert all(set(row) == names for row in rows)


def stages() -> tuple[StageConfig, ...]:
    video = (SourceConfig(dataset="squares", mode=Mode.VIDEO),)
    return (tiny.stage("world", sources=video), tiny.stage("align", learning_rate=1e-4))


def test_a_stage_starts_from_the_one_before(start: Callable[..., Path], tmp_path: Path) -> None:
    last = start(tiny.recipe(*stages()))
    assert last == tmp_path / "run" / "2-align"
    first = load(tmp_path / "run" / "1-world")
    assert first.trained["stage"] == "world"
    after = load(last).model.state_dict()
    distance = sum(float((after[n] - t).square().sum()) for n, t in first.model.state_dict().items())
    fresh = start(tiny.recipe(stages()[1]), "fresh")
    apart = load(fresh).model.state_dict()
    assert 0 < distance < 0.1 * sum(float((apart[n] - t).square().sum()) for n, t in first.model.state_dict().items())


def test_video_alone_does_not_touch_the_action_side(start: Callable[..., Path], tmp_path: Path) -> None:
    start(tiny.recipe(*stages()), only="world")
    assert not (tmp_path / "run" / "2-align").exists()
    state = load_file(checkpoints(tmp_path / "run" / "1-world")[-1] / tiny.STATE_FILE)
    assert float(state["step/action_encoder.last.weight"]) == 0
    assert float(state["step/patch_head.weight"]) == 4


def test_only_one_stage_is_trained(start: Callable[..., Path], tmp_path: Path) -> None:
    recipe = tiny.recipe(*stages())
    with pytest.raises(
        ValueError, match=r"stage align starts from .*1-world, which is not finished: train world first"
    ):
        start(recipe, only="align")
    with pytest.raises(ValueError, match="recipe tiny has no stage 'later'; it has world, align"):
        start(recipe, only="later")
    start(recipe, only="world")
    assert start(recipe, only="align") == tmp_path / "run" / "2-align"
    whole = start(recipe, "whole")
    assert same(kept(whole), kept(tmp_path / "run" / "2-align"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": tiny.config(embodiments=1, layers=1)}, "model"),
        ({"table": JOINT}, "table"),
        ({"window": Window(action_horizon=3, future_offsets=tiny.OFFSETS)}, "window"),
        (
            {"robots": (tiny.robot(), replace(tiny.robot(), name="other")), "layouts": (tiny.LAYOUT,) * 2},
            "robots, view layouts",
        ),
    ],
)
def test_a_run_is_not_continued_with_another_recipe(
    start: Callable[..., Path], changes: dict[str, object], message: str
) -> None:
    start(tiny.recipe(tiny.stage(steps=2)))
    with pytest.raises(ValueError, match=f"step_00000002: has not the {message} of recipe tiny"):
        start(replace(tiny.recipe(tiny.stage(steps=4)), **changes), resume=True)


@pytest.mark.parametrize("experts", ["one", "two"])
def test_bfloat16_and_two_experts_run(start: Callable[..., Path], experts: str) -> None:
    recipe = tiny.recipe(tiny.stage(precision="bf16"), model=tiny.config(experts, embodiments=1))
    folder = start(recipe)
    assert load(folder).trained["precision"] == "bf16"
    assert all(tensor.dtype == torch.float32 for tensor in load(folder).model.state_dict().values())
    exact = start(replace(recipe, stages=(tiny.stage(),)), "exact")
    a, b = (read_metrics(path / "metrics.jsonl")[-1]["loss"] for path in (folder, exact))
    assert a == pytest.approx(b, rel=0.05)
    assert a != b


def test_a_family_without_future_trains(start: Callable[..., Path]) -> None:
    window = Window(action_horizon=tiny.HORIZON, future_offsets=())
    folder = start(tiny.recipe(table=ACTION_ONLY, window=window))
    assert "loss_future" not in read_metrics(folder / "metrics.jsonl")[0]
    assert Policy.load(folder).act(tiny.observation()).actions.shape == (tiny.HORIZON, 3)


def test_auto_precision_is_one_of_two_and_a_choice_is_kept() -> None:
    cpu = torch.device("cpu")
    auto = tiny.stage(precision="auto")
    assert resolve_precision(auto, cpu) in ("fp32", "bf16")
    assert resolve_precision(tiny.stage(precision="fp32"), cpu) == "fp32"
    assert resolve_precision(auto, torch.device("cuda")) == "bf16"
    assert resolve_precision(replace(auto, weights="bf16", optimizer="adamw8bit", ema_decay=None), cpu) == "bf16"


def one_batch(data: Path, checkpoint: Checkpoint) -> Batch:
    dataset = LeRobotDataset.open(data)
    array = np.random.default_rng(0).normal(size=(len(dataset.state), 1, tiny.CHANNELS, 2, 4)).astype(np.float16)
    latents = Latents(data, [array])
    return Mixture([Source(dataset, latents, checkpoint.robots[0], checkpoint.window, Mode.POLICY)], 4, 0).batch(0)


@pytest.mark.parametrize("field", ["latents", "action"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_numbers_that_are_not_finite_stop_the_run_before_the_weights_change(
    data: Path, field: str, value: float
) -> None:
    checkpoint = tiny.checkpoint()
    batch = one_batch(data, checkpoint)
    bad = getattr(batch, field).clone()
    bad.flatten()[0] = value
    state, stage = TrainState.start(checkpoint.model, tiny.stage()), tiny.stage()
    train_step(stage, checkpoint, state, [tiny.part(batch)], 0, "fp32")
    weights, average = tiny.weights_of(checkpoint.model), {n: t.clone() for n, t in state.average.items()}
    with pytest.raises(ValueError, match=r"stage align: loss (nan|inf) .*at step 17 \(seed 0\)") as caught:
        train_step(stage, checkpoint, state, [tiny.part(replace(batch, **{field: bad}))], 17, "fp32")
    assert "\n" not in str(caught.value)
    assert same(tiny.weights_of(checkpoint.model), weights)
    assert same(state.average, average)


def test_a_loss_that_explodes_leaves_the_last_checkpoint(
    start: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = Mixture.batch

    def poisoned(self: Mixture, step: int, rows: Collection[int] | None = None) -> Batch:
        batch = real(self, step, rows)
        return replace(batch, latents=batch.latents * torch.nan) if step == 3 else batch

    monkeypatch.setattr(loop.Mixture, "batch", poisoned)
    with pytest.raises(ValueError, match="at step 3"):
        start(tiny.recipe(tiny.stage(steps=6, checkpoint_every=2)))
    folder = tmp_path / "run" / "1-align"
    assert load(folder).trained["step"] == 2
    monkeypatch.undo()
    start(tiny.recipe(tiny.stage(steps=6, checkpoint_every=2)), resume=True)
    assert same(kept(folder), kept(start(tiny.recipe(tiny.stage(steps=6, checkpoint_every=2)), "whole")))


def test_gradients_are_clipped(data: Path) -> None:
    checkpoint = tiny.checkpoint()
    batch = one_batch(data, checkpoint)
    state = TrainState.start(checkpoint.model, tiny.stage())
    norms: list[float] = []
    step = state.optimizer.step

    def spied() -> None:
        grads = [p.grad for p in checkpoint.model.parameters() if p.grad is not None]
        norms.append(float(torch.stack([grad.norm() for grad in grads]).norm()))
        step()

    state.optimizer.step = spied  # type: ignore[method-assign]
    metrics = train_step(tiny.stage(grad_clip=0.01), checkpoint, state, [tiny.part(batch)], 0, "fp32")
    assert norms[0] == pytest.approx(0.01, rel=1e-3)
    assert float(metrics["grad_norm"]) > 0.1  # what is logged is the norm before


def test_two_steps_are_adamw_on_the_clipped_gradient_of_the_loss(data: Path) -> None:
    """Slow twin, written out for one matrix, which decays, and one bias, which does not."""
    stage = tiny.stage(grad_clip=0.5, weight_decay=0.1, betas=(0.8, 0.9), warmup_steps=4)
    checkpoint = tiny.checkpoint()
    model, state = checkpoint.model, TrainState.start(checkpoint.model, stage)
    batch = one_batch(data, checkpoint)
    own = dict(model.named_parameters())
    names = {"patch_head.weight": 0.1, "action_encoder.middle.bias": 0.0}
    expected = {name: (own[name].detach().clone(), 0.0, 0.0) for name in names}
    for step in (0, 1):
        noisy = add_noise(batch, stage.objective, Draws((stage.seed, step), range(len(batch.modes)))).without_absent()
        inputs = [GroupInput(group, value, noisy.sigmas[group][:, None]) for group, value in noisy.values.items()]
        text = model.text_context(checkpoint.text.encode(batch.instructions))
        loss = losses(model(inputs, text, batch.embodiment, checkpoint.table), noisy, stage.objective)["loss"]
        grads = dict(zip(own, torch.autograd.grad(loss, list(own.values()), allow_unused=True), strict=True))
        norm = torch.stack([grad.norm() for grad in grads.values() if grad is not None]).norm()
        rate = stage.learning_rate * (step + 1) / 4
        for name, decay in names.items():
            weight, first, second = expected[name]
            grad = grads[name] * min(1.0, float(0.5 / norm))
            first, second = 0.8 * first + 0.2 * grad, 0.9 * second + 0.1 * grad**2
            m, v = first / (1 - 0.8 ** (step + 1)), second / (1 - 0.9 ** (step + 1))
            expected[name] = (weight * (1 - rate * decay) - rate * m / (v.sqrt() + 1e-8), first, second)
        metrics = train_step(stage, checkpoint, state, [tiny.part(batch)], step, "fp32")
        assert float(metrics["loss"]) == pytest.approx(float(loss.detach()), rel=1e-5)
        assert float(metrics["grad_norm"]) == pytest.approx(float(norm), rel=1e-4)
    for name, (weight, _, _) in expected.items():
        assert torch.allclose(own[name], weight, atol=1e-6), name


def test_progress_is_reported(data: Path, cache: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    where = Run(out=tmp_path / "run", cache=cache, progress=lambda *what: seen.append(what))
    train(tiny.recipe(), {"squares": data}, where)
    assert [done for what, done, _ in seen if what == "train align"] == [1, 2, 3, 4]
    assert all(0 < done <= total for _, done, total in seen)
