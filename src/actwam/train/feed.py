"""The batches of a stage, each made while the one before is used."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from actwam.data.loader import Mixture
from actwam.train.step import Part

AHEAD = 2
"""Batches that are made beforehand."""
SILENCE = 60.0
"""Seconds without a batch that are said: a disk or a network may hang for ever, and nothing else would tell."""


class Feed:
    """What this process computes of every batch from step `first` on: the parts of `rows`. `waited` counts the seconds
    that its caller waited.
    """

    def __init__(
        self, batches: Mixture, rows: Sequence[Sequence[int]], first: int, last: int, say: Callable[[str], None]
    ) -> None:
        self.waited = 0.0
        self._batches, self._rows, self._say = batches, rows, say
        self._steps = iter(range(first, last))
        self._pool = ThreadPoolExecutor(1, "data")
        self._coming: list[tuple[int, Future[list[Part]]]] = []
        for _ in range(AHEAD):
            self._ask()

    def next(self) -> list[Part]:
        """The parts of the next batch. Raises what went wrong in making it."""
        step, coming = self._coming.pop(0)
        self._ask()
        began = time.perf_counter()
        while True:
            try:
                parts = coming.result(SILENCE)
            except TimeoutError:
                waited = time.perf_counter() - began
                self._say(f"the data of step {step} are not there after {waited:.0f} s: is the disk or the network?")
                continue
            self.waited += time.perf_counter() - began
            return parts

    def close(self) -> None:
        """Make no more."""
        self._pool.shutdown(cancel_futures=True)

    def _ask(self) -> None:
        step = next(self._steps, None)
        if step is not None:
            self._coming.append((step, self._pool.submit(self._made, step)))

    def _made(self, step: int) -> list[Part]:
        return [Part(self._batches.batch(step, rows), rows) for rows in self._rows]
