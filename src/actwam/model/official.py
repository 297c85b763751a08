"""A folder of Wan 2.2, GWP-0 or GWP-0.5 in, a `WorldActionTransformer` out, and back.

Warm start. Wan knows no actions: its weights become the visual expert (or the only one), state and action projectors
begin at random, and an action expert begins as a slice of the visual one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from actwam.model import weights
from actwam.model.config import TransformerConfig
from actwam.model.files import DTYPES, Precision, read_json, read_tensors, write_tensors
from actwam.model.transformer import WorldActionTransformer
from actwam.model.weights import ActionSide, Layout
from actwam.types import Group

TimeProjection = Literal["chunks", "official"]


@dataclass(frozen=True)
class Official:
    """A model read from such a folder, and which one it was."""

    model: WorldActionTransformer
    layout: Layout


def read_official(
    folder: Path,
    *,
    text_tokens: int,
    actions: ActionSide,
    precision: Precision = "auto",
    time_projection: TimeProjection = "chunks",
    seed: int = 0,
    pickled: bool = False,
) -> Official:
    """Read the transformer in `folder`, which is that of the model or holds it as `transformer/`.

    Strict: every tensor is used and every parameter is filled. `precision` "auto" keeps the one dtype of the tensors,
    and float32 where they are mixed. `actions` and `time_projection` are for Wan, whose action side is drawn from
    `seed` and, with an action expert, sliced (see `slice_expert`). `pickled` allows a `.bin`. Raises ValueError, one
    line, on anything missing, unused, damaged or contradictory.
    """
    folder = find_transformer(folder)
    stated, tensors = read_json(folder / "config.json"), read_tensors(folder, pickled=pickled)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    try:
        layout, config = weights.read_config(shapes, stated, text_tokens=text_tokens, actions=actions)
        ours = weights.to_ours(tensors, config, layout, _dtype(tensors, precision))
        if bad := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
            raise ValueError(f"NaN or Inf in {', '.join(bad)}: the training that wrote them had failed")
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    if layout == "wan":
        model = warm_start(config, ours, time_projection=time_projection, seed=seed)
    else:
        with torch.device("meta"):
            model = WorldActionTransformer(config)
        model.load_state_dict(ours, assign=True)
    return Official(model.eval(), layout)


def find_transformer(folder: Path) -> Path:
    """The folder with the weights: `folder` itself, or its one subfolder that is called `transformer`.

    GWP's trainer leaves `transformer` and `transformer_ema` side by side: then the choice is the caller's.
    """
    found = [place for place in (folder, folder / "transformer", folder / "transformer_ema")
             if (place / "config.json").is_file()]  # fmt: skip
    if len(found) != 1:
        names = " and ".join(place.name for place in found)
        what = f"holds {names}: choose one with --folder" if found else "has no config.json"
        raise ValueError(f"{folder}: {what}")
    return found[0]


def warm_start(
    config: TransformerConfig, visual: Mapping[str, Tensor], *, time_projection: TimeProjection, seed: int
) -> WorldActionTransformer:
    """A model whose visual expert is `visual`, and whose action side is new. Its dtype is that of `visual`."""
    dtype = next(iter(visual.values())).dtype
    tensors = {name: tensor.to(dtype) for name, tensor in _action_side(config, seed).items()} | dict(visual)
    with torch.device("meta"):
        model = WorldActionTransformer(config)
    own = {name: parameter.shape for name, parameter in model.named_parameters()}
    if len(config.experts) == 2:
        tensors |= slice_expert(config, tensors, own, time_projection=time_projection)
    model.load_state_dict(tensors, assign=True)
    return model


def slice_expert(
    config: TransformerConfig,
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    time_projection: TimeProjection = "chunks",
) -> dict[str, Tensor]:
    """An action expert of these `shapes`, cut out of the visual one: of every tensor the leading rows and columns.

    One tensor needs care. The projection of the noise level stacks six modulations: shift, scale and gate of attention
    and of the feed forward, D rows each. "chunks" cuts the leading rows of each of the six. The released GWP-0.5 code
    cuts the leading rows of the whole stack ("official"): with D = 3072 cut to 1024, all six modulations of the action
    expert then come from the shift of attention (its first three) and the scale of attention (the other three), and no
    gate of the action expert ever was one. Choose "official" only to reproduce a run of that code.
    """
    action, visual = config.expert_of(Group.ACTION), config.expert_of(Group.FUTURE)
    sliced = {}
    for name, shape in shapes.items():
        source = name.replace(f"experts.{action}.", f"experts.{visual}.")
        if source == name:
            continue
        tensor, chunks = tensors[source], 6 if ".noise.project." in name and time_projection == "chunks" else 1
        if any(there < here for here, there in zip(shape, tensor.shape, strict=True)):
            raise ValueError(f"{name} of {tuple(shape)} is wider than the visual expert, {tuple(tensor.shape)}")
        parts = tensor.unflatten(0, (chunks, -1))
        cut = (slice(None), slice(shape[0] // chunks), *(slice(n) for n in shape[1:]))
        sliced[name] = parts[cut].reshape(shape).clone()
    return sliced


def write_official(model: WorldActionTransformer, folder: Path, *, pickled: bool = False) -> Layout:
    """Write the model as `transformer/` in `folder`, in the layout of GWP-0 or GWP-0.5.

    `pickled` writes a `.bin` as their trainer does, which is all that their C++ converter reads. Raises ValueError on
    a model that has no counterpart there.
    """
    layout = weights.layout_of(model.config)
    tensors = weights.to_theirs(model.state_dict(), model.config, layout)
    target = folder / "transformer"
    target.mkdir(parents=True)
    stated = weights.foreign_config(model.config, layout)
    (target / "config.json").write_text(json.dumps(stated, indent=2) + "\n", encoding="utf-8")
    write_tensors(tensors, target, pickled=pickled)
    return layout


def _dtype(tensors: Mapping[str, Tensor], precision: Precision) -> torch.dtype:
    found = {tensor.dtype for tensor in tensors.values()}
    if not all(dtype.is_floating_point for dtype in found):
        raise ValueError(
            f"tensors of {', '.join(sorted(str(dtype) for dtype in found))}: quantised weights are not read"
        )
    if precision != "auto":
        return DTYPES[precision]
    return torch.bfloat16 if found == {torch.bfloat16} else torch.float32


def _action_side(config: TransformerConfig, seed: int) -> dict[str, Tensor]:
    """Projectors as a new model has them, drawn without the blocks, which are the rest of it."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        drawn = WorldActionTransformer(replace(config, layers=0)).state_dict()
    return {name: tensor for name, tensor in drawn.items() if name.startswith(weights.ACTION_PARTS)}
