"""Sizes travel through JSON unchanged, and impossible ones are refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import tiny

from actwam.model.config import ExpertConfig, TransformerConfig
from actwam.types import Group


@pytest.mark.parametrize("experts", ["one", "two"])
def test_json_brings_it_back(experts: str) -> None:
    config = tiny.config(experts)
    assert TransformerConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_groups_live_in_one_expert_each() -> None:
    config = tiny.config("two")
    assert config.expert_of(Group.STATE) == config.expert_of(Group.ACTION) == 0
    assert {config.expert_of(g) for g in (Group.HISTORY, Group.OBSERVATION, Group.FUTURE)} == {1}
    some = ExpertConfig(width=8, ffn_width=8, groups=(Group.STATE, Group.ACTION))
    for experts in ((some,), (some, some), (*config.experts, some)):
        with pytest.raises(ValueError, match="exactly one expert"):
            replace(config, experts=experts)


def test_a_shared_encoder_needs_equal_widths() -> None:
    with pytest.raises(ValueError, match="share_state_encoder needs equal widths, not state 3 and action 4"):
        tiny.config(share_state_encoder=True, action_width=4)
