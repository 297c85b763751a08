"""What eight clients get of one server that answers together what waits together, against one by one."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from typing import Any

import numpy as np

from actwam.bench.shapes import random_observation
from actwam_client.line import RemoteError
from actwam_client.remote import RemotePolicy
from benchmarks.stress.host import Host, Served, figure, patient, percentiles, serving

CLIENTS, TURNS = 8, 4
WAYS = {"together": 8, "one by one": 1}
"""By `max_batch`."""
CASES = (("tiny", "float32"), ("tiny", "bfloat16"), ("small", "float32"), ("small", "bfloat16"))
LEAST = 3.0
"""Times as many requests a second. It cannot hold where one request alone keeps the cores busy, as a larger model in
float32 does: eight take nearly eight times as long.
"""


def run(
    seconds: float, seed: int, cases: tuple[tuple[str, str], ...] = CASES, clients: int = CLIENTS
) -> dict[str, Any]:
    """`clients` that ask as soon as they were answered: of both servers in turns, `seconds` at a time, four turns."""
    rows = {f"{shape} {dtype}": _case(shape, dtype, seconds, seed, clients) for shape, dtype in cases}
    return {
        "seconds": seconds,
        "seed": seed,
        "clients": clients,
        "cases": rows,
        "figures": {
            f"{name}: requests a second, times those one by one": figure(row["times"], at_least=LEAST)
            for name, row in rows.items()
        },
    }


def _case(shape: str, dtype: str, seconds: float, seed: int, clients: int) -> dict[str, Any]:
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    waits: dict[str, list[float]] = {way: [] for way in WAYS}
    batches: dict[str, Counter[int]] = {way: Counter() for way in WAYS}
    with contextlib.ExitStack() as stack:
        hosts = {
            way: stack.enter_context(serving(Served(shape, dtype, threads=None, config={"max_batch": most})))
            for way, most in WAYS.items()
        }
        robot = Served(shape, dtype).policy().robot.embodiment
        seen = [random_observation(robot, seed + client) for client in range(clients)]
        for turn in range(TURNS + 1):  # the first warms up
            for way, host in hosts.items():
                times, sizes, took = _hammer(host, seen, seconds)
                if turn:
                    rates[way].append(len(times) / took)
                    waits[way] += times
                    batches[way].update(sizes)
    medians = {way: float(np.median(each)) for way, each in rates.items()}
    return {
        "requests_per_s": {way: round(value, 2) for way, value in medians.items()},
        "times": round(medians["together"] / medians["one by one"], 3),
        "request": {way: percentiles(each) for way, each in waits.items()},
        "batches": {way: dict(sorted(each.items())) for way, each in batches.items()},
    }


def _hammer(host: Host, seen: list[Any], seconds: float) -> tuple[list[float], list[int], float]:
    """Seconds of each request, how many were answered with it, and the seconds until the last was answered."""
    times: list[float] = []
    sizes: list[int] = []
    begun = time.monotonic()
    until = begun + seconds

    def ask(number: int) -> None:
        each = seen[number]
        with contextlib.suppress(RemoteError), RemotePolicy(patient(host.address)) as remote:
            while time.monotonic() < until:
                start = time.perf_counter()
                reply = remote.ask(each.images, each.state, each.instruction, seed=number)
                times.append(time.perf_counter() - start)
                sizes.append(int(reply.timing["batch"]))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(seen))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times, sizes, time.monotonic() - begun
