"""That the tests really check shapes (see conftest.py), and that child processes can do without."""

from __future__ import annotations

import multiprocessing

import pytest
import torch
from jaxtyping import TypeCheckError

from actwam.data.embodiment import Embodiment
from actwam.types import Context, Group


def context(values_length: int) -> Context:
    keys = torch.zeros(1, 2, 3, 4)
    return Context((Group.STATE,), (3,), (keys,), (torch.zeros(1, 2, values_length, 4),))


def test_a_wrong_shape_is_an_error() -> None:
    context(values_length=3)
    with pytest.raises(TypeCheckError, match="values"):
        context(values_length=5)


def test_a_wrong_type_is_an_error() -> None:
    with pytest.raises(TypeCheckError, match="lengths"):
        Context((Group.STATE,), ("three",), (), ())  # type: ignore[arg-type]


def test_values_travel_to_a_spawned_process_and_back() -> None:
    robot = Embodiment(
        name="arm",
        index=0,
        fps=10,
        cameras={"head": "top"},
        image_size=(32, 32),
        state_names=("x",),
        action_names=("x",),
        delta_mask=(True,),
    )
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(Embodiment.from_json, (robot.to_json(),)) == robot
