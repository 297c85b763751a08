"""CUDA graphs: all kernels of a call launched at once, instead of one by one from Python."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_ONE_AT_A_TIME = threading.Lock()
"""No other graph is captured or replayed while one is: a capture notes all that reaches its stream, and inputs are
written before the replay that reads them.
"""
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
        try:
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                output = function(*own)
        except RuntimeError as error:
            raise RuntimeError(
                "this call cannot be captured as a CUDA graph; act without one: "
                "dataclasses.replace(policy, exact=Exact(graph=False))"
            ) from error
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
        with _ONE_AT_A_TIME:
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
            _copy(graph.captured.inputs, inputs)
            graph.captured.replay()
            return graph.captured.output.clone()


def _copy(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """In as few kernels as can be, one for those of a dtype: an instruction alone is a hundred tensors."""
    alike: dict[torch.dtype, list[int]] = {}
    for i, source in enumerate(sources):
        alike.setdefault(source.dtype, []).append(i)
    for which in alike.values():
        torch._foreach_copy_([targets[i] for i in which], [sources[i] for i in which], non_blocking=True)


Place = tuple[Mapping[str, Tensor | nn.Module | None], str, Tensor | nn.Module, tuple[int, ...]]
"""Who holds a tensor or a module, under which name, what it held, and where that lay in memory."""


@dataclass(frozen=True)
class _Graph:
    captured: Captured
    made_from: tuple[object, ...]
    places: tuple[Place, ...]

    def holds(self, made_from: Sequence[object]) -> bool:
        """Whether nothing that it reads has moved or is another."""
        return all(a is b for a, b in zip(self.made_from, made_from, strict=True)) and all(
            owner.get(name) is held and _addresses(held) == lay for owner, name, held, lay in self.places
        )


def _places(modules: Sequence[nn.Module]) -> tuple[Place, ...]:
    """Of all parameters and buffers, and of the modules between them and these."""
    owners: list[Mapping[str, Tensor | nn.Module | None]] = [
        owner
        for module in modules
        for each in module.modules()
        for owner in (each._parameters, each._buffers, each._modules)
    ]
    return tuple(
        (owner, name, held, _addresses(held)) for owner in owners for name, held in owner.items() if held is not None
    )


def _addresses(held: Tensor | nn.Module) -> tuple[int, ...]:
    """Of a tensor; of one that consists of others, as rounded weights do, those of them all."""
    if isinstance(held, nn.Module):
        return ()
    if is_traceable_wrapper_subclass(held):
        return tuple(a for name in held.__tensor_flatten__()[0] for a in _addresses(getattr(held, name)))
    return (held.data_ptr(),)
