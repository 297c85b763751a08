"""Many processes that train one model, each computing some samples of every batch (PyTorch's FSDP2, `fully_shard`).

`torchrun` starts them, and nothing else changes: without it there is one process, which shares nothing with nobody.
Weights, their gradients, averages and moments are cut in as many pieces as there are processes (FSDP), or in `shard`
pieces of which there are several copies (HSDP; 1: whole copies everywhere). The model knows nothing of it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
import torch.export
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from actwam.memory import device_of
from actwam.model.block import Level, Stream
from actwam.model.context import Told
from actwam.model.transformer import WorldActionTransformer

PATIENCE = timedelta(hours=2)
"""How long processes wait for one another: one may encode a dataset meanwhile."""


@dataclass(frozen=True)
class World:
    """The processes that train together, and which of them this is."""

    rank: int = 0
    size: int = 1
    mesh: DeviceMesh | None = None
    writers: dist.ProcessGroup | None = None
    """The same processes, for what they do in the background."""

    @property
    def first(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    @property
    def pieces(self) -> int:
        """In how many pieces a copy of the model is cut."""
        return 1 if self.mesh is None else self.mesh.size(self.mesh.ndim - 1)

    def rows(self, batch_size: int, most: int | None = None) -> list[range]:
        """Which samples of a batch this process computes, in parts of at most `most` at once, all of one size.

        Raises ValueError when that does not divide.
        """
        own = batch_size // self.size
        parts = -(-own // (most or own or 1))
        if own < 1 or batch_size % (self.size * parts):
            among = f"{self.size} processes" + (f" in {parts} parts" if parts > 1 else "")
            raise ValueError(
                f"a batch of {batch_size} does not divide among {among}: choose another batch_size, micro_batch or "
                "number of processes"
            )
        return [range(self.rank + self.size * part, batch_size, self.size * parts) for part in range(parts)]

    def added(self, numbers: Sequence[Sequence[int]]) -> list[list[int]]:
        """The sum over all processes of a table of counts."""
        table = torch.tensor(numbers)
        if self.mesh is not None:
            dist.all_reduce(table)
        return table.tolist()

    def total(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """What the processes add to losses, added up."""
        sums = torch.stack([value.double() for value in values.values()]).cpu()
        if self.mesh is not None:
            dist.all_reduce(sums)
        return dict(zip(values, sums.tolist(), strict=True))

    def everyones(self, rows: Sequence[int]) -> list[int]:
        """Those of all processes, sorted."""
        if self.mesh is None:
            return sorted(rows)
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, list(rows))
        return sorted(row for each in found for row in each)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.mesh is not None:
            dist.barrier()

    def require_same(self, what: Mapping[str, str]) -> None:
        """Raises ValueError, naming them, when things are not the same in all processes."""
        if self.mesh is None:
            return
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, dict(what))
        if other := [name for name in what if len({each[name] for each in found}) > 1]:
            raise ValueError(
                f"{', '.join(other)} came out differently on the machines that train together: fit them on one, by "
                "training a step there, and start all from that"
            )

    def share(self, model: WorldActionTransformer) -> None:
        """Cut the weights of a model among the processes, in place; they begin as those of the first."""
        if self.mesh is None:
            return
        for kind in (Stream, Level, Told):
            _see_through(kind)
        for parameter in model.parameters():
            dist.broadcast(parameter.data, src=0)
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # nothing changes it in place
        for block in model.blocks:
            fully_shard(block, mesh=self.mesh)
        fully_shard(model, mesh=self.mesh)

    def gathered(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies on the CPU of whole tensors, for the first process; nothing for the others, which must ask too."""
        whole = {}
        for name, tensor in tensors.items():
            put_together = whole_tensor(tensor)
            if self.first:
                whole[name] = put_together.detach().to("cpu", copy=True)
        return whole

    def reduce_gradients(self, model: nn.Module, on: bool) -> None:
        """Whether the next backward pass exchanges gradients, or keeps them to be added to others."""
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(on)


ALONE = World()


@contextmanager
def joined(device: str, shard: int | None = None) -> Iterator[tuple[World, torch.device]]:
    """The world that `torchrun` started this process in, and its device: on GPUs one for each process of a machine.

    Raises ValueError on an unknown device, and when `shard` does not divide the number of processes.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE, device_of(device)
        return
    place = device_of(f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" else device)
    if size % (shard or size):
        raise ValueError(f"{size} processes do not divide into groups of {shard} that share one copy: choose a divisor")
    if place.type == "cuda":
        torch.cuda.set_device(place)
    dist.init_process_group("cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        pieces = shard or size
        shape, names = ((size,), ("shard",)) if pieces == size else ((size // pieces, pieces), ("copy", "shard"))
        mesh = init_device_mesh(place.type, shape, mesh_dim_names=names)
        yield World(dist.get_rank(), size, mesh, dist.new_group(backend="gloo", timeout=PATIENCE)), place
    finally:
        dist.destroy_process_group()


def whole_tensor(tensor: Tensor) -> Tensor:
    """A tensor that was cut among processes, put together: all of them must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@cache
def _see_through(kind: type) -> None:
    """Let FSDP find the tensors in the arguments of blocks: it hangs what it does in the backward pass on them."""
    torch.export.register_dataclass(kind)
