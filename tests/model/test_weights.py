"""Names and shapes of the official models, at their real size and in both directions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from actwam.model import weights
from actwam.model.config import TransformerConfig, one_expert, two_experts
from actwam.model.transformer import WorldActionTransformer
from actwam.model.weights import ActionSide

FIXTURES = Path(__file__).parents[1] / "fixtures"
STATED = {"num_attention_heads": 24, "attention_head_dim": 128}
WAN_SIDE = ActionSide(width=32, embodiments=3, expert=(1024, 4096))


def key_list(name: str) -> dict[str, tuple[int, ...]]:
    return {key: tuple(shape) for key, shape in json.loads((FIXTURES / name).read_text()).items()}


def read(shapes: dict[str, tuple[int, ...]], stated: dict[str, Any] = STATED) -> tuple[str, TransformerConfig]:
    return weights.read_config(shapes, stated, text_tokens=64, actions=WAN_SIDE)


@pytest.mark.parametrize(
    ("file", "layout", "keys", "parameters"),
    [("gwp_keys_0.json", "gwp0", 837, 5_001_438_304), ("gwp_keys_05.json", "gwp05", 1664, 6_021_560_928)],
)
def test_the_official_size(file: str, layout: str, keys: int, parameters: int) -> None:
    shapes = key_list(file)
    found, config = read(shapes)
    assert found == layout
    assert weights.foreign_shapes(config, found) == shapes
    assert len(shapes) == keys
    with torch.device("meta"):
        model = WorldActionTransformer(config)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert set(weights.names(config, found)) == set(model.state_dict())
    assert (config.action_width, config.embodiments, config.layers) == (16, 2, 30)
    assert config.noisy_padding


@pytest.mark.parametrize("experts", [None, (1024, 4096)])
def test_wan_is_the_visual_side_and_is_given_the_other(experts: tuple[int, int] | None) -> None:
    """GWP-0's keys are stock Wan's and twelve more."""
    shapes = {k: s for k, s in key_list("gwp_keys_0.json").items() if not k.startswith(weights.ACTION_PARTS)}
    assert len(shapes) == 837 - 12
    layout, config = weights.read_config(shapes, STATED, text_tokens=64, actions=replace(WAN_SIDE, expert=experts))
    assert layout == "wan"
    assert weights.foreign_shapes(config, layout) == shapes
    assert (config.action_width, config.state_width, config.embodiments) == (32, 32, 3)
    assert len(config.experts) == (2 if experts else 1)
    assert config.share_state_encoder == (experts is None)
    assert not config.noisy_padding


@pytest.mark.parametrize("experts", ["one", "two"])
def test_there_and_back(experts: str) -> None:
    config = official_like(experts)
    torch.manual_seed(0)
    model = WorldActionTransformer(config)
    layout = weights.layout_of(config)
    theirs = weights.to_theirs(model.state_dict(), config, layout)
    assert {name: tuple(t.shape) for name, t in theirs.items()} == weights.foreign_shapes(config, layout)
    assert sum(t.numel() for t in theirs.values()) == sum(p.numel() for p in model.parameters())
    ours = weights.to_ours(theirs, config, layout, torch.float32)
    assert all(torch.equal(ours[name], tensor) for name, tensor in model.state_dict().items())
    found = weights.read_config(
        weights.foreign_shapes(config, layout),
        weights.foreign_config(config, layout),
        text_tokens=config.text_tokens,
        actions=WAN_SIDE,
    )
    assert found == (layout, replace(config, noisy_padding=True))


def test_every_wrong_tensor_is_listed() -> None:
    config = official_like("two")
    shapes = weights.foreign_shapes(config, "gwp05")
    del shapes["blocks.1.action_expert.attn1.to_k.bias"]
    shapes["stray"] = (1,)
    shapes["proj_out.bias"] = (7,)
    with pytest.raises(ValueError) as error:
        weights.require_keys(shapes, config, "gwp05")
    for said in ("missing blocks.1.action_expert.attn1.to_k.bias", "unused stray", "proj_out.bias is (7,), not"):
        assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_attention_heads": 23}, "23 x attention_head_dim 128 must be the 3072 channels"),
        ({"attention_head_dim": None}, "attention_head_dim None"),
        ({"num_layers": 29}, "num_layers is 29, the tensors say 30"),
        ({"ffn_dim": 1}, "ffn_dim is 1, the tensors say 14336"),
        ({"qk_norm": None}, "qk_norm is None"),
        ({"image_dim": 1280}, "image_dim is 1280"),
        ({"_class_name": "CasualWorldActionTransformer"}, "_class_name is 'CasualWorldActionTransformer'"),
        ({"eps": "small"}, "eps is 'small'"),
    ],
)
def test_a_config_that_contradicts_the_tensors(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=r"config\.json") as error:
        read(key_list("gwp_keys_05.json"), STATED | change)
    assert said in str(error.value)


def test_the_published_channels_and_embodiments_are_ignored() -> None:
    stated = STATED | {"in_action_channels": 32, "out_action_channels": 32, "num_embodiments": 4}
    _, config = read(key_list("gwp_keys_05.json"), stated)
    assert (config.action_width, config.embodiments) == (16, 2)


def test_tensors_of_something_else() -> None:
    with pytest.raises(ValueError, match=r"neither Wan 2\.2, GWP-0 nor GWP-0\.5: 1 tensors such as lm_head"):
        weights.detect({"lm_head.weight": (1, 1)})
    shapes = key_list("gwp_keys_05.json")
    del shapes["action_scale_shift_table"]
    with pytest.raises(ValueError, match="incomplete or misshaped: 'action_scale_shift_table'"):
        read(shapes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"precondition": True}, "preconditions"),
        ({"share_state_encoder": False}, "a state encoder of its own"),
        ({"state_width": 2, "share_state_encoder": False}, "widths differ"),
        ({"experts": one_expert(20, 8)}, "visual width"),
        ({"experts": tuple(reversed(two_experts((24, 8), (12, 8)))), "share_state_encoder": False}, "experts"),
    ],
)
def test_models_without_counterpart(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        weights.layout_of(replace(official_like("one"), **changes))


def official_like(experts: str) -> TransformerConfig:
    """Every size differs from every other, so that a transposed or swapped tensor has nowhere to hide."""
    sizes = one_expert(24, 40) if experts == "one" else two_experts((24, 40), (20, 28))
    return tiny.config(
        sizes, layers=2, patch=(1, 2), share_state_encoder=experts == "one", text_width=14, frequencies=18,
        projector_widths=(10, 22), state_width=3, action_width=3,
    )  # fmt: skip
