"""Whether the safety filter of the client ever lets a command pass a limit: random limits, rates and targets.

    python -m benchmarks.stress OUT.json --only safety

Every sequence is one joint with limits and a rate of its own (10 to 1000 Hz), its own kind of targets (`KINDS`), and a
stop at its end. Limits are drawn by how many steps they take: to the largest acceleration, to full speed, through the
range. The commands alone are checked, in float64, by finite differences from the resting start, which nothing of the
filter's own state enters. `worst` is the largest ratio of a command's difference to its limit; a violation is one above
1 by more than `ROUNDING`, and any position outside its limits. `unchanged` says how many admissible sequences came out
as they went in, bit for bit: smooth ones with differences below the limits, and the filter's own commands.

Sequences run in batches by the functions of `actwam_client.motion`, which `SafetyFilter` calls for one robot; the same
targets and widths that are wrong are then given to `SafetyFilter` itself, one sequence in `FILTERED`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from actwam_client.motion import Bounds, State, advance, bounds, brake, rows_of, stop_profile
from actwam_client.safety import Limits, SafetyFilter

ROUNDING = 1e-9
LONGEST_STOP = 2.0
BATCH, FILTERED = 5000, 997
KINDS = (
    "noise",
    "steps",
    "sine",
    "ramp",
    "outside",
    "not finite",
    "frozen",
    "brakes",
    "chunks",
    "smooth",
)
RATES = ("velocity", "acceleration", "jerk")


def run(sequences: int, steps: int, seed: int) -> dict[str, Any]:
    """Violations, worst ratios and unchanged sequences, see the module. A function of its arguments."""
    found: dict[str, Any] = {
        "sequences": 0,
        "commands": 0,
        "violations": dict.fromkeys(("position", *RATES), 0),
        "worst": dict.fromkeys(("position", *RATES), 0.0),
        "not stopped": 0,
        "unchanged": {"smooth": [0, 0], "own commands": [0, 0]},
        "by SafetyFilter": {"sequences": 0, "commands": 0, "faults": 0, "violations": 0},
    }
    for batch in range(-(-sequences // BATCH)):
        random = np.random.default_rng([seed, batch])
        limits = draw_limits(random, min(BATCH, sequences - batch * BATCH))
        many = len(limits.lower)
        kinds = np.arange(many) % len(KINDS)
        start = draw_starts(random, limits, kinds)
        targets, good = draw_targets(random, limits, start, kinds, steps)
        commands = follow(limits, start, targets, good)
        _count(found, limits, start, commands)
        _unchanged(found["unchanged"], limits, start, targets, commands, kinds)
        for row in range(0, many, FILTERED):
            _filtered(found["by SafetyFilter"], random, limits, row, start, targets)
    return found


def draw_limits(random: np.random.Generator, many: int) -> Bounds:
    """Random admissible limits of `many` joints; a rate in eight has no limit."""
    drawn = 2 * many + 20  # a few in a hundred stop too slowly

    def between(low: float, high: float) -> np.ndarray:
        return np.exp(random.uniform(np.log(low), np.log(high), drawn))

    dt = 1 / between(10, 1000)
    span = between(0.01, 100)
    velocity = span / dt / between(1, 300)
    acceleration = velocity / dt / between(0.5, 40)
    jerk = acceleration / dt / between(0.5, 30)
    rates = [np.where(random.random(drawn) < 1 / 8, np.inf, rate) for rate in (velocity, acceleration, jerk)]
    lower = span * random.choice([-0.5, 0, -1, 3, 0.1], drawn)
    limits = bounds(lower, lower + span, *rates, dt)
    speed = limits.velocity * limits.dt / limits.unit
    stop = stop_profile(speed, np.zeros(drawn), limits.top).steps * dt
    fit = (stop <= LONGEST_STOP) & (limits.unit > 1000 * limits.grain)
    return rows_of(limits, fit & (np.cumsum(fit) <= many))


def draw_starts(random: np.random.Generator, limits: Bounds, kinds: np.ndarray) -> np.ndarray:
    """At either end of the range, in its middle, anywhere; smooth sequences in the middle."""
    part = random.choice([0, 0.5, 1, np.nan], len(kinds))
    part = np.where(kinds == KINDS.index("smooth"), 0.5, np.where(np.isnan(part), random.random(len(kinds)), part))
    place = limits.lower + (limits.upper - limits.lower) * part
    return np.where(part == 1, limits.upper, place)


def draw_targets(
    random: np.random.Generator, limits: Bounds, start: np.ndarray, kinds: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Targets (steps, E) of the kind of each sequence, and which are given; at the others the robot must brake."""
    many = len(start)
    time = np.arange(1, steps + 1)[:, None]
    middle, half = (limits.lower + limits.upper) / 2, (limits.upper - limits.lower) / 2
    noise = random.uniform(-1, 1, (steps, many))
    held = noise[time[:, 0] // random.integers(2, 50) * random.integers(1, 3) % steps]
    period = np.exp(random.uniform(np.log(4), np.log(4 * steps), many))
    phase = random.uniform(0, 2 * np.pi, many)
    wave = np.sin(2 * np.pi * time / period + phase) * random.uniform(0, 1, many)
    ramp = 2 * np.abs((time / period + phase) % 1 - 0.5) * 2 - 1
    bad = random.random((steps, many)) < 0.05
    odd = random.choice([np.nan, np.inf, -np.inf, 1e30, -1e30], (steps, many))
    chunk = np.where(random.random((steps, many)) < 0.1, noise, 0)
    forms = {
        "noise": noise,
        "steps": held,
        "sine": wave,
        "ramp": ramp,
        "outside": np.where(bad, 1 + np.abs(noise) * 3, held),
        "not finite": np.where(bad, odd, wave),
        "frozen": np.where(time < steps // 3, wave, wave[steps // 3]),
        "brakes": held,
        "chunks": wave + np.cumsum(chunk, 0) * 0.05,
        "smooth": noise,
    }
    unit = np.select([kinds == i for i in range(len(KINDS))], [forms[kind] for kind in KINDS])
    with np.errstate(invalid="ignore"):
        targets = middle + half * unit
    ends = np.abs(unit) == 1  # rounding must not put the end of the range beyond it
    targets = np.where(ends, np.where(unit > 0, limits.upper, limits.lower), targets)
    smooth = kinds == KINDS.index("smooth")
    targets[:, smooth] = _smooth(random, rows_of(limits, smooth), start[smooth], steps)
    with np.errstate(invalid="ignore"):
        good = (targets >= limits.lower) & (targets <= limits.upper)
    calm = random.random((-(-steps // 8), many)).repeat(8, 0)[:steps] < 0.3
    return targets, good & ~(calm & (kinds == KINDS.index("brakes")))


def _smooth(random: np.random.Generator, limits: Bounds, start: np.ndarray, steps: int) -> np.ndarray:
    """Sums of waves that begin at rest, (steps, E), as large as 0.95 of every limit allows."""
    time = np.arange(1, steps + 1)[:, None]
    shape = np.zeros((steps, len(start)))
    for _ in range(3):
        omega = 2 * np.pi / np.exp(random.uniform(np.log(10), np.log(2 * steps), len(start)))
        shape += random.normal(size=len(start)) * np.sin(omega * time + random.uniform(0, 6, len(start)))
    shape = np.cumsum(np.cumsum(np.cumsum(shape, 0), 0) * np.exp(-time / steps * 3), 0) * (1 - time / steps) ** 4
    padded = np.concatenate([np.zeros((3, len(start))), shape])
    largest = np.zeros(len(start))
    rates = (limits.velocity, limits.acceleration, limits.jerk)
    for order, limit in enumerate(rates, 1):
        largest = np.maximum(largest, np.abs(np.diff(padded, order, axis=0)).max(0) / (limit * limits.dt**order))
    inside = np.abs(shape).max(0) / (limits.upper - start)
    # A stop from anywhere must fit beside the range too: half of it is left.
    return start + shape / np.maximum(largest / 0.95, inside * 2)


def follow(limits: Bounds, start: np.ndarray, targets: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Commands (steps and stop, E) of all joints: towards good targets, else braking, and a stop at the end."""
    zero = np.zeros_like(start)
    state = State(start, zero, zero, start)
    commands = []
    for aims, rows in zip(targets, good, strict=True):
        state = _step(limits, state, aims, rows)
        commands.append(state.position)
    steps = stop_profile(
        state.velocity * limits.dt / limits.unit, state.acceleration * limits.dt**2 / limits.unit, limits.top
    ).steps
    for _ in range(int(steps.max()) + 4):
        state = brake(limits, state)
        commands.append(state.position)
    return np.array(commands)


def _step(limits: Bounds, state: State, targets: np.ndarray, good: np.ndarray) -> State:
    new = [np.empty_like(value) for value in state]
    for rows, move in ((good, lambda *now: advance(*now, targets[good])), (~good, brake)):
        if rows.any():
            moved = move(rows_of(limits, rows), State(*(value[rows] for value in state)))
            for value, fresh in zip(new, moved, strict=True):
                value[rows] = fresh
    return State(*new)


def ratios(limits: Bounds, start: np.ndarray, commands: np.ndarray) -> dict[str, np.ndarray]:
    """How far each command goes of its limit, (steps, E): differences of the commands alone, from rest at `start`."""
    path = np.concatenate([np.broadcast_to(start, (3, len(start))), commands])
    rates = []
    for _ in range(3):
        path = np.diff(path, axis=0) / limits.dt
        rates.append(path)
    middle, half = (limits.lower + limits.upper) / 2, (limits.upper - limits.lower) / 2
    return {
        "position": np.abs(commands - middle) / half,
        **{
            name: np.abs(rate) / limit
            for name, rate, limit in zip(RATES, rates, (limits.velocity, limits.acceleration, limits.jerk), strict=True)
        },
    }


def _count(found: dict[str, Any], limits: Bounds, start: np.ndarray, commands: np.ndarray) -> None:
    found["sequences"] += commands.shape[1]
    found["commands"] += commands.size
    for name, ratio in ratios(limits, start, commands).items():
        beyond = ratio > 1 + ROUNDING
        if name == "position":
            beyond = (commands < limits.lower) | (commands > limits.upper)
        found["violations"][name] += int(beyond.sum() + np.isnan(ratio).sum())
        found["worst"][name] = max(found["worst"][name], float(ratio.max()))
    found["not stopped"] += int((commands[-1] != commands[-3]).sum())


def _unchanged(
    found: dict[str, list[int]],
    limits: Bounds,
    start: np.ndarray,
    targets: np.ndarray,
    commands: np.ndarray,
    kinds: np.ndarray,
) -> None:
    """Adds (unchanged, all) of the smooth sequences, and of one in five of all when given its own commands."""
    smooth = kinds == KINDS.index("smooth")
    kept = (commands[: len(targets), smooth] == targets[:, smooth]).all(0)
    again = np.arange(len(start)) // len(KINDS) % 5 == 0
    own = commands[:, again]
    given = follow(rows_of(limits, again), start[again], own, np.ones_like(own, bool))[: len(own)]
    for key, same in (("smooth", kept), ("own commands", (given == own).all(0))):
        found[key] = [found[key][0] + int(same.sum()), found[key][1] + len(same)]


def _filtered(
    found: dict[str, int],
    random: np.random.Generator,
    limits: Bounds,
    row: int,
    start: np.ndarray,
    targets: np.ndarray,
) -> None:
    """One sequence through `SafetyFilter`, with wrong widths and dtypes between the targets."""
    one = rows_of(limits, np.arange(len(start)) == row)
    chosen = Limits(("joint",), *(tuple(value) for value in one[:5]), longest_stop=2 * LONGEST_STOP)
    guard = SafetyFilter(chosen, 1 / float(one.dt[0]))
    guard.start(start[row : row + 1])
    wrong = (np.zeros(0), np.zeros(2), np.zeros((1, 1)), np.zeros(1, int), None, "a", [[1.0], [1.0, 2.0]])
    commands = []
    for target in targets[:, row]:
        given = wrong[random.integers(len(wrong))] if random.random() < 0.02 else np.array([target])
        commands.append(guard.step(given))
    while not guard.stopped():
        commands.append(guard.brake())
    path = np.array(commands)
    beyond = [(ratio > 1 + ROUNDING).sum() for ratio in ratios(one, start[row : row + 1], path).values()]
    found["sequences"] += 1
    found["commands"] += len(path)
    found["faults"] += sum(guard.faults.values())
    found["violations"] += int(sum(beyond))
