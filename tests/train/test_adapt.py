"""Frozen experts, adapters, bf16 weights, 8-bit moments, recomputed activations: what each changes, and what not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor

from actwam.checkpoint import checkpoints, load, save
from actwam.model.config import one_expert, two_experts
from actwam.model.transformer import WorldActionTransformer
from actwam.objective import add_noise
from actwam.policy import Policy
from actwam.train.adapt import adapt, published
from actwam.train.config import Lora, Recipe, StageConfig
from actwam.train.loop import Run, train
from actwam.train.state import TrainState
from actwam.train.step import forward_losses, train_step
from actwam.types import Batch, Group, Mode

CPU = torch.device("cpu")
VISUAL = (Group.HISTORY, Group.OBSERVATION, Group.FUTURE)
ACTING = (Group.STATE, Group.ACTION)
LORA = Lora(rank=2, alpha=4.0)
BF16: dict[str, Any] = {"weights": "bf16", "optimizer": "adamw8bit", "ema_decay": None, "precision": "auto"}
# wide enough for moments in 8 bits: 64 x 64 = 4096 values
WIDE = two_experts((64, 64), (64, 64))


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    """torchao compiles its step, which takes longer than all that is tested here."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_dataset(tmp_path_factory.mktemp("data") / "squares", tiny.robot())


@pytest.fixture
def start(data: Path, tmp_path: Path) -> Callable[..., Path]:
    def run(stage: StageConfig, out: str, *, stop: int | None = None, source: Path | None = None) -> Path:
        def progress(what: str, done: int, total: int) -> None:
            if what.startswith("train") and done == stop:
                raise InterruptedError

        where = Run(out=tmp_path / out, cache=tmp_path / "cache", resume=True, progress=progress)
        return train(recipe(stage, start=source), {"squares": data}, where)

    return run


def recipe(*stages: StageConfig, **changes: Any) -> Recipe:
    return tiny.recipe(*stages, model=tiny.config(WIDE, embodiments=1, head_width=32), **changes)


def batch(B: int = 4) -> Batch:
    return Batch(
        modes=(Mode.POLICY,) * B,
        history=torch.zeros(B, tiny.CHANNELS, 0, 2, 4),
        history_valid=torch.ones(B, 0, dtype=torch.bool),
        state_valid=torch.ones(B, dtype=torch.bool),
        future_valid=torch.ones(B, 2, dtype=torch.bool),
        latents=tiny.noise_of(0, B, tiny.CHANNELS, 3, 2, 4),
        state=tiny.noise_of(1, B, 3),
        action=tiny.noise_of(2, B, tiny.HORIZON, 3),
        action_valid=torch.ones(B, tiny.HORIZON, 3, dtype=torch.bool),
        instructions=tiny.INSTRUCTIONS[:1] * B,
        embodiment=tiny.embodiments(B),
    )


def stepped(stage: StageConfig, steps: int = 2, experts: str = "two") -> tuple[dict[str, Tensor], TrainState]:
    """The weights before, and the state after some steps of a stage."""
    checkpoint = tiny.checkpoint(experts)
    before = tiny.weights_of(checkpoint.model)
    adapt(checkpoint.model, stage, CPU)
    state = TrainState.start(checkpoint.model, stage)
    for step in range(steps):
        train_step(stage, checkpoint, state, [tiny.part(batch())], step, "bf16" if stage.in_bf16 else "fp32")
    return before, state


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    assert set(before) == set(after)
    return {name for name in before if not torch.equal(before[name], after[name])}


def parts_of(index: int) -> tuple[str, ...]:
    return (f"experts.{index}.", *(f"blocks.{i}.experts.{index}." for i in range(2)))


@pytest.mark.parametrize("visual", [True, False], ids=["visual", "action"])
def test_a_frozen_expert_is_not_touched(visual: bool) -> None:
    before, state = stepped(tiny.stage(freeze=VISUAL if visual else ACTING))
    moved = changed(before, published(state.model, state.weights()))
    of_action = (*parts_of(0), "action_", "state_")
    of_visual = (*parts_of(1), "patch_")
    frozen, trained = (of_visual, of_action) if visual else (of_action, of_visual)
    assert {name for name in before if name.startswith(frozen)} == {
        name for name, p in state.model.named_parameters() if not p.requires_grad
    }
    assert moved
    assert all(name.startswith(trained) for name in moved)
    assert all(name.startswith(trained) for name in state.average)
    for parameter in (p for p in state.model.parameters() if not p.requires_grad):
        assert parameter.grad is None
        assert parameter not in state.optimizer.state
    written = {key.partition("/")[2] for key in state.tensors()}
    assert all(name.startswith(trained) for name in written)


@pytest.mark.parametrize(
    ("experts", "freeze", "message"),
    [
        (
            one_expert(24, 48),
            VISUAL,
            "freeze names .*, whose expert also serves state, action: freeze all of them or none",
        ),
        (tiny.EXPERTS["two"], (Group.FUTURE,), "whose expert also serves history, observation"),
        (tiny.EXPERTS["two"], tuple(Group), "nothing is left to train"),
        (one_expert(24, 48), tuple(Group), "nothing is left to train"),
    ],
)
def test_a_part_of_an_expert_or_everything_cannot_be_frozen(
    experts: Any, freeze: tuple[Group, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        adapt(tiny.model(experts), tiny.stage(freeze=freeze), CPU)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "bf16", "ema_decay": None}, "bf16 weights need optimizer adamw8bit"),
        ({**BF16, "ema_decay": 0.99}, "moving average of bf16 weights would stand still"),
        ({**BF16, "precision": "fp32"}, "precision must be bf16 or auto"),
        ({"frozen_weights": "bf16", "precision": "auto"}, "nothing is frozen: set freeze or lora"),
        ({"grad_clip": 0.0}, "grad_clip must be above 0, or None, not 0.0"),
        ({"ema_decay": 1.0}, "ema_decay must be from 0 to 1, or None, not 1.0"),
    ],
)
def test_options_that_contradict_each_other_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"stage align: .*{message}"):
        tiny.stage(**changes)


@pytest.mark.parametrize("values", [{"rank": 0, "alpha": 1.0}, {"rank": 4, "alpha": 0.0}])
def test_lora_without_a_rank_or_a_scale_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="LoRA needs a rank of at least 1 and an alpha above 0"):
        Lora(**values)


def gradients(recompute: bool, precision: torch.dtype | None) -> dict[str, Tensor]:
    stage, checkpoint = tiny.stage(recompute_activations=recompute), tiny.checkpoint("two")
    noisy = add_noise(batch(), stage.objective, tiny.draws(0, batch())).without_absent()
    model, lesson = checkpoint.model, tiny.lesson(noisy, batch())
    forward_losses(stage, model, checkpoint.table, lesson, precision)["loss"].backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_recomputed_activations_give_the_same_gradients() -> None:
    kept, recomputed = gradients(False, None), gradients(True, None)
    assert len(kept) == len(list(tiny.model("two").parameters()))
    assert not changed(kept, recomputed)
    kept, recomputed = gradients(False, torch.bfloat16), gradients(True, torch.bfloat16)
    for name, grad in kept.items():  # the noise embedding, which runs once a group, is summed in float32 then
        assert torch.allclose(grad, recomputed[name], rtol=0.05, atol=0.02 * float(grad.abs().max())), name


def test_what_recomputing_computes_again_is_what_runs_anyway() -> None:
    """Otherwise the test above could not fail: the blocks run twice, and once without."""
    for recompute in (True, False):
        model, calls = tiny.model(), []
        for block in model.blocks:
            block.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        items = list(tiny.inputs().values())
        out = model(items, tiny.text(model), tiny.embodiments(), tiny.ACTION_CENTERED, recompute_activations=recompute)
        out[Group.ACTION].sum().backward()
        assert len(calls) == (4 if recompute else 2)


def test_no_average_publishes_the_weights_and_writes_them_once() -> None:
    before, state = stepped(tiny.stage(ema_decay=None))
    assert state.average == {}
    after = published(state.model, state.weights())
    assert changed(before, after)
    assert not changed(after, dict(state.model.named_parameters()))
    assert not any(key.startswith("weight/") for key in state.tensors())


def test_no_clipping_leaves_gradients_alone_and_refuses_what_is_not_finite() -> None:
    _, clipped = stepped(tiny.stage(grad_clip=1e-3), steps=1)
    _, free = stepped(tiny.stage(grad_clip=None), steps=1)
    _, wide = stepped(tiny.stage(grad_clip=1e9), steps=1)
    assert not changed(free.tensors(), wide.tensors())
    assert changed(free.tensors(), clipped.tensors())
    checkpoint, stage = tiny.checkpoint(), tiny.stage(grad_clip=None)
    bad = replace(batch(), latents=batch().latents * torch.nan)
    before = tiny.weights_of(checkpoint.model)
    with pytest.raises(ValueError, match="the weights are unchanged"):
        train_step(stage, checkpoint, TrainState.start(checkpoint.model, stage), [tiny.part(bad)], 0, "fp32")
    assert not changed(before, tiny.weights_of(checkpoint.model))


def test_new_adapters_change_nothing_and_trained_ones_are_merged() -> None:
    stage = tiny.stage(lora=LORA, ema_decay=None)
    before, fresh = stepped(stage, steps=0)
    assert not changed(before, published(fresh.model, fresh.weights()))
    before, state = stepped(stage, steps=4)
    weights = published(state.model, state.weights())
    moved = changed(before, weights)
    kinds = {name.split(".", 4)[-1] for name in moved if name.startswith("blocks.")}
    layers = ("qkv", "out", "cross.q", "cross.kv", "cross.out", "ffn.0", "ffn.2")
    assert kinds == {f"{layer}.weight" for layer in layers}
    assert {name.partition(".")[0] for name in moved} == {"blocks", "action_encoder", "action_decoder", "state_encoder"}
    plain = WorldActionTransformer(tiny.config("two")).eval()
    plain.load_state_dict(weights)
    items, robots = list(tiny.inputs().values()), tiny.embodiments()
    with torch.no_grad():
        adapted = state.model.eval()(items, tiny.text(state.model), robots, tiny.ACTION_CENTERED)
        merged = plain(items, tiny.text(plain), robots, tiny.ACTION_CENTERED)
    for group, value in adapted.items():
        assert torch.allclose(value, merged[group], atol=1e-4), group


def test_merged_weights_are_the_weight_and_the_scaled_product_of_the_averages() -> None:
    before, state = stepped(tiny.stage(lora=LORA, ema_decay=0.5), steps=3)
    name = "blocks.1.experts.0.ffn.0"
    a, b = (state.average[f"{name}.lora_{side}.default.weight"] for side in "AB")
    expected = before[f"{name}.weight"] + 4.0 / 2 * b @ a
    assert torch.allclose(published(state.model, state.weights())[f"{name}.weight"], expected, atol=1e-6)
    assert b.any()


def test_adapters_stay_out_of_a_frozen_expert() -> None:
    _, state = stepped(tiny.stage(lora=LORA, freeze=VISUAL))
    trained = [name for name, p in state.model.named_parameters() if p.requires_grad]
    assert any(".lora_" in name for name in trained)
    assert all(name.startswith((*parts_of(0), "action_", "state_")) for name in trained)


CASES: dict[str, dict[str, Any]] = {
    "frozen": {"freeze": VISUAL},
    "frozen in bf16": {"freeze": VISUAL, "frozen_weights": "bf16", "precision": "auto"},
    "lora": {"lora": LORA},
    "lora in bf16": {"lora": LORA, "frozen_weights": "bf16", "precision": "auto"},
    "lora without average": {"lora": LORA, "ema_decay": None},
    "no average": {"ema_decay": None, "grad_clip": None},
    "8 bits": {"optimizer": "adamw8bit"},
    "bf16 in 8 bits": BF16,
    "everything": {**BF16, "lora": LORA, "frozen_weights": "bf16", "freeze": VISUAL, "recompute_activations": True},
}


def kept(folder: Path) -> dict[str, Tensor]:
    newest = checkpoints(folder)[-1]
    files = ("model.safetensors", tiny.STATE_FILE)
    return {f"{file}/{key}": tensor for file in files for key, tensor in load_file(newest / file).items()}


@pytest.mark.parametrize("case", CASES)
def test_a_stopped_run_continues_bit_for_bit(start: Callable[..., Path], case: str) -> None:
    """With rounding by chance too: its numbers belong to (seed, step)."""
    stage = tiny.stage(steps=5, checkpoint_every=2, batch_size=2, **CASES[case])
    whole = kept(start(stage, "whole"))
    with pytest.raises(InterruptedError):
        start(stage, "cut", stop=3)
    torch.manual_seed(99)  # a new process has its global generator elsewhere
    folder = start(stage, "cut")
    assert not changed(whole, kept(folder))
    assert Policy.load(folder).act(tiny.observation()).actions.shape == (tiny.HORIZON, 3)
    low = case == "bf16 in 8 bits"
    assert {p.dtype for p in load(folder).model.parameters()} == {torch.bfloat16 if low else torch.float32}


def test_moments_of_large_tensors_are_kept_in_8_bits(start: Callable[..., Path]) -> None:
    state = load_file(checkpoints(start(tiny.stage(**BF16), "run"))[-1] / tiny.STATE_FILE)
    name = "blocks.0.experts.1.ffn.0"
    assert state[f"exp_avg.codes/{name}.weight"].dtype == torch.uint8
    assert state[f"exp_avg.codes/{name}.weight"].shape == (64, 64)
    assert state[f"exp_avg_sq.scale/{name}.weight"].shape == (16,)
    assert state[f"exp_avg/{name}.bias"].dtype == torch.float32


def test_8_bit_moments_take_nearly_the_steps_of_adamw() -> None:
    """On a tensor that is quantised, a quadratic bowl is descended as far."""
    ends = {}
    for optimizer in ("adamw", "adamw8bit"):
        torch.manual_seed(0)
        model = torch.nn.Linear(64, 64)
        state = TrainState.start(model, tiny.stage(optimizer=optimizer, learning_rate=0.01, weight_decay=0.0))
        for step in range(20):
            (model.weight - 1).square().sum().backward()
            state.update(0.01, step)
        ends[optimizer] = model.weight.detach()
    assert float((ends["adamw"] - ends["adamw8bit"]).abs().mean()) < 0.01
    assert float((ends["adamw"] - 1).square().mean()) < 0.8


def test_small_updates_of_bf16_weights_add_up() -> None:
    """An update of a thousandth of a weight, which rounding to nearest drops, moves the mean as far as it should."""
    model = torch.nn.Linear(64, 64, bias=False).to(torch.bfloat16)
    torch.nn.init.ones_(model.weight)
    state = TrainState.start(model, tiny.stage(**{**BF16, "weight_decay": 0.0}))
    for step in range(20):
        model.weight.sum().backward()
        state.update(1e-3, step)
    assert float(model.weight.detach().float().mean()) == pytest.approx(1 - 20e-3, abs=2e-3)


def rounded(seed: int) -> Tensor:
    """Weights of 1 after one step that is too small for bf16, so that each is rounded up or down by chance."""
    model = torch.nn.Linear(64, 64, bias=False).to(torch.bfloat16)
    torch.nn.init.ones_(model.weight)
    state = TrainState.start(model, tiny.stage(**{**BF16, "weight_decay": 0.0}))
    model.weight.sum().backward()
    state.update(1e-3, seed)
    return model.weight.detach()


def test_the_seed_of_a_step_alone_decides_what_is_rounded_up() -> None:
    torch.manual_seed(0)
    first, other = rounded(3), rounded(4)
    torch.manual_seed(99)
    assert torch.equal(first, rounded(3))
    assert not torch.equal(first, other)
    assert 0 < int((first < 1).sum()) < first.numel()


def test_an_optimizer_step_leaves_the_global_generator_alone() -> None:
    model = torch.nn.Linear(64, 64).to(torch.bfloat16)
    state = TrainState.start(model, tiny.stage(**BF16))
    model.weight.sum().backward()
    before = torch.get_rng_state()
    state.update(1e-3, 0)
    assert torch.equal(before, torch.get_rng_state())


def test_a_start_in_bf16_is_trained_in_float32(start: Callable[..., Path], tmp_path: Path) -> None:
    made = tiny.checkpoint(robots=(tiny.transform(tiny.robot()),), model=tiny.model(WIDE, embodiments=1, head_width=32))
    save(replace(made, model=made.model.to(torch.bfloat16)), tmp_path / "start")
    folder = start(tiny.stage(freeze=VISUAL), "run", source=tmp_path / "start")
    before, after = load(tmp_path / "start").model.state_dict(), load(folder).model.state_dict()
    assert all(tensor.dtype == torch.float32 for tensor in after.values())
    frozen = [name for name in after if name.startswith((*parts_of(1), "patch_"))]
    assert all(torch.equal(after[name], before[name].float()) for name in frozen)


@pytest.mark.parametrize(("missing", "changes"), [("peft", {"lora": LORA}), ("torchao.optim", BF16)])
def test_a_missing_library_is_named(missing: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, missing, None)
    with pytest.raises(ValueError, match=r"needs (peft|torchao): pip install \"actwam\[(lora|lowbit)\]\""):
        stepped(tiny.stage(**changes))
