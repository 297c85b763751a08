"""What the machine could do at best: how long the matrix products of a call take at the rates that PyTorch reaches."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from actwam.bench.latency import acting, launched_one_by_one, wait_for
from actwam.policy import Policy
from actwam.types import Observation

aten = torch.ops.aten
FLOPS = {**flop_registry, aten._int_mm: flop_registry[aten.mm]}
"""How to count what a product multiplies; PyTorch knows no count of int8."""
TRIES = 20
LARGEST_COPY = 512_000_000
SIDE = {"cpu": 2048, "cuda": 8192}
"""Of the square matrices that the rate of products is measured with."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Bytes a second that a copy reads and writes, and multiplications and additions a second of matrix products, at
    best.
    """

    bytes_per_s: float
    flops_per_s: float

    def to_json(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Product:
    """Multiplications and additions of one matrix product, convolution or attention, and the bytes of its operands and
    its result.
    """

    flops: float
    bytes: int


def products_of(policy: Policy, observations: Sequence[Observation]) -> list[Product]:
    """What acting multiplies, counted in a call that follows others, so that what is kept from call to call is there,
    and a policy that looks back looks back as far as it can.

    Raises ValueError as `Policy.act` does.
    """
    # later it would look back on less at times: of too long a memory it keeps the newer half
    before = max(1, len(policy.checkpoint.window.history_offsets))
    act = acting(launched_one_by_one(policy), observations)
    for call in range(before):
        act(call)
    with torch.inference_mode(), _Products() as counted:
        act(before)
    return counted.found


def floor(products: Sequence[Product], rates: Rates) -> float:
    """Milliseconds if a product takes as long as the longer of its arithmetic and its bytes, and all else is free."""
    return 1e3 * sum(max(each.flops / rates.flops_per_s, each.bytes / rates.bytes_per_s) for each in products)


def measure_rates(device: torch.device, dtype: torch.dtype, nbytes: int) -> Rates:
    """The best of some tries. What is copied is `nbytes` large, as large as what acting reads: a small model may stay
    in a cache from call to call, and then it is the cache's rate that bounds it.
    """
    source = torch.ones(min(nbytes, LARGEST_COPY) // dtype.itemsize, dtype=dtype, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / _best(lambda: target.copy_(source), device)
    side = SIDE.get(device.type, SIDE["cpu"])
    a, b = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
    multiplied = 2 * side**3 / _best(lambda: torch.mm(a, b), device)
    return Rates(bytes_per_s=copied, flops_per_s=multiplied)


def _best(action: Callable[[], Tensor], device: torch.device) -> float:
    """Seconds of the fastest of several tries."""
    times = []
    for _ in range(TRIES):
        wait_for(device)
        start = time.perf_counter()
        action()
        wait_for(device)
        times.append(time.perf_counter() - start)
    return min(times)


class _Products(TorchDispatchMode):
    """Notes every product while it is entered. Attention counts as one: its scores need never be written."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Product] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs, packet = kwargs or {}, func.overloadpacket
        attention = packet is aten.scaled_dot_product_attention
        if not attention and packet not in FLOPS:
            with self:
                result = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if result is NotImplemented else result
        result = func(*args, **kwargs)
        count = 4 * args[0].numel() * args[1].shape[-2] if attention else FLOPS[packet](*args, **kwargs, out_val=result)
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        self.found.append(Product(float(count), sum(each.numel() * each.itemsize for each in tensors)))
        return result
