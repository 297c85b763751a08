"""What a stage needs besides the weights it will publish: raw weights, moving average, optimizer moments."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from actwam.train.adapt import is_adapted
from actwam.train.config import StageConfig
from actwam.train.parallel import own_part

QUANTISED_FROM, BLOCK = 4096, 256
"""torchao keeps moments in 8 bits for tensors of at least so many values, if these fill blocks that share a scale."""


@dataclass(frozen=True)
class TrainState:
    """The optimizer and the moving average of one stage, for the parameters that it trains.

    `average` holds a tensor for each of them, by name, or nothing where the stage keeps no average.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: dict[str, Tensor]

    @classmethod
    def start(cls, model: nn.Module, stage: StageConfig) -> TrainState:
        """A fresh optimizer; weight decay is for matrices, not for biases, norms, modulation tables and the rows of
        embodiments, which are three-dimensional: decay would shrink those of robots that are not there to learn.

        Raises ValueError when the stage wants 8-bit moments and torchao is not installed.
        """
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        matrices = {name for name, p in named if p.ndim == 2 and name.endswith("weight")}
        groups = [
            {"params": [p for name, p in named if name in matrices], "weight_decay": stage.weight_decay},
            {"params": [p for name, p in named if name not in matrices], "weight_decay": 0.0},
        ]
        make = _adamw8bit if stage.optimizer == "adamw8bit" else _adamw
        average = {} if stage.ema_decay is None else {name: p.detach().clone() for name, p in named}
        return cls(model, make([group for group in groups if group["params"]], stage), average)

    def update(self, rate: float, seed: int) -> None:
        """One optimizer step along the gradients, which are dropped. `seed` draws what is rounded up and what down."""
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):  # torchao's, which would compile anew for every other number
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        cuda = {p.device for p in self.model.parameters() if p.device.type == "cuda"}
        with torch.random.fork_rng(cuda):
            torch.manual_seed(seed)
            self.optimizer.step()
        self.optimizer.zero_grad()

    def update_average(self, step: int, decay: float | None) -> None:
        """Move the average towards the weights; in the first steps faster: decay = min(decay, (1 + n) / (10 +
        n)).
        """
        if decay is not None:
            weight = 1 - min(decay, (1 + step) / (10 + step))
            weights = [own_part(p.detach()) for name, p in self.model.named_parameters() if name in self.average]
            torch._foreach_lerp_([own_part(average) for average in self.average.values()], weights, weight)

    def weights(self) -> dict[str, Tensor]:
        """What is published, by parameter name: averages where there are any, else the weights. Not copies."""
        return {name: self.average.get(name, p.detach()) for name, p in self.model.named_parameters()}

    def tensors(self) -> dict[str, Tensor]:
        """What the model file does not hold, by parameter name, for `train_state/`: not copies but the tensors.

        That is the moments; the raw weights where the file has their average; and, where the file has adapters merged,
        these, their averages, and the weights that they are merged into.
        """
        tensors = {}
        for name, parameter in self.model.named_parameters():
            if name in self.average or is_adapted(name):
                tensors[f"weight/{name}"] = parameter.detach()
            if name in self.average and is_adapted(name):
                tensors[f"average/{name}"] = self.average[name]
            for key, moment in self.optimizer.state.get(parameter, {}).items():
                if hasattr(moment, "codes"):  # quantised; the third part, the map from codes to numbers, never changes
                    tensors |= {f"{key}.{part}/{name}": getattr(moment, part) for part in ("codes", "scale")}
                else:
                    tensors[f"{key}/{name}"] = moment if moment.ndim else moment.reshape(1)
        return tensors


def learning_rate(stage: StageConfig, step: int) -> float:
    """Linear warm-up over `warmup_steps`, then a cosine down to `final_learning_rate` at the last step."""
    if step < stage.warmup_steps:
        return stage.learning_rate * (step + 1) / stage.warmup_steps
    progress = (step - stage.warmup_steps) / max(1, stage.steps - 1 - stage.warmup_steps)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return stage.final_learning_rate + (stage.learning_rate - stage.final_learning_rate) * cosine


def _adamw(groups: list[dict], stage: StageConfig) -> torch.optim.Optimizer:
    """AdamW, its moments allocated at once: what a run needs is needed from the start."""
    optimizer = torch.optim.AdamW(groups, lr=stage.learning_rate, betas=stage.betas, fused=True)
    for parameter in (p for group in groups for p in group["params"]):
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
        }
    return optimizer


def _adamw8bit(groups: list[dict], stage: StageConfig) -> torch.optim.Optimizer:
    """AdamW with moments in 8 bits, and bf16 weights rounded up or down by chance, so that small updates count.

    Small tensors keep moments of 32 bits: torchao would hold them in the dtype of the weights, where the second moment
    of bf16 weights stands still, as its changes are below 1/256.
    """
    try:
        from torchao.optim import AdamW8bit
        from torchao.optim.subclass_8bit import OptimState8bit
    except ImportError as error:
        raise ValueError('optimizer adamw8bit needs torchao: pip install "actwam[lowbit]"') from error
    by_chance = stage.weights == "bf16"
    optimizer = AdamW8bit(groups, lr=stage.learning_rate, betas=stage.betas, bf16_stochastic_round=by_chance)
    for p in (p for group in groups for p in group["params"]):
        in_8_bits = p.numel() >= QUANTISED_FROM and p.numel() % BLOCK == 0
        first, second = (
            OptimState8bit.zeros(p.shape, signed, BLOCK, p.device, dtype=p.dtype)
            if in_8_bits
            else torch.zeros(p.shape, device=p.device)
            for signed in (True, False)
        )
        optimizer.state[p] = {"step": torch.zeros(()), "exp_avg": first, "exp_avg_sq": second}
    return optimizer
