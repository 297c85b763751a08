"""What a model needs in memory, counted before anything large is allocated, and what there is.

The count runs the real code, step for step, on tensors that have a shape and no values (`FakeTensorMode`), and adds up
what is alive. It knows nothing of what kernels and allocators take beside that: `RESERVE` stands for them.
"""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

from actwam.model.codec import read_codec
from actwam.model.config import TransformerConfig
from actwam.model.transformer import TextContext, WorldActionTransformer
from actwam.model.wan import WanCodec
from actwam.sampler import Sampling, look_back, sample
from actwam.tokens import NEVER_NOISY, Table
from actwam.types import Context, Group, Memory

RESERVE = 0.05
"""Of everything else, for workspaces of kernels and for holes between what is allocated."""
FIXED_RESERVE = {"cpu": 400_000_000, "cuda": 500_000_000}
"""For kernels that are loaded when first needed, and, on a CPU, for what the C library keeps of what was freed: 0.2 to
0.45 GB beyond the count in `benchmarks/results/memory.json`, whatever the case. That of a GPU is a guess."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes, by what they are for. Gradients come while activations go: `at_once` is the most that both take together.

    `activations` is what the forward pass leaves for the backward pass, or, in acting, the most that it takes; there
    `at_once` is the most of that and of encoding a picture. `checkpoint` is what writing one takes, when no gradients
    and no activations are alive, and `host` what it takes of the machine's memory when the model is on a GPU.

    A text encoder is not counted. It runs on the CPU; UMT5, 11 GB at full size, is mapped from its files at the first
    instruction whose embedding is not cached on disk, and stays.
    """

    weights: int
    optimizer: int = 0
    average: int = 0
    gradients: int = 0
    activations: int = 0
    at_once: int = 0
    checkpoint: int = 0
    instructions: int = 0
    codec: int = 0
    reserve: int = 0
    host: int = 0
    advice: str = ""
    """What to do when it does not fit."""

    @property
    def total(self) -> int:
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """What adds up to the total, the largest first."""
        step = "gradients and activations" if self.gradients else "activations"
        parts = {
            "weights": self.weights,
            "optimizer": self.optimizer,
            "moving average": self.average,
            step: self.at_once,
            "writing a checkpoint": self.checkpoint,
            "instructions": self.instructions,
            "codec": self.codec,
            "reserve": self.reserve,
        }
        return dict(sorted(((what, n) for what, n in parts.items() if n), key=lambda part: -part[1]))

    def table(self) -> str:
        """Lines for the terminal, in GB of 1e9 bytes."""
        rows = [*self.parts().items(), ("total", self.total)]
        lines = [f"  {what:<26}{bytes_ / 1e9:9.3f} GB" for what, bytes_ in rows]
        if self.gradients:
            note = f"gradients {self.gradients / 1e9:.3f}, activations {self.activations / 1e9:.3f}"
            lines = [f"{line}  ({note})" if "gradients" in line else line for line in lines]
        if self.host:
            lines.append(f"  on the host: {self.host / 1e9:.3f} GB, while a checkpoint is written")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        return {**{name: value for name, value in asdict(self).items() if name != "advice"}, "total": self.total}


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """What a model reads at once: the latent grid (h, w), the latent frames of the future, the actions, and the moments
    of history at most.
    """

    grid: tuple[int, int]
    future_frames: int
    actions: int
    history: int = 0

    def shapes(self, config: TransformerConfig, batch: int) -> dict[Group, tuple[int, ...]]:
        """Of the values of all groups, history and future left out where there is none."""
        shapes = {
            Group.HISTORY: (batch, config.latent_channels, self.history, *self.grid),
            Group.OBSERVATION: (batch, config.latent_channels, 1, *self.grid),
            Group.STATE: (batch, 1, config.state_width),
            Group.ACTION: (batch, self.actions, config.action_width),
            Group.FUTURE: (batch, config.latent_channels, self.future_frames, *self.grid),
        }
        absent = {Group.HISTORY: not self.history, Group.FUTURE: not self.future_frames}
        return {group: shape for group, shape in shapes.items() if not absent.get(group)}


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """What a codec makes of a picture, and takes for it.

    The latents of one picture are `grid` (h, w); later ones share a latent frame by `time_stride`. `weights` and
    `activations` are bytes: those of the codec itself, and the most that it allocates while it encodes one picture.
    """

    grid: tuple[int, int]
    time_stride: int
    weights: int
    activations: int


class Ledger(TorchDispatchMode):
    """While it is entered, counts the bytes of what is allocated and still alive, and the most that ever was.

    `given` was there before, and is not counted.
    """

    def __init__(self, given: Iterable[Tensor]) -> None:
        super().__init__()
        self.alive = self.most = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in given}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in [out] if isinstance(out, Tensor) else tree_leaves(out):
            if isinstance(x, Tensor):
                self._count(x.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:  # a view, or the result of an operation in place
            return
        self._known.add(key)
        self.alive += size
        self.most = max(self.most, self.alive)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors, those inside a quantised one included."""
    total = 0
    for tensor in tensors:
        if is_traceable_wrapper_subclass(tensor):
            total += size_of(getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
        else:
            total += tensor.numel() * tensor.element_size()
    return total


def stand_in(model: WorldActionTransformer, device: torch.device) -> torch.dtype:
    """The dtype that counts as bfloat16 on `device`; weights of the (fake) model that are in it are exchanged.

    The count runs on the CPU, because PyTorch without CUDA cannot differentiate fake CUDA tensors. There bfloat16 takes
    another way through attention than on a GPU (`layers.attend`), but float16, which is as large, takes the same.
    """
    if device.type == "cpu":
        return torch.bfloat16
    for parameter in model.parameters():
        if parameter.dtype == torch.bfloat16:
            parameter.data = parameter.data.to(torch.float16)
    return torch.float16


def device_of(text: str, *, here: bool = True) -> torch.device:
    """The device of this name: cpu, cuda, or cuda:1 for the second GPU.

    Raises ValueError on any other, and on a GPU that PyTorch does not find; not on that where it need not be `here`,
    because nothing is computed on it.
    """
    if not re.fullmatch(r"cpu|cuda(:(\d|[1-9]\d))?", text):
        raise ValueError(f"device {text!r} is unknown: name cpu, cuda, or cuda:1 for the second GPU")
    device = torch.device(text)
    if here and device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {text} is not here: PyTorch {torch.__version__} finds {torch.cuda.device_count()} CUDA devices; "
            "see `actwam doctor`, or name cpu"
        )
    return device


def encoding(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], height: int, width: int, dtype: torch.dtype | None = None
) -> Encoding:
    """Of a picture of height x width pixels by the codec that `config` and `tensors` describe (`read_codec`), asked to
    compute in `dtype`.

    No tensor is read. Raises ValueError as `read_codec` does, and on a picture that the codec does not read.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        cast = dtype if config.get("kind") == WanCodec.kind else None  # the others compute in what they are stored in
        fakes = {name: mode.from_tensor(tensor).to(cast or tensor.dtype) for name, tensor in tensors.items()}
        picture = torch.empty(1, 1, height, width, 3, dtype=torch.uint8)
    with Ledger([*fakes.values(), picture]) as ledger:
        codec = read_codec(config, fakes)
        made = ledger.most = ledger.alive  # the most was while it was built, on the meta device
        grid = codec.encode(picture).shape[3:]
    return Encoding(
        grid=(grid[0], grid[1]),
        time_stride=codec.time_stride,
        weights=size_of(fakes.values()) + made,
        activations=ledger.most - made,
    )


def acting_need(
    config: TransformerConfig,
    table: Table,
    tokens: Tokens,
    *,
    dtype: torch.dtype,
    device: torch.device,
    sampling: Sampling,
    batch: int = 1,
    codec: Encoding | None = None,
    instructions: int = 0,
) -> Need:
    """To act with `batch` observations at once, each with an instruction of its own, while the keys and values of as
    many `instructions` are kept as earlier calls have left, and the longest memory of each is handed over.

    Imagining is not counted: it takes more, above all for decoding the video.
    """
    with torch.device("meta"):
        model = WorldActionTransformer(config).to(dtype)
    weights = size_of(model.parameters())
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        stand_in(model, device)
        shaped = {group: torch.empty(shape) for group, shape in tokens.shapes(config, batch).items()}
        instruction = torch.empty(batch, config.text_tokens, config.text_width)
        robots = torch.zeros(batch, dtype=torch.long)
    given = [*model.parameters(), *shaped.values(), instruction, robots]
    with torch.no_grad(), Ledger(given) as ledger:
        embedded = model.text_context(instruction)
        kept = instructions * ledger.alive // batch
        values = {group: torch.empty_like(value) for group, value in shaped.items()}  # what is seen, felt and drawn
        memory, context = _looked_back(model, table, values.get(Group.HISTORY), embedded, robots)
        sample(
            model,
            table,
            given={group: value for group, value in values.items() if group in NEVER_NOISY},
            noise={group: value for group, value in values.items() if group not in NEVER_NOISY},
            wanted=[Group.ACTION],
            text=embedded,
            embodiment=robots,
            sampling=sampling,
            context=context,
        )
    del memory  # which its owner keeps as long as that
    advice = "" if dtype == torch.bfloat16 else "act in bfloat16 (--precision bf16)"
    need = Need(
        weights=weights,
        activations=ledger.most,
        at_once=max(ledger.most, batch * codec.activations if codec else 0),
        instructions=kept,
        codec=codec.weights if codec else 0,
        advice=advice,
    )
    return with_reserve(need, device)


def _looked_back(
    model: WorldActionTransformer,
    table: Table,
    history: Float[Tensor, "B Z R h w"] | None,
    text: TextContext,
    robots: Int[Tensor, "B"],
) -> tuple[Memory | None, Context | None]:
    """The longest memory that a policy is handed, and the context of the history that it makes of it."""
    if history is None:
        return None, None
    before = look_back(model, table, history[:, :, :-1], text, robots, None) if history.shape[2] > 1 else None
    return Memory("", history.clone(), before), look_back(model, table, history, text, robots, before)


def with_reserve(need: Need, device: torch.device) -> Need:
    """The need with what the libraries and the allocator of a device take on top."""
    return Need(**{**asdict(need), "reserve": FIXED_RESERVE[device.type] + int(RESERVE * need.total)})


def available(device: torch.device) -> int:
    """Bytes that can still be allocated there: free on a GPU; on a CPU, in the machine and in every control group."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = _fields(meminfo)["MemAvailable:"] * 1024
    return min([free, *_control_groups()])


def require(need: Need, device: torch.device) -> None:
    """Raises ValueError, naming the largest parts and what to do, when the need does not fit on the device, or what a
    GPU's checkpoint takes of the host not there.
    """
    room = available(device)
    if need.total > room:
        largest = ", ".join(f"{what} {size / 1e9:.1f}" for what, size in list(need.parts().items())[:3])
        advice = f"; {need.advice}" if need.advice else ""
        raise ValueError(
            f"this needs {need.total / 1e9:.1f} GB of memory, and {device} has {room / 1e9:.1f} GB to give "
            f"(most of it: {largest}){advice}"
        )
    if need.host and need.host > (room := available(torch.device("cpu"))):
        raise ValueError(
            f"writing a checkpoint needs {need.host / 1e9:.1f} GB of memory on the host, which has {room / 1e9:.1f} GB "
            "to give; train less of the model (freeze or lora), take optimizer adamw8bit, or a larger machine"
        )


def _control_groups(membership: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Bytes left below the limit of each control group that this process is in, in either version of them."""
    files = {
        "": ("", "memory.max", "memory.current", "inactive_file"),
        "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    }
    left = []
    for line in membership.read_text().splitlines() if membership.exists() else ():
        _, controllers, place = line.split(":", 2)
        for controller in {"", "memory"} & set(controllers.split(",")):
            root, limit, usage, cache = files[controller]
            base = mount / root
            own = base / place.lstrip("/")
            for group in (own, *own.parents):
                if group.is_relative_to(base) and (group / limit).exists() and (group / usage).exists():
                    most = (group / limit).read_text().strip()
                    if most != "max":
                        droppable = _fields(group / "memory.stat").get(cache, 0)
                        left.append(int(most) - int((group / usage).read_text()) + droppable)
    return left


def _fields(path: Path) -> dict[str, int]:
    """The numbers of a file of lines `name number ...`."""
    return {words[0]: int(words[1]) for words in map(str.split, path.read_text().splitlines())}
