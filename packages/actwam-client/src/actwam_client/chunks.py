"""From chunks to one action for each control step, by counting executed steps and never the wall clock: see `Executor`.

A pure state machine without threads or clocks. Steps are actions that were executed; while the robot holds none is, so
a chunk that was long on its way loses the actions that were executed meanwhile and no others.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass

import numpy as np

from actwam_client.contract import Previous

STRATEGIES = ("switch", "ensemble", "rtc")


@dataclass(frozen=True)
class Request:
    """What to ask: with an observation taken now, before action number `step`. `number` tells requests apart."""

    number: int
    step: int
    previous: Previous | None


class Delay:
    """How many control steps an answer takes: the `quantile` of the last `window` (1: their largest), so that a spike
    is forgotten.
    """

    def __init__(self, window: int = 20, quantile: float = 1.0) -> None:
        if window < 1 or not 0 < quantile <= 1:
            raise ValueError(f"a delay has a window of 1 or more and a quantile in (0, 1], not {window} and {quantile}")
        self.window, self.quantile = window, quantile
        self._last: deque[int] = deque(maxlen=window)

    def add(self, steps: int) -> None:
        self._last.append(steps)

    def steps(self) -> int | None:
        """None before the first."""
        if not self._last:
            return None
        return sorted(self._last)[math.ceil(self.quantile * len(self._last)) - 1]


@dataclass(frozen=True)
class _Chunk:
    number: int
    step: int
    actions: np.ndarray

    def left(self, step: int) -> int:
        return self.step + len(self.actions) - step


class Executor:
    """Chunks of `action_horizon` actions, executed by a strategy.

    * `switch`: receding horizon. A new chunk replaces the old one when it comes, asked for so early that it is expected
      after `execute_horizon` actions (None: half of the chunk).
    * `ensemble`: a chunk is asked for whenever none is under way, and an action is the mean of all chunks that speak of
      its step, with weights exp(-decay n), n the steps by which it is newer than the oldest (ACT, arXiv 2304.13705,
      algorithm 2, where a chunk comes every step).
    * `rtc`: real-time chunking. As `switch`, but the request tells the policy which actions will be executed before it
      answers, and no others are: where the answer is later than that, the robot holds. So chunks fit together.

    `events` counts: `starved` (nothing left to execute), `late` (hold for an answer after the committed actions),
    `past` (a chunk came when all of it was past), `discarded` (an answer that nobody waits for), `delay above prefix`
    and `delay above chunk` (the usual delay is more than `max_prefix` or than what remains; what can be is committed).
    """

    def __init__(
        self,
        action_horizon: int,
        *,
        strategy: str = "switch",
        execute_horizon: int | None = None,
        max_prefix: int | None = None,
        decay: float = 0.01,
        delay: Delay | None = None,
    ) -> None:
        horizon = execute_horizon if execute_horizon is not None else max(1, action_horizon // 2)
        if strategy not in STRATEGIES:
            raise ValueError(f"strategy is one of {', '.join(STRATEGIES)}, not {strategy!r}")
        if not 1 <= horizon <= action_horizon:
            raise ValueError(f"execute_horizon {horizon} must be 1 to the {action_horizon} actions of a chunk")
        if strategy == "rtc" and max_prefix == 0:
            raise ValueError("this policy takes no committed actions: use strategy switch or ensemble")
        self.events: Counter[str] = Counter()
        self.step = 0
        self.waits: list[int] = []
        self.seams = Seams()
        self._strategy, self._horizon, self._max_prefix, self._decay = strategy, horizon, max_prefix, decay
        self._action_horizon = action_horizon
        self._delay = Delay() if delay is None else delay
        self.settings = {
            "strategy": strategy,
            "execute_horizon": horizon,
            "max_prefix": max_prefix,
            "decay": decay,
            "window": self._delay.window,
            "quantile": self._delay.quantile,
        }
        self._chunks: list[_Chunk] = []
        self._asked: Request | None = None
        self._number = self._ticks = self._asked_at = 0
        self._answered = self._starved = False

    def need(self) -> Request | None:
        """What to ask now, None while nothing is needed. It is under way until `offer`, `failed` or `drop`."""
        if self._asked is not None or not self._is_time():
            return None
        self._number += 1
        self._asked = Request(self._number, self.step, self._previous() if self._strategy == "rtc" else None)
        self._asked_at = self._ticks
        return self._asked

    def offer(self, request: Request, chunk: np.ndarray) -> bool:
        """The answer to `request`, (K, A); its first actions are for `request.step` on. False where it is not used.

        Raises ValueError on another shape.
        """
        if chunk.ndim != 2 or len(chunk) != self._action_horizon:
            raise ValueError(f"a chunk has {self._action_horizon} rows of actions, not shape {chunk.shape}")
        if request != self._asked:
            self.events["discarded"] += 1
            return False
        self._asked = None
        self.waits.append(self._ticks - self._asked_at)
        if self._answered:  # the first answer is a cold start, and says nothing of the next
            self._delay.add(self.waits[-1])
        self._answered = True
        new = _Chunk(request.number, request.step, chunk)
        if new.left(self.step) <= 0:
            self.events["past"] += 1
            return False
        self._chunks = [*self._chunks, new] if self._strategy == "ensemble" else [new]
        self._starved = False
        return True

    def failed(self, request: Request) -> None:
        """`request` was answered by an error: it may be asked again."""
        if request == self._asked:
            self._asked = None

    def next(self) -> np.ndarray | None:
        """The action of this control step, (A,); None where the robot must hold. Call it once in every control step."""
        self._ticks += 1
        self._chunks = [chunk for chunk in self._chunks if chunk.left(self.step) > 0]
        if not self._chunks:
            if self.seams.running and not self._starved:
                self.events["starved"] += 1
                self._starved = True
            return None
        if self._strategy == "rtc" and self._asked is not None and self.step >= self._asked.step + self._committed():
            self.events["late"] += 1
            return None
        action = self._mean()
        self.seams.add(self._chunks[-1].number, action)
        self.step += 1
        return action

    def drop(self) -> None:
        """Forgets all chunks and what is under way: its answer will be discarded."""
        self._chunks, self._asked, self._starved = [], None, False
        self.seams.pause()

    @property
    def starved(self) -> bool:
        """Whether the chunks ran out; not before the first chunk, and not after `drop`."""
        return self._starved

    @property
    def waiting(self) -> bool:
        """Whether there is no chunk."""
        return not self._chunks

    def _is_time(self) -> bool:
        if self._strategy == "ensemble" or not self._chunks:
            return True
        delay = self._delay.steps() or 0
        return self.step - self._chunks[-1].step >= self._horizon - delay

    def _committed(self) -> int:
        previous = self._asked.previous if self._asked is not None else None
        return previous.committed if previous is not None else 0

    def _previous(self) -> Previous | None:
        left = self._chunks[-1].left(self.step) if self._chunks else 0
        if left <= 0:
            return None
        left = min(left, self._action_horizon - 1)  # something of the new chunk must be its own
        most = left if self._max_prefix is None else min(left, self._max_prefix)
        delay = self._delay.steps()
        if delay is not None and delay > left:
            self.events["delay above chunk"] += 1
        elif delay is not None and delay > most:
            self.events["delay above prefix"] += 1
        chunk = self._chunks[-1]
        return Previous(chunk.actions, self.step - chunk.step, most if delay is None else min(delay, most))

    def _mean(self) -> np.ndarray:
        rows = [chunk.actions[self.step - chunk.step] for chunk in self._chunks]
        if len(rows) == 1:
            return rows[0]
        newer = np.array([chunk.step - self._chunks[0].step for chunk in self._chunks])
        weights = np.exp(-self._decay * newer)
        return np.asarray((weights / weights.sum()) @ np.stack(rows), rows[0].dtype)


class Seams:
    """The largest step between neighbouring executed actions, for each dimension, (A,): inside chunks and where one
    follows another. None before the first.
    """

    def __init__(self) -> None:
        self.inside: np.ndarray | None = None
        self.between: np.ndarray | None = None
        self._last: tuple[int, np.ndarray] | None = None

    @property
    def running(self) -> bool:
        """Whether there was an action since the last pause."""
        return self._last is not None

    def add(self, chunk: int, action: np.ndarray) -> None:
        if self._last is not None:
            change = np.abs(action - self._last[1])
            key = "inside" if chunk == self._last[0] else "between"
            largest = getattr(self, key)
            setattr(self, key, change if largest is None else np.maximum(largest, change))
        self._last = (chunk, action)

    def pause(self) -> None:
        """The robot stops: what comes next follows no action."""
        self._last = None
