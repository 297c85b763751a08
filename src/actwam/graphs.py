"""CUDA graphs: all kernels of a call launched at once, instead of one by one from Python."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

KEPT = 8
"""Graphs that are kept: the last ones asked for. Each holds what its call allocates."""
WARMUP = 3
"""Calls before one is captured: libraries allocate and choose kernels in the first ones."""

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Captured:
    """A call that can be repeated: write into `inputs`, call `replay`, read `output` before the next one."""

    inputs: tuple[Tensor, ...]
    output: Tensor
    replay: Callable[[], None]


def capture(function: Function, inputs: Sequence[Tensor]) -> Captured:
    """Capture `function(*inputs)`, which must not wait for the device. `inputs` are on one GPU, and are copied.

    Under inference mode, as `Policy` calls it, nothing is kept for a backward pass.
    """
    with torch.cuda.device(inputs[0].device):
        own, side, graph = tuple(tensor.clone() for tensor in inputs), torch.cuda.Stream(), torch.cuda.CUDAGraph()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARMUP):
                function(*own)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            output = function(*own)
    return Captured(own, output, graph.replay)


class Graphs:
    """Functions that are captured when they are first called with tensors of some shapes, and replayed from then on.

    A graph reads weights where they lay when it was captured. When those of a module that it was made for lie
    elsewhere, or what it was made from is another object, it is captured anew: no answer comes from weights that are
    gone.
    """

    def __init__(self, capture: Callable[[Function, Sequence[Tensor]], Captured] = capture) -> None:
        self._capture = capture
        self._kept: dict[Hashable, _Graph] = {}
        self._one_at_a_time = threading.Lock()

    def call(
        self,
        function: Function,
        inputs: Sequence[Tensor],
        *,
        name: Hashable,
        modules: Sequence[nn.Module],
        made_from: Sequence[object],
    ) -> Tensor:
        """`function(*inputs)`, where the function is the same for the same `name`, reads the weights of `modules` and
        the objects `made_from`. Says by a warning when other shapes than before cost a capture.
        """
        with self._one_at_a_time:
            key = name, tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in inputs)
            graph = self._kept.pop(key, None)
            if graph is None or not graph.holds(made_from):
                if any(other[0] == name for other in self._kept if isinstance(other, tuple)):
                    warnings.warn(
                        f"a CUDA graph is captured for inputs of {', '.join(str(tuple(x.shape)) for x in inputs[:3])}, "
                        "unlike those before: this call takes longer",
                        stacklevel=2,
                    )
                graph = _Graph(self._capture(function, inputs), tuple(made_from), _places(modules))
            self._kept[key] = graph  # the newest come last
            for old in list(self._kept)[:-KEPT]:
                del self._kept[old]
            # as few kernels as can be: an instruction alone is a hundred tensors
            torch._foreach_copy_(list(graph.captured.inputs), list(inputs), non_blocking=True)
            graph.captured.replay()
            return graph.captured.output.clone()


Place = tuple[Mapping[str, Tensor | None], str, int]
"""Where a module keeps a tensor, under which name, and its address."""


@dataclass(frozen=True)
class _Graph:
    captured: Captured
    made_from: tuple[object, ...]
    places: tuple[Place, ...]

    def holds(self, made_from: Sequence[object]) -> bool:
        """Whether nothing that it reads has moved or is another."""
        return all(a is b for a, b in zip(self.made_from, made_from, strict=True)) and all(
            (tensor := owner.get(name)) is not None and tensor.data_ptr() == address
            for owner, name, address in self.places
        )


def _places(modules: Sequence[nn.Module]) -> tuple[Place, ...]:
    """Of all parameters and buffers."""
    owners: list[Mapping[str, Tensor | None]] = [
        owner for module in modules for each in module.modules() for owner in (each._parameters, each._buffers)
    ]
    return tuple(
        (owner, name, tensor.data_ptr()) for owner in owners for name, tensor in owner.items() if tensor is not None
    )
