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
from torch.distributed.checkpoint.staging import BlockingAsyncStager

from actwam import memory
from actwam.checkpoint import Checkpoint, save
from actwam.memory import Encoding, Ledger, Need, Tokens, acting_need, available, device_of, encoding, require, size_of
from actwam.model.codec import read_codec
from actwam.model.context import Instructions
from actwam.model.files import read_json, read_tensors
from actwam.model.transformer import GroupInput, WorldActionTransformer
from actwam.model.wan import WanCodec
from actwam.objective import NoisyBatch, add_noise
from actwam.tokens import ACTION_CENTERED, JOINT
from actwam.train.adapt import adapt, published
from actwam.train.config import Lora, SourceConfig, StageConfig
from actwam.train.loop import Run, train
from actwam.train.memory import latent_grid, training_need
from actwam.train.parallel import ALONE
from actwam.train.state import TrainState
from actwam.train.step import Lesson, forward_losses
from actwam.types import Batch, Group, Mode

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CONFIG = tiny.config("two", layers=3, head_width=64, heads=2)
TOKENS = Tokens(grid=(2, 4), future_frames=2, actions=tiny.HORIZON)
VAE = Path(__file__).parent / "fixtures" / "gwp0" / "vae"
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


def noisy(stage: StageConfig, moments: int = 0) -> NoisyBatch:
    """A batch whose second sample has no future, and whose first has no past."""
    B = stage.batch_size
    valid = torch.ones(B, 2, dtype=torch.bool)
    valid[1] = stage.sources[0].mode is Mode.VIDEO
    batch = Batch(
        modes=(stage.sources[0].mode,) * B,
        history=torch.zeros(B, tiny.CHANNELS, moments, 2, 4),
        history_valid=torch.ones(B, moments, dtype=torch.bool),
        state_valid=torch.ones(B, dtype=torch.bool),
        future_valid=valid,
        latents=tiny.noise_of(0, B, tiny.CHANNELS, 3, 2, 4),
        state=tiny.noise_of(1, B, 3),
        action=tiny.noise_of(2, B, tiny.HORIZON, 3),
        action_valid=torch.ones(B, tiny.HORIZON, 3, dtype=torch.bool),
        instructions=("lift it",) * B,
        embodiment=tiny.embodiments(B),
    )
    made = add_noise(batch, stage.objective, tiny.draws(0, batch)).without_absent()
    values = {group: value.contiguous() for group, value in made.values.items()}
    present = {Group.FUTURE: batch.future_valid.any(1)}
    if moments:
        present[Group.HISTORY] = torch.arange(B)[:, None].expand(B, moments).contiguous() > 0
    targets = {group: target for group, target in made.targets.items() if group in made.weighs}
    weighs = {group: weighs.expand_as(targets[group]).contiguous() for group, weighs in made.weighs.items()}
    return replace(made, values=values, present=present, targets=targets, weighs=weighs)


@pytest.mark.parametrize(("case", "moments"), [*((case, 0) for case in CASES), ("plain", 2), ("video", 2)])
def test_the_count_is_that_of_a_real_step(case: str, moments: int) -> None:
    stage = tiny.stage(**CASES[case])
    counted = need(tokens=replace(TOKENS, history=moments), **CASES[case])
    model = WorldActionTransformer(CONFIG)
    adapt(model, stage, CPU)
    state = TrainState.start(model, stage)
    batch, B = noisy(stage, moments), stage.batch_size
    text, rows, robots = tiny.TEXT.encode(["lift it"] * B), torch.arange(B), torch.zeros(B, dtype=torch.long)
    parameters = list(model.parameters())
    given = [*parameters, *(x for _, part in batch.tensors() for x in part.values()), text, rows, robots]
    autocast = None if stage.precision == "fp32" else torch.bfloat16
    with Ledger(given) as ledger:
        lesson = Lesson(batch, Instructions(text, rows), robots)
        loss = forward_losses(stage, model, ACTION_CENTERED, lesson, autocast)["loss"]
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
        forward_losses(stage, model, ACTION_CENTERED, Lesson(batch, Instructions(text, first), first), torch.bfloat16)
    casts = size_of(model.blocks.parameters()) // 2
    assert (ledger.most > casts) == (not recompute)


def test_counting_leaves_no_fake_behind() -> None:
    """Masks and angles that the model keeps between calls are made while counting, and must be real."""
    odd = Tokens(grid=(3, 5), future_frames=3, actions=7)
    need(tokens=odd)
    model = WorldActionTransformer(CONFIG)
    shapes = odd.shapes(CONFIG, 1)
    items = [GroupInput(group, torch.zeros(shape), torch.zeros(1, 1)) for group, shape in shapes.items()]
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
    assert {path.name for path in tmp_path.iterdir()} == {"squares", "cache"}
    assert not list((tmp_path / "cache").rglob("latents*"))


def test_acting_needs_the_weights_and_little_else() -> None:
    made = Encoding(grid=TOKENS.grid, time_stride=1, weights=1000, activations=10**9)
    low = acting_need(
        CONFIG, ACTION_CENTERED, TOKENS, dtype=torch.bfloat16, device=CUDA, codec=made, sampling=tiny.SAMPLING
    )
    full = acting_need(CONFIG, ACTION_CENTERED, TOKENS, dtype=torch.float32, device=CPU, sampling=tiny.SAMPLING)
    many = acting_need(
        CONFIG, ACTION_CENTERED, TOKENS, dtype=torch.float32, device=CPU, sampling=tiny.SAMPLING, batch=4
    )
    joint = acting_need(CONFIG, JOINT, TOKENS, dtype=torch.float32, device=CPU, sampling=tiny.SAMPLING)
    assert full.weights == 2 * low.weights == size_of(WorldActionTransformer(CONFIG).parameters())
    assert many.activations > 3 * full.activations
    assert joint.activations > full.activations  # the future is denoised too
    assert low.parts().keys() == {"weights", "activations", "codec", "reserve"}
    assert low.activations < low.at_once == made.activations  # one after the other
    assert low.codec == made.weights
    assert full.optimizer == full.gradients == full.average == 0


@pytest.mark.parametrize("batch", [1, 3])
def test_instructions_are_counted_as_what_keeps_them(batch: int) -> None:
    """Keys and values, and not the keys before their norm."""
    kept = acting_need(
        CONFIG,
        ACTION_CENTERED,
        TOKENS,
        dtype=torch.float32,
        device=CPU,
        sampling=tiny.SAMPLING,
        batch=batch,
        instructions=5,
    )
    model = WorldActionTransformer(CONFIG)
    with torch.inference_mode(), Ledger(model.parameters()) as ledger:
        texts = [model.text_context(tiny.TEXT.encode([word])) for word in "abcde"]
    pairs = [tensor for text in texts for layer in text.layers for pair in layer for tensor in pair]
    assert kept.instructions == size_of(pairs) == ledger.alive
    assert kept.parts()["instructions"] == kept.instructions


@pytest.mark.parametrize("kind", ["patch_pca", "wan"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_encoding_is_counted_without_reading_the_codec(kind: str, dtype: torch.dtype | None) -> None:
    """As a real codec encodes a real picture, the weights that it folds at construction included."""
    if kind == "wan":
        config = {"kind": kind, "config": read_json(VAE / "config.json")}
        tensors = read_tensors(VAE)
    else:
        config, tensors = tiny.codec().to_json(), tiny.codec().tensors()
    height, width = tiny.LAYOUT.height, tiny.LAYOUT.width
    counted = encoding(config, tensors, height, width, dtype)
    if dtype and kind == "wan":
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    picture = torch.zeros(1, 1, height, width, 3, dtype=torch.uint8)
    with Ledger([*tensors.values(), picture]) as ledger:
        codec = read_codec(config, tensors)
        made = ledger.most = ledger.alive
        latents = codec.encode(picture)
    assert counted.grid == latents.shape[3:]
    assert counted.time_stride == codec.time_stride
    assert counted.weights == pytest.approx(size_of(tensors.values()) + made, rel=0.001)
    assert counted.activations == pytest.approx(ledger.most - made, rel=0.001)
    with pytest.raises(ValueError, match=r"this codec reads .*pictures"):
        encoding(config, tensors, height + 1, width)


CHECKPOINTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no average": {"ema_decay": None},
    "mixed": {"freeze": VISUAL, "frozen_weights": "bf16", "precision": "bf16"},
    "8 bits": BF16,
    "lora": LORA,
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_writing_a_checkpoint_is_counted(case: str) -> None:
    """What is copied and made while training goes on, and a file that is being written."""
    stage = tiny.stage(**CHECKPOINTS[case])
    made: Checkpoint = tiny.checkpoint(model=WorldActionTransformer(CONFIG))
    adapt(made.model, stage, CPU)
    state = TrainState.start(made.model, stage)
    kept = state.tensors()
    with Ledger([*made.model.parameters(), *state.average.values(), *kept.values()]) as ledger:
        weights = ALONE.gathered(state.weights())
        merged = published(made.model, weights)
        copied = BlockingAsyncStager().stage(kept)
        alive = ledger.alive
    cpu, cuda = (need(device, **CHECKPOINTS[case]) for device in (CPU, CUDA))
    assert cpu.checkpoint == ledger.most + size_of(copied.values())
    assert cuda.host == cpu.checkpoint
    assert cpu.host == cuda.checkpoint == 0
    assert alive >= size_of(merged.values()) + size_of(copied.values())


def test_the_host_must_hold_a_checkpoint_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Need(weights=24_000_000_000, host=72_000_000_000)
    assert made.total == 24_000_000_000
    assert made.table().splitlines()[-1] == "  on the host: 72.000 GB, while a checkpoint is written"
    room = {"cuda": 80_000_000_000, "cpu": 64_000_000_000}
    monkeypatch.setattr(memory, "available", lambda device: room[device.type])
    with pytest.raises(ValueError, match=r"a checkpoint needs 72\.0 GB of memory on the host, which has 64\.0 GB"):
        require(made, CUDA)
    room["cpu"] = 72_000_000_000
    require(made, CUDA)


def test_a_checkpoint_is_written_beside_a_step() -> None:
    step = Need(weights=10, gradients=2, activations=3, at_once=4, checkpoint=3)
    assert step.parts() == {"weights": 10, "gradients and activations": 4, "writing a checkpoint": 3}
    assert step.total == 17


def test_devices_are_those_that_a_model_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_of("cpu") == CPU
    for name in ("mps", "gpu", "", "cpu:0", "cuda:", "cuda:01", "cuda:999", "CUDA"):
        for here in (True, False):
            with pytest.raises(ValueError, match="is unknown: name cpu, cuda, or cuda:1 for the second GPU"):
                device_of(name, here=here)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert device_of("cuda:0") == torch.device("cuda:0")
    with pytest.raises(ValueError, match=r"device cuda:1 is not here: .* finds 1 CUDA devices"):
        device_of("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=r"device cuda is not here"):
        device_of("cuda")
    assert device_of("cuda", here=False) == CUDA


def test_the_latent_grid_is_known_without_reading_weights(tmp_path: Path) -> None:
    assert latent_grid(tiny.recipe()) == ((2, 4), 1)
    save(tiny.checkpoint(), tmp_path / "start")
    fitted = tiny.recipe(start=tmp_path / "start", codec=None, text=None)
    assert latent_grid(fitted) == ((2, 4), 1)
    save(tiny.checkpoint(codec=WanCodec.load(VAE)), tmp_path / "wan")
    assert latent_grid(replace(fitted, start=tmp_path / "wan")) == ((1, 2), 4)


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
