"""Products are counted, and a floor follows from them. What a machine reaches is measured, and asserted nowhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch
import torch.nn.functional as F

from actwam.bench.roofline import Product, Rates, _Products, floor, measure_rates, products_of
from actwam.bench.ways import JOINTLY, NOTHING
from actwam.data.loader import Window
from actwam.policy import Policy
from actwam.sampler import Exact
from actwam.tokens import JOINT


def counted(action: object) -> list[Product]:
    assert callable(action)
    with torch.inference_mode(), _Products() as products:
        action()
    return products.found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_linear_layer_is_one_product(dtype: torch.dtype) -> None:
    x, weight, bias = torch.ones(2, 5, 3, dtype=dtype), torch.ones(4, 3, dtype=dtype), torch.ones(4, dtype=dtype)
    (product,) = counted(lambda: F.linear(x, weight, bias))
    assert product.flops == 2 * (2 * 5) * 3 * 4
    assert product.bytes == (2 * 5 * 3 + 4 * 3 + 4 + 2 * 5 * 4) * dtype.itemsize


def test_a_product_of_bytes_is_counted_too() -> None:
    x, weight = torch.ones(5, 3, dtype=torch.int8), torch.ones(3, 4, dtype=torch.int8)
    (product,) = counted(lambda: torch._int_mm(x, weight))
    assert (product.flops, product.bytes) == (2 * 5 * 3 * 4, 5 * 3 + 3 * 4 + 4 * 5 * 4)


def test_attention_is_one_product_whose_scores_are_not_written() -> None:
    q, k, v = torch.ones(1, 2, 3, 8), torch.ones(1, 2, 5, 8), torch.ones(1, 2, 5, 8)
    (product,) = counted(lambda: F.scaled_dot_product_attention(q, k, v))
    assert product.flops == 2 * (2 * 3 * 5 * 8) * 2
    assert product.bytes == (2 * 3 * 8 + 2 * 2 * 5 * 8 + 2 * 3 * 8) * 4


def test_what_is_no_product_costs_nothing() -> None:
    assert counted(lambda: torch.ones(3).softmax(0) + 1) == []


def test_the_floor_takes_the_longer_of_arithmetic_and_bytes() -> None:
    rates = Rates(bytes_per_s=1e9, flops_per_s=1e12)
    assert floor([Product(2e12, 1000), Product(1e3, 3_000_000_000)], rates) == pytest.approx(2000 + 3000)


def test_what_is_kept_between_calls_is_not_counted() -> None:
    checkpoint = tiny.checkpoint("two")
    own = Policy(checkpoint, checkpoint.robot("robot_0"), checkpoint.table, torch.device("cpu"))
    seen = [tiny.observation()]

    def flops(policy: Policy) -> float:
        return sum(product.flops for product in products_of(policy, seen))

    fewest = flops(own)
    assert fewest == flops(own)
    assert fewest < flops(replace(own, exact=Exact(levels=False))) < flops(replace(own, exact=NOTHING))
    assert all(fewest < flops(replace(own, table=table)) for table in JOINTLY.values())


def test_what_is_looked_back_on_is_counted() -> None:
    def flops(history: tuple[int, ...]) -> float:
        window = Window(action_horizon=tiny.HORIZON, future_offsets=tiny.OFFSETS, history_offsets=history)
        checkpoint = tiny.checkpoint("two", window=window, table=JOINT)
        made = Policy(checkpoint, checkpoint.robot("robot_0"), JOINT, torch.device("cpu"))
        return sum(product.flops for product in products_of(made, [tiny.observation()]))

    assert flops(()) < flops((-2,)) < flops((-4, -2))


def test_rates_are_measured() -> None:
    rates = measure_rates(torch.device("cpu"), torch.float32, 1_000_000)
    assert rates.bytes_per_s > 0
    assert rates.flops_per_s > 0
