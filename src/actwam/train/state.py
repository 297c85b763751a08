"""What a stage needs besides the weights it will publish: raw weights, moving average, optimizer moments."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from actwam.train.config import StageConfig

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps of a parameter: how often it was updated, and two moving averages of its gradient."""


@dataclass(frozen=True)
class TrainState:
    """The optimizer and the moving average of one stage. `average` holds one tensor for each parameter, by
    name.
    """

    model: nn.Module
    optimizer: torch.optim.AdamW
    average: dict[str, Tensor]

    @classmethod
    def start(cls, model: nn.Module, stage: StageConfig) -> TrainState:
        """A fresh optimizer; weight decay is for matrices, not for biases, norms and modulation tables."""
        named = list(model.named_parameters())
        matrices = {name for name, p in named if p.ndim >= 2 and name.endswith("weight")}
        groups = [
            {"params": [p for name, p in named if name in matrices], "weight_decay": stage.weight_decay},
            {"params": [p for name, p in named if name not in matrices], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=stage.learning_rate, betas=stage.betas, fused=True)
        return cls(model, optimizer, {name: p.detach().clone() for name, p in named})

    def update_average(self, step: int, decay: float) -> None:
        """Move the average towards the weights; in the first steps faster: decay = min(decay, (1 + n) / (10 +
        n)).
        """
        weight = 1 - min(decay, (1 + step) / (10 + step))
        weights = [p.detach() for p in self.model.parameters()]
        torch._foreach_lerp_(list(self.average.values()), weights, weight)

    def tensors(self) -> dict[str, Tensor]:
        """Raw weights and moments by parameter name, for `train_state/`."""
        tensors = {}
        for name, parameter in self.model.named_parameters():
            tensors[f"weight/{name}"] = parameter.detach()
            moments = self.optimizer.state.get(parameter) or {
                # no batch had a gradient for it yet; AdamW starts with these zeros
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
            tensors |= {f"{key}/{name}": moments[key] for key in MOMENTS}
        return tensors

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue where `tensors` were saved. Raises ValueError on tensors of another model."""
        own = {name: tensor.shape for name, tensor in self.tensors().items()}
        if {name: tensor.shape for name, tensor in tensors.items()} != own:
            raise ValueError("train_state does not hold the tensors of this model; start the stage again")
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[f"weight/{name}"])
                self.optimizer.state[parameter] = {
                    key: tensors[f"{key}/{name}"].clone().to(parameter.device) for key in MOMENTS
                }


def learning_rate(stage: StageConfig, step: int) -> float:
    """Linear warm-up over `warmup_steps`, then a cosine down to `final_learning_rate` at the last step."""
    if step < stage.warmup_steps:
        return stage.learning_rate * (step + 1) / stage.warmup_steps
    progress = (step - stage.warmup_steps) / max(1, stage.steps - 1 - stage.warmup_steps)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return stage.final_learning_rate + (stage.learning_rate - stage.final_learning_rate) * cosine
