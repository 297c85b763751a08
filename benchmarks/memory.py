"""Memory of training: the estimate against what a process really takes, and estimates for the official models.

    python benchmarks/memory.py [OUT.json]

The first table trains a model of 130 million parameters for two steps on the CPU and makes the weights that a
checkpoint holds, each case in a process of its own, and compares the growth of its peak resident memory with
`training_need`. The second is estimates alone, for one GPU: GWP-0 and GWP-0.5 with one future latent frame of 24 x 20
and 48 actions. Figures are GB of 1e9 bytes. Some minutes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from actwam.draws import Draws
from actwam.memory import Need, Tokens
from actwam.model.config import TransformerConfig, two_experts
from actwam.model.context import Instructions
from actwam.model.transformer import WorldActionTransformer
from actwam.objective import add_noise
from actwam.provenance import provenance
from actwam.recipes import gwp
from actwam.tokens import ACTION_CENTERED
from actwam.train.adapt import adapt, published
from actwam.train.config import Lora, SourceConfig, StageConfig
from actwam.train.memory import training_need
from actwam.train.state import TrainState
from actwam.train.step import Lesson, forward_losses
from actwam.types import Batch, Group, Mode

TOKENS = Tokens(grid=(24, 20), future_frames=1, actions=48)
VISUAL = (Group.HISTORY, Group.OBSERVATION, Group.FUTURE)
CARDS = (24, 48, 80)

SMALL = TransformerConfig(
    layers=6,
    heads=12,
    head_width=64,
    experts=two_experts((1024, 4096), (512, 2048)),
    latent_channels=48,
    patch=(2, 2),
    text_width=512,
    text_tokens=64,
    state_width=32,
    action_width=32,
)
OFFICIAL = {"GWP-0": gwp.official_size(1), "GWP-0.5": gwp.official_size(2)}

STAGE = StageConfig(
    name="memory",
    sources=(SourceConfig(dataset="none", mode=Mode.POLICY),),
    steps=2,
    batch_size=4,
    learning_rate=1e-4,
    final_learning_rate=1e-4,
    warmup_steps=0,
    precision="fp32",
)
RECOMPUTE: dict[str, Any] = {"recompute_activations": True}
MEASURED: dict[str, dict[str, Any]] = {
    "full": {},
    "full, recompute": RECOMPUTE,
    "full, recompute, no average": {**RECOMPUTE, "ema_decay": None},
    "frozen visual expert": {"freeze": VISUAL},
    "LoRA": {"lora": Lora(rank=16, alpha=16.0)},
    "LoRA, recompute": {"lora": Lora(rank=16, alpha=16.0), **RECOMPUTE},
}
ESTIMATED: dict[str, dict[str, Any]] = {
    "full, fp32 adamw": {},
    "full, bf16 adamw8bit": {"weights": "bf16", "optimizer": "adamw8bit", "ema_decay": None},
    "frozen visual expert": {"freeze": VISUAL, "frozen_weights": "bf16"},
    "LoRA rank 16": {"lora": Lora(rank=16, alpha=16.0), "frozen_weights": "bf16"},
}


def peak(name: str) -> int:
    """Bytes by which the peak of this process grows while it builds, trains for two steps, and publishes a model."""
    stage = replace(STAGE, **MEASURED[name])
    if stage.lora:
        import peft  # noqa: F401
    text = torch.randn(stage.batch_size, SMALL.text_tokens, SMALL.text_width)
    torch.ones(64, 64).matmul(torch.ones(64, 64)).requires_grad_().sum().backward()
    before = _status("VmRSS:")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    model = WorldActionTransformer(SMALL)
    adapt(model, stage, torch.device("cpu"))
    state, B = TrainState.start(model, stage), stage.batch_size
    for step in range(stage.steps):
        batch = Batch(
            modes=(Mode.POLICY,) * B,
            history=torch.zeros(B, SMALL.latent_channels, 0, *TOKENS.grid),
            history_valid=torch.ones(B, 0, dtype=torch.bool),
            state_valid=torch.ones(B, dtype=torch.bool),
            future_valid=torch.ones(B, 1, dtype=torch.bool),
            latents=torch.randn(B, SMALL.latent_channels, 2, *TOKENS.grid),
            state=torch.randn(B, SMALL.state_width),
            action=torch.randn(B, TOKENS.actions, SMALL.action_width),
            action_valid=torch.ones(B, TOKENS.actions, SMALL.action_width, dtype=torch.bool),
            instructions=("",) * B,
            embodiment=torch.zeros(B, dtype=torch.long),
        )
        noisy = add_noise(batch, stage.objective, Draws((stage.seed, step), range(B))).without_absent()
        lesson = Lesson(noisy, Instructions(text, torch.arange(B)), batch.embodiment)
        forward_losses(stage, model, ACTION_CENTERED, lesson, None)["loss"].backward()
        state.update(1e-4, step)
        state.update_average(step, stage.ema_decay)
    published(model, state.weights())
    return _status("VmHWM:") - before


def measured() -> dict[str, Any]:
    """Estimate and measurement of every case, and their ratio, without and with the reserve."""
    rows = {}
    for name, changes in MEASURED.items():
        done = subprocess.run([sys.executable, __file__, "--peak", name], capture_output=True, text=True, check=True)
        need = training_need(SMALL, replace(STAGE, **changes), ACTION_CENTERED, TOKENS, torch.device("cpu"), "fp32")
        took, counted = int(done.stdout), need.total - need.reserve
        rows[name] = {
            "measured_gb": took / 1e9,
            "counted_gb": counted / 1e9,
            "counted_to_measured": counted / took,
            "with_reserve_to_measured": need.total / took,
        }
        print(name, {key: round(value, 3) for key, value in rows[name].items()}, flush=True)
    return rows


def estimated() -> dict[str, Any]:
    """What fine-tuning the official models needs on a GPU, and the smallest card that it fits on."""
    rows = {}
    for model, name, batch_size, recompute in product(OFFICIAL, ESTIMATED, (1, 8), (False, True)):
        config, changes = OFFICIAL[model], ESTIMATED[name]
        if "freeze" in changes and len(config.experts) == 1:
            continue  # its only expert
        stage = replace(STAGE, precision="bf16", batch_size=batch_size, recompute_activations=recompute, **changes)
        need = training_need(config, stage, ACTION_CENTERED, TOKENS, torch.device("cuda"), "bf16")
        case = f"{model}, {name}, batch {batch_size}{', recompute' if recompute else ''}"
        rows[case] = {**need.to_json(), "fits_gb": smallest_card(need)}
        print(f"{case:<60}{need.total / 1e9:7.1f} GB, fits {rows[case]['fits_gb']}", flush=True)
    return rows


def smallest_card(need: Need) -> int | None:
    """24, 48 or 80; a card of 24 GB has 24 x 2^30 bytes, of which its driver takes some that the reserve counts."""
    return next((card for card in CARDS if need.total <= card * 2**30), None)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main() -> None:
    if sys.argv[1:2] == ["--peak"]:
        print(peak(sys.argv[2]))
        return
    parameters = sum(p.numel() for p in WorldActionTransformer(SMALL).parameters())
    result = {"parameters_measured": parameters, "measured": measured(), "estimated": estimated()}
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps({**result, "provenance": provenance()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
