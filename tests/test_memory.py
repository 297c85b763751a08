"""What is counted before anything is allocated is what is allocated then."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from actwam import memory
from actwam.checkpoint import save
from actwam.memory import Ledger, Need, Tokens, acting_need, available, require, size_of
from actwam.model.transformer import WorldActionTransformer
from actwam.objective import NoisyBatch, add_noise
from actwam.tokens import ACTION_CENTERED, JOINT
from actwam.train.adapt import adapt
from actwam.train.config import Lora, SourceConfig, StageConfig
from actwam.train.loop import Run, train
from actwam.train.memory import latent_grid, training_need
from actwam.train.state import TrainState
from actwam.train.step import forward_losses
from actwam.types import Batch, Group, Mode

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CONFIG = tiny.config("two", layers=3, head_width=64, heads=2)
TOKENS = Tokens(grid=(2, 4), future_frames=2, actions=tiny.HORIZON)
VISUAL = (Group.HISTORY, Group.OBSERVATION, Group.FUTURE)
BF16: dict[str, Any] = {"weights": "bf16", "optimizer": "adamw8bit", "ema_decay": None, "precision": "bf16"}
LORA: dict[str, Any] = {"lora": Lora(rank=2, alpha=2.0), "precision": "bf16", "frozen_weights": "bf16"}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "bf16": {"precision": "bf16"},
    "recomputed": {"recompute_activations": True},
    "recomputed in bf16": {"recompute_activations": True, "precision": "bf16"},
    "frozen": {"freeze": VISUAL},
    "8 bits": {**BF16},
    "lora": LORA,
    "video": {"sources": (SourceConfig(dataset="squares", mode=Mode.VIDEO),)},
}


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    with torch.compiler.set_stance("force_eager"):
        yield


def need(device: torch.device = CPU, tokens: Tokens = TOKENS, **changes: Any) -> Need:
    stage = tiny.stage(**changes)
    precision = "bf16" if stage.in_bf16 or stage.precision == "bf16" else "fp32"
    return training_need(CONFIG, stage, ACTION_CENTERED, tokens, device, precision)


def noisy(stage: StageConfig) -> NoisyBatch:
    """A batch whose second sample has no future."""
    B = stage.batch_size
    valid = torch.ones(B, 2, dtype=torch.bool)
    valid[1] = stage.sources[0].mode is Mode.VIDEO
    batch = Batch(
        modes=(stage.sources[0].mode,) * B,
        future_valid=valid,
        latents=tiny.noise_of(0, B, tiny.CHANNELS, 3, 2, 4),
        state=tiny.noise_of(1, B, 3),
        action=tiny.noise_of(2, B, tiny.HORIZON, 3),
        action_valid=torch.ones(B, tiny.HORIZON, 3, dtype=torch.bool),
        instructions=("lift it",) * B,
        embodiment=tiny.embodiments(B),
    )
    made = add_noise(batch, stage.objective, torch.Generator().manual_seed(0))
    values = {group: value.contiguous() for group, value in made.values.items()}
    present = dict.fromkeys([Group.FUTURE], batch.future_valid.any(1))
    targets = {group: target for group, target in made.targets.items() if group in made.weighs}
    weighs = {group: weighs.expand_as(targets[group]).contiguous() for group, weighs in made.weighs.items()}
    return replace(made, values=values, present=present, targets=targets, weighs=weighs)


@pytest.mark.parametrize("case", CASES)
def test_the_count_is_that_of_a_real_step(case: str) -> None:
    stage = tiny.stage(**CASES[case])
    counted = need(**CASES[case])
    model = WorldActionTransformer(CONFIG)
    adapt(model, stage, CPU)
    state = TrainState.start(model, stage)
    batch, B = noisy(stage), stage.batch_size
    text, rows, robots = tiny.TEXT.encode(["lift it"] * B), torch.arange(B), torch.zeros(B, dtype=torch.long)
    parameters = list(model.parameters())
    given = [*parameters, *(x for part in vars(batch).values() for x in part.values()), text, rows, robots]
    autocast = None if stage.precision == "fp32" else torch.bfloat16
    with Ledger(given) as ledger:
        loss = forward_losses(stage, model, ACTION_CENTERED, batch, text, rows, robots, autocast)["loss"]
        activations = ledger.alive
        loss.backward()
    assert counted.activations == pytest.approx(activations, rel=0.01)
    assert counted.weights == size_of(parameters)
    grads = size_of(p.grad for p in parameters if p.grad is not None)
    if case != "video":  # which has no gradient for the action side, and is counted as if it had
        assert counted.gradients == grads
        assert ledger.most == pytest.approx(counted.at_once, rel=0.02) or stage.optimizer == "adamw8bit"
    state.update(1e-3, 0)
    assert counted.optimizer == size_of(m for moments in state.optimizer.state.values() for m in moments.values())
    assert counted.average == size_of(state.average.values())


@pytest.mark.parametrize("recompute", [True, False])
def test_recomputing_keeps_no_casts_of_weights_either(recompute: bool) -> None:
    """Autocast would hold every weight once more in bf16 until the forward pass ends: in many layers, most of it."""
    stage = tiny.stage(recompute_activations=recompute, precision="bf16", batch_size=2)
    model, batch = WorldActionTransformer(replace(CONFIG, layers=12)), noisy(stage)
    text, first = tiny.TEXT.encode(["lift it"]), torch.zeros(2, dtype=torch.long)
    with Ledger(model.parameters()) as ledger:
        forward_losses(stage, model, ACTION_CENTERED, batch, text, first, first, torch.bfloat16)
    casts = size_of(model.blocks.parameters()) // 2
    print(ledger.most, casts)
    assert (ledger.most > casts) == (not recompute)


def test_counting_leaves_no_fake_behind() -> None:
    """Masks and angles that the model keeps between calls are made while counting, and must be real."""
    odd = Tokens(grid=(3, 5), future_frames=3, actions=7)
    need(tokens=odd)
    model = WorldActionTransformer(CONFIG)
    shapes = odd.shapes(CONFIG, 1)
    items = [memory.GroupInput(group, torch.zeros(shape), torch.zeros(1, 1)) for group, shape in shapes.items()]
    text = model.text_context(torch.zeros(1, tiny.TEXT.tokens, tiny.TEXT.width))
    out = model(items, text, torch.zeros(1, dtype=torch.long), ACTION_CENTERED)
    assert all(type(value) is torch.Tensor and value.isfinite().all() for value in out.values())


@pytest.mark.parametrize(
    ("changes", "lowered"),
    [
        ({"recompute_activations": True}, ["activations"]),
        ({"batch_size": 2}, ["activations"]),
        ({"freeze": VISUAL}, ["gradients", "optimizer", "average"]),
        ({"freeze": VISUAL, "frozen_weights": "bf16"}, ["weights"]),
        (LORA, ["gradients", "optimizer", "average", "weights"]),
        ({"optimizer": "adamw8bit"}, ["optimizer"]),
        (BF16, ["weights", "gradients", "optimizer", "average"]),
        ({"ema_decay": None}, ["average"]),
    ],
)
def test_each_option_lowers_what_it_is_for(changes: dict[str, Any], lowered: list[str]) -> None:
    before, after = (need(CUDA, **{"precision": "bf16", **each}) for each in ({}, changes))
    for part in lowered:
        assert getattr(after, part) < getattr(before, part), part
    assert after.total < before.total


def test_a_gpu_keeps_no_attention_weights() -> None:
    """On a CPU attention in bfloat16 is written out, and its weights are kept for every head; a GPU's fused kernel
    keeps the mask alone, as numbers.
    """
    long = Tokens(grid=(8, 8), future_frames=4, actions=32)
    cpu, cuda = (need(device, tokens=long, precision="bf16") for device in (CPU, CUDA))
    tokens, heads, layers, B = 64 * 5 + 33, 2, 3, 6
    assert cpu.activations - cuda.activations > tokens**2 * (heads - 1) * layers * B * 2
    assert cpu.weights == cuda.weights


def test_the_total_is_the_sum_of_the_parts_and_stands_in_the_table() -> None:
    made = Need(weights=3_000_000_000, gradients=2, activations=5, at_once=6_000_000_000, reserve=500_000_000)
    assert made.total == 9_500_000_000
    assert list(made.parts()) == ["gradients and activations", "weights", "reserve"]
    lines = made.table().splitlines()
    assert lines[-1].split() == ["total", "9.500", "GB"]
    assert len(lines) == 4
    assert json.loads(json.dumps(made.to_json()))["total"] == made.total


def test_what_does_not_fit_is_refused_with_its_parts_and_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Need(weights=24_000_000_000, optimizer=48_000_000_000, average=24_000_000_000, advice="try lora")
    monkeypatch.setattr(memory, "available", lambda device: 80_000_000_000)
    with pytest.raises(ValueError) as caught:
        require(made, CUDA)
    assert str(caught.value) == (
        "this needs 96.0 GB of memory, and cuda has 80.0 GB to give (most of it: optimizer 48.0, weights 24.0, "
        "moving average 24.0); try lora"
    )
    monkeypatch.setattr(memory, "available", lambda device: 96_000_000_000)
    require(made, CUDA)


def test_training_is_refused_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny.write_dataset(tmp_path / "squares", tiny.robot())
    monkeypatch.setattr(memory, "available", lambda device: 1000)
    said: list[str] = []
    where = Run(out=tmp_path / "run", cache=tmp_path / "cache", say=said.append)
    with pytest.raises(ValueError, match=r"this needs .* GB .*, and cpu has 0\.0 GB to give .*; try, in this order: "):
        train(tiny.recipe(), {"squares": data}, where)
    assert said[0].startswith("memory of stage align\n")
    assert "moving average" in said[0]
    assert {path.name for path in tmp_path.iterdir()} == {"squares"}


def test_acting_needs_the_weights_and_little_else() -> None:
    low = acting_need(CONFIG, ACTION_CENTERED, TOKENS, dtype=torch.bfloat16, device=CUDA, codec=1000, text=10)
    full = acting_need(CONFIG, ACTION_CENTERED, TOKENS, dtype=torch.float32, device=CPU)
    many = acting_need(CONFIG, ACTION_CENTERED, TOKENS, dtype=torch.float32, device=CPU, batch=4)
    joint = acting_need(CONFIG, JOINT, TOKENS, dtype=torch.float32, device=CPU)
    assert full.weights == 2 * low.weights == size_of(WorldActionTransformer(CONFIG).parameters())
    assert many.activations > 3 * full.activations
    assert joint.activations > full.activations  # the future is denoised too
    assert low.parts().keys() >= {"codec", "text encoder", "reserve"}
    assert full.optimizer == full.gradients == full.average == 0


def test_the_latent_grid_is_known_without_reading_weights(tmp_path: Path) -> None:
    assert latent_grid(tiny.recipe()) == ((2, 4), 1)
    save(tiny.checkpoint(), tmp_path / "start")
    fitted = tiny.recipe(start=tmp_path / "start", codec=None, text=None)
    assert latent_grid(fitted) == ((2, 4), 1)
    config = json.loads((tmp_path / "start" / "config.json").read_text())
    config["codec"] = {"kind": "wan", "config": {"scale_factor_spatial": 16, "scale_factor_temporal": 4}}
    (tmp_path / "start" / "config.json").write_text(json.dumps(config))
    assert latent_grid(fitted) == ((1, 2), 4)


def test_a_cpu_gives_what_the_machine_and_its_control_groups_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 0 < available(CPU) < 2**45
    monkeypatch.setattr(memory, "_control_groups", lambda: [10**9, 12345])
    assert available(CPU) == 12345


@pytest.mark.parametrize("version", [1, 2])
def test_the_limits_of_control_groups_are_read(tmp_path: Path, version: int) -> None:
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
    base = tmp_path / "mount" / ("memory" if version == 1 else "")
    for folder, limit, usage, cache in ((base, "5000", "1000", 0), (base / "job", "4000", "2500", 300)):
        folder.mkdir(parents=True)
        for name, value in zip(names, (limit, usage), strict=True):
            (folder / name).write_text(f"{value}\n")
        (folder / "memory.stat").write_text(f"{'total_' if version == 1 else ''}inactive_file {cache}\nanon 1\n")
    (base / "free").mkdir()
    (base / "free" / names[0]).write_text("max\n" if version == 2 else f"{2**63 - 4096}\n")
    (base / "free" / names[1]).write_text("7\n")
    (base / "free" / "memory.stat").write_text("anon 1\n")
    member = tmp_path / "cgroup"
    member.write_text("4:memory:/job\n0::/elsewhere\n" if version == 1 else "0::/job\n")
    assert sorted(memory._control_groups(member, tmp_path / "mount")) == [1800, 4000]
    member.write_text("4:memory:/free\n" if version == 1 else "0::/free\n")
    assert min(memory._control_groups(member, tmp_path / "mount")) == 4000
