"""What of a model a stage trains: frozen experts, low-rank adapters, and the dtype that weights are stored in."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from actwam.model.config import TransformerConfig
from actwam.model.files import DTYPES
from actwam.model.transformer import WorldActionTransformer
from actwam.train.config import Lora, StageConfig
from actwam.types import Group

PROJECTORS = {"action_encoder": Group.ACTION, "action_decoder": Group.ACTION, "state_encoder": Group.STATE}
"""The layers that read and write a robot's own numbers, and the group whose tokens they make or read."""
VISUAL = {"patch_embedding": Group.FUTURE, "patch_head": Group.FUTURE}
ADAPTER = "default"
"""peft's name for the adapters of a model that has one set of them."""


def adapt(model: WorldActionTransformer, stage: StageConfig, device: torch.device) -> None:
    """Freeze, add adapters, and move every weight to `device` in the dtype that the stage stores it in. In place.

    New adapters are drawn from the seed of the stage and change nothing yet: B is zero. Raises ValueError when the
    stage freezes a part of an expert, or everything.
    """
    frozen = frozen_experts(model.config, stage)
    if stage.lora:
        add_adapters(model, stage.lora, frozen, stage.seed)
    for name, parameter in model.named_parameters():
        learns = stage.lora is None or ".lora_" in name or name.partition(".")[0] in PROJECTORS
        parameter.requires_grad_(learns and _expert_of(model.config, name) not in frozen)
        dtype = DTYPES[stage.weights if parameter.requires_grad else stage.frozen_weights]
        parameter.data = parameter.data.to(device, dtype)


def frozen_experts(config: TransformerConfig, stage: StageConfig) -> frozenset[int]:
    """Indices of the experts that are not trained. Raises ValueError on a part of an expert, or all of them."""
    experts = frozenset(config.expert_of(group) for group in stage.freeze)
    for index in experts:
        groups = config.experts[index].groups
        if left := [group for group in groups if group not in stage.freeze]:
            raise ValueError(
                f"stage {stage.name}: freeze names {', '.join(sorted(set(groups) & set(stage.freeze)))}, whose expert "
                f"also serves {', '.join(left)}: freeze all of them or none"
            )
    if len(experts) == len(config.experts):
        raise ValueError(f"stage {stage.name}: freeze names every expert of the model: nothing is left to train")
    return experts


def add_adapters(model: WorldActionTransformer, lora: Lora, frozen: frozenset[int], seed: int) -> None:
    """Wrap the linear layers of all blocks, but for those of frozen experts, in adapters, in place.

    Raises ValueError when peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError('LoRA needs peft: pip install "actwam[lora]"') from error
    experts = "|".join(str(i) for i in range(len(model.config.experts)) if i not in frozen)
    layers = rf"blocks\.\d+\.experts\.({experts})\.(qkv|out|cross\.(q|kv|out)|ffn\.(0|2))"
    torch.manual_seed(seed)
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=layers)  # type: ignore[arg-type]
    inject_adapter_in_model(config, model, ADAPTER)


def is_adapted(name: str) -> bool:
    """Whether a parameter belongs to a layer with adapters, so that a model file holds it only merged."""
    return ".lora_" in name or ".base_layer." in name


def published(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All `weights` of a model, by parameter name, under the names of one without adapters: these are merged.

    They are of one dtype, bfloat16 if all of them are, else float32, which holds either exactly. What has to be made
    for that is made on the CPU; all others are the given tensors themselves.
    """
    weights = dict(weights)
    for name in [name for name in weights if ".base_layer." in name]:
        layer, _, kind = name.partition(".base_layer.")
        merged = weights.pop(name)
        if kind == "weight":
            a, b = (weights.pop(f"{layer}.lora_{side}.{ADAPTER}.weight").cpu().float() for side in "AB")
            scaling: dict[str, float] = model.get_submodule(layer).scaling  # type: ignore[assignment]
            merged = torch.addmm(merged.cpu().float(), b, a, alpha=scaling[ADAPTER])
        weights[f"{layer}.{kind}"] = merged
    everything_in_bf16 = all(tensor.dtype == torch.bfloat16 for tensor in weights.values())
    dtype = torch.bfloat16 if everything_in_bf16 else torch.float32
    return {name: tensor if tensor.dtype == dtype else tensor.cpu().to(dtype) for name, tensor in weights.items()}


def _expert_of(config: TransformerConfig, name: str) -> int:
    """Index of the expert that a parameter serves."""
    parts = name.split(".")
    if "experts" in parts:
        return int(parts[parts.index("experts") + 1])
    return config.expert_of((PROJECTORS | VISUAL)[parts[0]])
