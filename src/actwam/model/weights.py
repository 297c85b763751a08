"""Weights of Wan 2.2, GWP-0 and GWP-0.5: the only file that knows their names.

A parameter here is one of theirs, or several of theirs one after another (queries, keys and values stand in one
matrix), in another shape but in the same order of numbers. So a layout is a table of names that is read in both
directions, and nothing is computed: what is imported and exported again is the same to the bit.

Sizes come from the tensors. The published configurations state wrong numbers of action channels and embodiments;
those two are ignored, any other that contradicts the tensors is an error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from actwam.model.config import TransformerConfig, one_expert, two_experts
from actwam.model.files import Shape, mismatches
from actwam.model.transformer import WorldActionTransformer
from actwam.types import Group

Layout = Literal["wan", "gwp0", "gwp05"]

CLASSES: dict[Layout, str] = {
    "wan": "WanTransformer3DModel",
    "gwp0": "CasualWorldActionTransformer",
    "gwp05": "CasualWorldActionTransformer_MoT",
}
"""What each layout calls itself in `config.json`."""

_BOTH = ("weight", "bias")
_BLOCK = {
    "table": ("scale_shift_table",),
    **{f"qkv.{p}": tuple(f"attn1.to_{x}.{p}" for x in "qkv") for p in _BOTH},
    "norm_qk": ("attn1.norm_q.weight", "attn1.norm_k.weight"),
    **{f"out.{p}": (f"attn1.to_out.0.{p}",) for p in _BOTH},
    **{f"norm_cross.{p}": (f"norm2.{p}",) for p in _BOTH},
    **{f"cross.q.{p}": (f"attn2.to_q.{p}",) for p in _BOTH},
    **{f"cross.kv.{p}": (f"attn2.to_k.{p}", f"attn2.to_v.{p}") for p in _BOTH},
    "cross.norm_q": ("attn2.norm_q.weight",),
    "cross.norm_k": ("attn2.norm_k.weight",),
    **{f"cross.out.{p}": (f"attn2.to_out.0.{p}",) for p in _BOTH},
    **{f"ffn.0.{p}": (f"ffn.net.0.proj.{p}",) for p in _BOTH},
    **{f"ffn.2.{p}": (f"ffn.net.2.{p}",) for p in _BOTH},
}
_EMBEDDERS = {
    "text_embedder.0": "text_embedder.linear_1",
    "text_embedder.2": "text_embedder.linear_2",
    "noise.embed.0": "time_embedder.linear_1",
    "noise.embed.2": "time_embedder.linear_2",
    "noise.project": "time_proj",
}
_PROJECTOR = {"first": "in_proj", "middle": "mid_proj", "last": "out_proj"}
ACTION_PARTS = ("action_encoder.", "action_decoder.", "state_encoder.")
"""What Wan does not have."""


@dataclass(frozen=True, kw_only=True)
class ActionSide:
    """What a video model lacks: the padded width of state and action, the number of robots, and the (width,
    feed-forward width) of an action expert, or None for one expert as in GWP-0. The projectors are as wide inside as
    GWP's.
    """

    width: int
    embodiments: int = 1
    expert: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if min(self.width, self.embodiments, *(self.expert or ())) < 1:
            raise ValueError(f"an action side needs widths and embodiments of at least 1, not {self}")


def detect(shapes: Mapping[str, Shape]) -> Layout:
    """Which model these tensors are. Raises ValueError when they are none of the three."""
    if "patch_embedding.weight" in shapes:
        if "blocks.0.visual_expert.attn1.to_q.weight" in shapes:
            return "gwp05"
        if "blocks.0.attn1.to_q.weight" in shapes:
            return "gwp0" if "action_encoder.in_proj.weight" in shapes else "wan"
    some = ", ".join(sorted(shapes)[:3])
    raise ValueError(f"neither Wan 2.2, GWP-0 nor GWP-0.5: {len(shapes)} tensors such as {some}")


def names(config: TransformerConfig, layout: Layout) -> dict[str, tuple[str, ...]]:
    """For every parameter here, the parameters there whose numbers it holds, in order.

    With "wan" these are the parameters of the visual expert alone: Wan has no other, and knows no actions.
    """
    visual = config.expert_of(Group.FUTURE)
    action = config.expert_of(Group.ACTION)
    # expert -> embedders, modulation of the head, prefix in a block
    experts = {visual: ("condition_embedder", "scale_shift_table", "visual_expert." if layout == "gwp05" else "")}
    if layout == "gwp05":
        experts[action] = ("action_condition_embedder", "action_scale_shift_table", "action_expert.")
    found: dict[str, tuple[str, ...]] = {}
    for here, there in (("patch_embedding", "patch_embedding"), ("patch_head", "proj_out")):
        found |= {f"{here}.{p}": (f"{there}.{p}",) for p in _BOTH}
    for index, (embedders, table, prefix) in experts.items():
        found[f"experts.{index}.head_table"] = (table,)
        for here, there in _EMBEDDERS.items():
            found |= {f"experts.{index}.{here}.{p}": (f"{embedders}.{there}.{p}",) for p in _BOTH}
        for layer in range(config.layers):
            for here, parts in _BLOCK.items():
                block = f"blocks.{layer}.{prefix}"
                found[f"blocks.{layer}.experts.{index}.{here}"] = tuple(block + part for part in parts)
    if layout != "wan":
        projectors = ["action_encoder", "action_decoder", *([] if config.share_state_encoder else ["state_encoder"])]
        for module in projectors:
            for here, there in _PROJECTOR.items():
                found |= {f"{module}.{here}.{p}": (f"{module}.{there}.{p}",) for p in _BOTH}
    return found


def foreign_shapes(config: TransformerConfig, layout: Layout) -> dict[str, Shape]:
    """The shape of every parameter there."""
    own = _own_shapes(config)
    return {
        there: _foreign_shape(here, own[here], len(parts), config)
        for here, parts in names(config, layout).items()
        for there in parts
    }


def read_config(
    shapes: Mapping[str, Shape],
    stated: Mapping[str, Any],
    *,
    text_tokens: int,
    actions: ActionSide,
) -> tuple[Layout, TransformerConfig]:
    """The layout and our configuration of tensors with these shapes.

    `stated` is their `config.json`: it alone says how the width is split into heads. `text_tokens` is how many tokens
    of text the weights were trained with, which no tensor tells; 64 for GWP. `actions` is what
    "wan" is given; the others have their own. Raises ValueError on tensors that are cut off, and on a configuration
    that contradicts them.
    """
    layout = detect(shapes)
    prefix = "visual_expert." if layout == "gwp05" else ""
    try:
        width, channels, _, *patch = shapes["patch_embedding.weight"]
        inner = shapes[f"blocks.0.{prefix}attn1.to_q.weight"][0]
        visual = (width, shapes[f"blocks.0.{prefix}ffn.net.0.proj.weight"][0])
        projector, state_width = TransformerConfig.projector_widths, actions.width
        if layout != "wan":
            robots, action_width, first = shapes["action_encoder.in_proj.weight"]
            projector = (first, shapes["action_encoder.mid_proj.weight"][0])
            state_width = shapes.get("state_encoder.in_proj.weight", (robots, action_width))[1]
            actions = ActionSide(width=action_width, embodiments=robots, expert=_action_expert(shapes, layout))
        embedder = "condition_embedder.{}_embedder.linear_1.weight"
        frequencies = shapes[embedder.format("time")][1]
        text_width = shapes[embedder.format("text")][1]
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(f"the tensors of {layout} are incomplete or misshaped: {error}") from error
    heads, head_width, eps = _stated_heads(stated, inner)
    config = TransformerConfig(
        layers=len({name.split(".")[1] for name in shapes if name.startswith("blocks.")}),
        heads=heads,
        head_width=head_width,
        experts=two_experts(visual, actions.expert) if actions.expert else one_expert(*visual),
        latent_channels=channels,
        patch=(patch[0], patch[1]),
        text_width=text_width,
        text_tokens=text_tokens,
        state_width=state_width,
        action_width=actions.width,
        embodiments=actions.embodiments,
        projector_widths=projector,
        share_state_encoder=actions.expert is None,
        noisy_padding=layout != "wan",
        frequencies=frequencies,
        eps=eps,
    )
    _require_agreement(stated, config, layout)
    return layout, config


def to_ours(
    tensors: Mapping[str, Tensor], config: TransformerConfig, layout: Layout, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Our parameters from theirs. Raises ValueError listing every missing, unused and misshaped tensor."""
    require_keys({name: tuple(tensor.shape) for name, tensor in tensors.items()}, config, layout)
    own = _own_shapes(config)
    return {
        here: torch.cat([tensors[part].to(dtype).flatten() for part in parts]).view(own[here])
        if len(parts) > 1
        else tensors[parts[0]].to(dtype).reshape(own[here])
        for here, parts in names(config, layout).items()
    }


def to_theirs(tensors: Mapping[str, Tensor], config: TransformerConfig, layout: Layout) -> dict[str, Tensor]:
    """Their parameters from ours, the inverse of `to_ours`."""
    shapes = foreign_shapes(config, layout)
    found: dict[str, Tensor] = {}
    for here, parts in names(config, layout).items():
        numbers = tensors[here].flatten().split([math.prod(shapes[part]) for part in parts])
        found |= {part: piece.view(shapes[part]).clone() for part, piece in zip(parts, numbers, strict=True)}
    return found


def require_keys(shapes: Mapping[str, Shape], config: TransformerConfig, layout: Layout) -> None:
    """Raises ValueError listing every missing, unused and misshaped tensor."""
    if wrong := mismatches(shapes, foreign_shapes(config, layout)):
        raise ValueError(f"the tensors do not fit {CLASSES[layout]}: {wrong}")


def layout_of(config: TransformerConfig) -> Layout:
    """The layout that this model can be exported to. Raises ValueError saying why there is none."""
    visual = config.experts[config.expert_of(Group.FUTURE)]
    one = config.experts == one_expert(visual.width, visual.ffn_width)
    action = config.experts[config.expert_of(Group.ACTION)]
    two = config.experts == two_experts((visual.width, visual.ffn_width), (action.width, action.ffn_width))
    problems = {
        "it preconditions its velocities": config.precondition,
        "its experts are neither those of GWP-0 nor those of GWP-0.5": not (one or two),
        "it has one expert and a state encoder of its own": one and not config.share_state_encoder,
        "it has two experts and no state encoder of its own": two and config.share_state_encoder,
        f"its head is {config.head_width} wide, which does not divide into pairs": config.head_width % 2 != 0,
        "its state and action widths differ": config.state_width != config.action_width,
        "its visual width is not heads x head_width": visual.width != config.heads * config.head_width,
    }
    found = [problem for problem, holds in problems.items() if holds]
    if found:
        raise ValueError(f"this model has no counterpart among the official ones: {', '.join(found)}")
    return "gwp0" if one else "gwp05"


def foreign_config(config: TransformerConfig, layout: Layout) -> dict[str, Any]:
    """Their `config.json`."""
    visual = config.experts[config.expert_of(Group.FUTURE)]
    stated: dict[str, Any] = {
        "_class_name": CLASSES[layout],
        "_diffusers_version": "0.36.0",
        "added_kv_proj_dim": None,
        "attention_head_dim": config.head_width,
        "cross_attn_norm": True,
        "eps": config.eps,
        "ffn_dim": visual.ffn_width,
        "freq_dim": config.frequencies,
        "image_dim": None,
        "in_action_channels": config.action_width,
        "in_channels": config.latent_channels,
        "num_attention_heads": config.heads,
        "num_embodiments": config.embodiments,
        "num_layers": config.layers,
        "out_action_channels": config.action_width,
        "out_channels": config.latent_channels,
        "patch_size": [1, *config.patch],
        "pos_embed_seq_len": None,
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 1024,
        "text_dim": config.text_width,
    }
    if layout == "gwp05":
        action = config.experts[config.expert_of(Group.ACTION)]
        stated |= {"action_expert_dim": action.width, "action_ffn_dim": action.ffn_width}
    return dict(sorted(stated.items()))


def _action_expert(shapes: Mapping[str, Shape], layout: Layout) -> tuple[int, int] | None:
    if layout != "gwp05":
        return None
    ffn = shapes["blocks.0.action_expert.ffn.net.0.proj.weight"]
    return shapes["action_scale_shift_table"][-1], ffn[0]


def _own_shapes(config: TransformerConfig) -> dict[str, Shape]:
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in WorldActionTransformer(config).named_parameters()}


def _foreign_shape(here: str, shape: Shape, parts: int, config: TransformerConfig) -> Shape:
    if here == "patch_embedding.weight":
        return (shape[0], config.latent_channels, 1, *config.patch)
    if here.endswith("table"):
        return (1, *shape)
    if here.endswith("norm_qk"):
        return shape[1:]
    return (shape[0] // parts, *shape[1:])


def _stated_heads(stated: Mapping[str, Any], inner: int) -> tuple[int, int, float]:
    heads: Any = stated.get("num_attention_heads")
    head_width: Any = stated.get("attention_head_dim")
    eps = stated.get("eps", 1e-6)
    whole = isinstance(heads, int) and isinstance(head_width, int)
    if not whole or heads < 1 or head_width % 2 or heads * head_width != inner:
        raise ValueError(
            f"config.json: num_attention_heads {heads!r} x attention_head_dim {head_width!r} must be the {inner} "
            "channels of attn1.to_q; take the config.json that belongs to these weights"
        )
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise ValueError(f"config.json: eps is {eps!r}, expected a number between 0 and 1")
    return heads, head_width, eps


def _require_agreement(stated: Mapping[str, Any], config: TransformerConfig, layout: Layout) -> None:
    """Raises ValueError when `stated` contradicts the tensors, or asks for what this block does not have."""
    ignored = {"_diffusers_version", "in_action_channels", "out_action_channels", "num_embodiments",
               "rope_max_seq_len"}  # fmt: skip
    expected = {key: value for key, value in foreign_config(config, layout).items() if key not in ignored}
    wrong = [
        f"{key} is {stated[key]!r}, the tensors say {value!r}"
        for key, value in expected.items()
        if key in stated and stated[key] != value
    ]
    if wrong:
        raise ValueError(f"config.json contradicts the weights: {'; '.join(wrong)}")
