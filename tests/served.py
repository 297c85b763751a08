"""Policies behind a server, for tests that talk to one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tiny
import torch
from websockets.sync.client import ClientConnection, connect

from actwam.data.embodiment import Embodiment
from actwam.data.normalize import Normalizer
from actwam.data.quantiles import compute_stats
from actwam.data.transforms import RobotTransform
from actwam.policy import Policy
from actwam.serve.server import PolicyServer, ServerConfig, running
from actwam.types import Observation


def policy_of(robot: Embodiment | None = None, **changes: Any) -> Policy:
    """Of the tiny model, for any robot whose cameras are head, left and right."""
    robot = robot or tiny.robot(0)
    random, widths = np.random.default_rng(1), (len(robot.state_names), len(robot.action_names))

    def normalizer(names: tuple[str, ...]) -> Normalizer:
        return Normalizer(compute_stats(random.normal(size=(50, len(names))).astype(np.float32), names))

    normalizers = normalizer(robot.state_names), normalizer(robot.action_names)
    transform = RobotTransform(robot, tiny.LAYOUT, *normalizers, *widths)
    model = tiny.model(state_width=widths[0], action_width=widths[1])
    checkpoint = tiny.checkpoint(model=model, robots=(transform,), **changes)
    return Policy(checkpoint, transform, checkpoint.table, torch.device("cpu"))


@contextlib.contextmanager
def serving(policy: Policy, **config: Any) -> Iterator[str]:
    """A server on a port of its own: the address."""
    with running(PolicyServer(policy, ServerConfig(port=0, **config))) as address:
        yield address


def dial(address: str, **more: Any) -> ClientConnection:
    """A raw connection: bytes and texts as they are."""
    return connect(address, compression=None, max_size=None, proxy=None, **more)


def request(seen: Observation, **more: Any) -> dict[str, Any]:
    """What ActWAM's own client asks."""
    return {"actwam": 1, "id": 0, "images": seen.images, "state": seen.state, "prompt": seen.instruction, **more}
