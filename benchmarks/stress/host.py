"""A policy server in a process of its own, and what Linux says of that process."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

import numpy as np
import torch

from actwam.bench.shapes import Shape, random_policy, shape_named
from actwam.data.loader import Window
from actwam.data.transforms import layout_of
from actwam.policy import Policy
from actwam.serve.server import PolicyServer, ServerConfig, running
from actwam_client.line import Address

PRELOAD = ("actwam.serve.server", "benchmarks.stress.host")
SCHEDULED = 2
"""In the number of the clock of a process: its processor time, as `clock_getcpuclockid` makes it."""
STARTS_WITHIN, ENDS_WITHIN = 120.0, 20.0
"""Seconds, of a busy machine."""


@dataclass(frozen=True)
class Served:
    """What a process serves: a policy with random weights by its shape (`fast`, or one of `bench.shapes`), what it
    computes in, the pixels of its square pictures where they are others than the shape's, the rate, the threads that
    compute (None: as many as PyTorch takes by itself), and `ServerConfig`.
    """

    shape: str = "fast"
    dtype: str = "float32"
    pixels: int | None = None
    fps: float = 30
    threads: int | None = 1
    config: Mapping[str, Any] = field(default_factory=dict)

    def policy(self) -> Policy:
        """Always the same weights."""
        shape = fast() if self.shape == "fast" else shape_named(self.shape)
        size = shape.robot.image_size if self.pixels is None else (self.pixels, self.pixels)
        robot = replace(shape.robot, image_size=size, fps=self.fps)
        shape = replace(shape, robot=robot, layout=layout_of(robot, shape.layout.height, shape.layout.width))
        return random_policy(shape, dtype=getattr(torch, self.dtype))

    def server(self) -> PolicyServer:
        return PolicyServer(self.policy(), ServerConfig(**{"port": 0, **self.config}))


def fast() -> Shape:
    """A policy that answers in a millisecond or two: `tiny` with one layer, one step, and pictures of 32 x 32."""
    tiny = shape_named("tiny")
    robot = replace(tiny.robot, image_size=(32, 32))
    return replace(
        tiny,
        model=replace(tiny.model, layers=1),
        robot=robot,
        layout=layout_of(robot, 48, 32),
        window=Window(action_horizon=8, future_offsets=(8,)),
        sampling=replace(tiny.sampling, num_steps=1),
    )


class Host:
    """A server process. `address` is where it listens."""

    def __init__(self, served: Served, log: Path) -> None:
        """Raises RuntimeError when it does not start."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOAD))
        self._ours, theirs = context.Pipe()
        self.log = log
        self._process = context.Process(target=_serve, args=(served, theirs, str(log)), daemon=True)
        self._process.start()
        theirs.close()
        if not self._ours.poll(STARTS_WITHIN) or not isinstance(address := self._ours.recv(), str):
            raise RuntimeError(f"the server did not start: {log.read_text()}")
        self.address = address

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def alive(self) -> bool:
        return self._process.is_alive()

    def rss(self) -> float:
        """Megabytes that are resident."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def threads(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def files(self) -> int:
        """Open descriptors."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def seconds(self) -> float:
        """Of processor time that it has used."""
        return time.clock_gettime((~self.pid << 3) | SCHEDULED)

    def metric(self, name: str) -> float:
        """One of the gauges that it exports."""
        page = build_opener(ProxyHandler({})).open(self.address.replace("ws:", "http:") + "/metrics", timeout=30)
        lines = page.read().decode().splitlines()
        return float(next(line for line in lines if line.startswith(f"actwam_{name} ")).split()[1])

    def tracebacks(self) -> dict[str, int]:
        """What nobody answered for: the last two lines of every kind of traceback in its log, and how many."""
        found: Counter[str] = Counter()
        for text in self.log.read_text(errors="replace").split("Traceback (most recent call last):")[1:]:
            lines = re.split(r"\n(?=\S)", text, maxsplit=2)  # the frames are indented, the error is not
            places = re.findall(r'File "[^"]*?([^/"]+)", line (\d+)', lines[0])
            found[f"{lines[1][:150]} at {':'.join(places[-1]) if places else '?'}"] += 1
        return dict(found)

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def close(self) -> None:
        """End it, in good order if it still can."""
        with contextlib.suppress(OSError):
            self.send(signal.SIGCONT)
            self._ours.send(None)
        self._process.join(ENDS_WITHIN)
        self._process.kill()
        self._process.join()
        self._ours.close()


@contextlib.contextmanager
def serving(served: Served) -> Iterator[Host]:
    """A server process while this is entered."""
    with tempfile.TemporaryDirectory() as folder:
        host = Host(served, Path(folder) / "log")
        try:
            yield host
        finally:
            host.close()


def _serve(served: Served, pipe: Connection, log: str) -> None:
    place = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(place, 1)
    os.dup2(place, 2)
    if served.threads is not None:
        torch.set_num_threads(served.threads)
    with running(served.server()) as address:
        pipe.send(address)
        with contextlib.suppress(EOFError):
            pipe.recv()


def figure(measured: float, *, at_most: float | None = None, at_least: float | None = None) -> dict[str, Any]:
    """A result and what it must be."""
    limit = {"at_most": at_most} if at_least is None else {"at_least": at_least}
    holds = measured <= at_most if at_most is not None else at_least is None or measured >= at_least
    return {"measured": round(float(measured), 4), **limit, "holds": bool(holds)}


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Milliseconds: p50, p95, p99, the largest, and of how many."""
    p50, p95, p99 = (round(float(value), 3) for value in 1e3 * np.percentile(seconds, [50, 95, 99]))
    return {"p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "max_ms": round(1e3 * max(seconds), 3), "n": len(seconds)}


def patient(address: str) -> Address:
    """For clients that are to wait however busy the machine is."""
    return Address(address, timeout=60, connect_timeout=60)


def waited_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether it became true within so long."""
    until = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < until:
        time.sleep(0.01)
    return met
