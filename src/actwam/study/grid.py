"""The questions of the GigaWorld-Policy paper as grids of cells."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from actwam.recipes.metaworld import compare
from actwam.sim.collect import Collection
from actwam.study.cell import Cell, Data, PseudoLabelled

Standing = Literal["samples", "compute", "both"]
REFERENCE = "ACTION_CENTERED"
TOLERANCE = 0.02
"""How much the parameters of the cells of a study may differ."""
HELDOUT = 3
"""Episodes of every task on which the future is imagined and inferred actions are compared."""
SAME = 0.005
"""Within this, two trainings compute the same."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large studies are. One policy learns `tasks` together, from `demos` demonstrations of each, in `steps`
    steps; each of `seeds` trainings plays `episodes` episodes of every task. The tasks of `held_out` are learned in
    turn from `few` demonstrations. The future is imagined for `windows` moments.
    """

    tasks: tuple[str, ...]
    held_out: tuple[str, ...]
    general: tuple[str, ...]
    demos: int
    few: int
    steps: int
    pretraining_steps: int
    seeds: int
    episodes: int
    max_steps: int
    windows: int


GENERAL = (
    "reach-v3", "push-v3", "pick-place-v3", "drawer-close-v3", "drawer-open-v3", "window-close-v3",
    "door-close-v3", "door-open-v3", "button-press-v3", "handle-press-v3", "coffee-button-v3", "soccer-v3",
)  # fmt: skip
TASKS = (
    "coffee-pull-v3", "hammer-v3", "plate-slide-v3", "window-open-v3", "peg-unplug-side-v3",
    "lever-pull-v3", "door-lock-v3", "faucet-open-v3", "dial-turn-v3", "stick-push-v3",
)  # fmt: skip
"""Neither so easy nor so hard for small models that all families do alike; none of them is among the general ones."""

SCALES = {
    "smoke": Scale(
        tasks=TASKS[2:4], held_out=TASKS[2:3], general=GENERAL[:1], demos=2, few=1, steps=4, pretraining_steps=2,
        seeds=1, episodes=2, max_steps=16, windows=4,
    ),
    "laptop": Scale(
        tasks=TASKS[:5], held_out=TASKS[:3], general=GENERAL, demos=20, few=3, steps=1_000, pretraining_steps=500,
        seeds=3, episodes=20, max_steps=200, windows=60,
    ),
    "full": Scale(
        tasks=TASKS, held_out=TASKS, general=GENERAL, demos=50, few=5, steps=10_000, pretraining_steps=5_000,
        seeds=5, episodes=50, max_steps=500, windows=300,
    ),
}  # fmt: skip
"""`laptop` takes some hours on two cores, `full` a GPU."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A point of a figure: cells that differ in nothing but the training seed. `x` is its place on the axis.

    `standing` says what it has in common with the reference: samples seen, floating-point operations, or both.
    """

    label: str
    standing: Standing
    cells: tuple[Cell, ...]
    x: float | None = None
    family: str | None = None
    """The curve that it is a point of, where there are several."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question, its entries, the label of the entry that the others are compared with, and what the paper found."""

    name: str
    question: str
    entries: tuple[Entry, ...]
    reference: str
    paper: Mapping[str, Any] = field(default_factory=dict)
    timed: bool = False
    """Whether acting is timed."""
    notes: tuple[str, ...] = ()
    """What to know before believing the numbers."""

    def __post_init__(self) -> None:
        names = [(entry.label, entry.standing) for entry in self.entries]
        twice = sorted({f"{label} ({standing})" for label, standing in names if names.count((label, standing)) > 1})
        if twice:
            raise ValueError(f"study {self.name}: {', '.join(twice)} stands there twice; give each its own label")
        if self.reference not in {entry.label for entry in self.entries}:
            raise ValueError(f"study {self.name}: there is no entry {self.reference} to compare with")
        sizes = {entry.label: entry.cells[0].parameters() for entry in self.entries}
        usual = sizes[self.reference]
        other = [f"{label} {n}" for label, n in sizes.items() if abs(n - usual) > TOLERANCE * usual]
        if other:
            raise ValueError(
                f"study {self.name}: parameters differ by more than {TOLERANCE:.0%} from the {usual} of "
                f"{self.reference}: {', '.join(other)}"
            )


def study_of(name: str, scale: Scale) -> Study:
    """The study of this name. Raises ValueError listing those there are."""
    if name not in STUDIES:
        raise ValueError(f"unknown study {name!r}; there are {', '.join(STUDIES)}")
    return STUDIES[name](scale)


def families(scale: Scale) -> Study:
    names = ("ACTION_CENTERED", "ACTION_ONLY", "JOINT", "JOINT_HISTORY", "VIDEO_FIRST", "UNCOUPLED", "BIDIRECTIONAL")
    return Study(
        name="families",
        question="How often does each family succeed, and how long does it take to act?",
        entries=tuple(entry for name in names for entry in _entries(scale, name, {"family": name}, both=True)),
        reference=REFERENCE,
        timed=True,
        notes=(
            "VIDEO_FIRST learns actions from half of its samples and futures from the other half, and inverts real "
            "futures in training, imagined ones in acting.",
            "PSNR and SSIM are of the future that a policy imagines with its own actions.",
        ),
        paper={"latency_ms_a100": {"ACTION_CENTERED": 360, "JOINT (Motus)": 3231}},
    )


def future(scale: Scale) -> Study:
    frames = {"1 frame": (24,), "2 frames": (12, 24), "4 frames": (6, 12, 18, 24), "8 frames": tuple(range(3, 25, 3))}
    none = _entries(scale, "none", {"family": "ACTION_ONLY"}, x=0.0, both=True)
    some = [
        entry
        for label, offsets in frames.items()
        for entry in _entries(scale, label, {"future_offsets": offsets}, x=float(len(offsets)), both=True)
    ]
    cheaper = (
        *_entries(scale, "2 frames in a quarter of the batches", {"future_share": 0.25}, x=2.0, both=True),
        *_entries(scale, "2 frames, narrow visual expert", {"visual_width": 96, "action_width": 128}, x=2.0, both=True),
    )
    return Study(
        name="future",
        question="How many future frames, how far apart, and what do they cost?",
        entries=(*none, *some, *cheaper),
        reference="2 frames",
        paper={"success": {"none": 0.60, "stride 12": 0.83}},
    )


def mask(scale: Scale) -> Study:
    names = ("ACTION_CENTERED", "BIDIRECTIONAL", "UNCOUPLED")
    return Study(
        name="mask",
        question="Does it matter who may look at whom?",
        entries=tuple(entry for name in names for entry in _entries(scale, name, {"family": name})),
        reference=REFERENCE,
        notes=("PSNR and SSIM are of the future that a policy imagines with its own actions.",),
        paper={"success": {"BIDIRECTIONAL": 0.81, "ACTION_CENTERED": 0.83},
               "psnr": {"BIDIRECTIONAL": 27.87, "ACTION_CENTERED": 28.41}},
    )  # fmt: skip


def pretraining(scale: Scale) -> Study:
    steps = scale.pretraining_steps
    kinds = {
        "none": {},
        "general": {"general_steps": steps},
        "embodied": {"embodied_steps": steps},
        "embodied, without actions": {"embodied_steps": steps, "embodied_actions": False},
        "both": {"general_steps": steps, "embodied_steps": steps},
    }
    return Study(
        name="pretraining",
        question="What does learning from video before the demonstrations bring?",
        entries=tuple(entry for label, options in kinds.items() for entry in _entries(scale, label, options)),
        reference="none",
        notes=("Pretraining comes on top: its entries see and compute more than the one without.",),
        paper={"success": {"none": 0.45, "general": 0.57, "embodied": 0.73, "both": 0.83}},
    )


def data(scale: Scale) -> Study:
    entries = []
    for percent in (10, 25, 50, 100):
        demos = max(1, round(scale.demos * percent / 100))
        smaller = replace(scale, demos=demos)
        for family, both in (("ACTION_CENTERED", False), ("ACTION_ONLY", True)):
            some = _entries(smaller, f"{family} {percent} %", {"family": family}, x=float(demos), both=both)
            entries += [replace(entry, family=family) for entry in some]
    return Study(
        name="data",
        question="How many demonstrations does the future replace?",
        entries=tuple(entries),
        reference="ACTION_CENTERED 100 %",
        paper={"claim": "10 % of the demonstrations suffice"},
    )


def weights(scale: Scale) -> Study:
    ratios = (0.2, 1.0, 5.0, 25.0)
    return Study(
        name="weights",
        question="How much should the action loss weigh against the video loss?",
        entries=tuple(
            entry
            for ratio in ratios
            for entry in _entries(scale, f"{ratio:g}:1", {"action_weight": ratio} if ratio != 1 else {}, x=ratio)
        ),
        reference="1:1",
        paper={"action_weight": 5.0},
    )


def idm(scale: Scale) -> Study:
    few = max(1, round(scale.demos / 10))
    heldout = Collection(tasks=scale.tasks, episodes=HELDOUT, first_seed=3_000)
    labelled = Collection(tasks=scale.tasks, episodes=few, first_seed=2_000)
    videos = Collection(tasks=scale.tasks, episodes=scale.demos - few, first_seed=4_000)
    pseudo = PseudoLabelled(videos=videos, labelled=labelled, heldout=heldout, steps=scale.steps // 2)
    smaller = replace(scale, demos=few)
    return Study(
        name="idm",
        question="What are demonstrations worth whose actions were inferred from video?",
        entries=(
            *_entries(smaller, "10 % labelled", {}),
            *_entries(smaller, "10 % labelled, 90 % inferred", {"extra": {"inferred": 3.0}}, data={"inferred": pseudo}),
            *_entries(scale, "100 % labelled", {}),
        ),
        reference="10 % labelled",
        notes=(
            "Inferred demonstrations have no state, recorded ones have. One inverse dynamics model labelled for all "
            "training seeds, so that its luck is in no interval.",
        ),
    )


def clips(scale: Scale) -> Study:
    """Every task of `scale.held_out` is left out once, but for a few demonstrations."""
    kinds: dict[str, dict[str, float]] = {"without clips": {}, "with clips": {"clips": 0.5}}
    entries = []
    for label, extra in kinds.items():
        cells: tuple[Cell, ...] = ()
        for task in scale.held_out:
            data: dict[str, Data] = {"few": Collection(tasks=(task,), episodes=scale.few, first_seed=2_000)}
            if extra:
                data["clips"] = Collection(tasks=(task,), episodes=scale.demos, first_seed=4_000)
            others = replace(scale, tasks=tuple(other for other in scale.tasks if other != task))
            cells += _cells(others, {"extra": {"few": 0.5, **extra}}, scale.steps, data=data, play=(task,))
        entries.append(Entry(label=label, standing="both", cells=cells))
    return Study(
        name="clips",
        question="Does watching a task, without actions, help with few demonstrations of it?",
        entries=tuple(entries),
        reference="without clips",
        notes=("With clips in the batch, a quarter fewer of its samples are demonstrations.",),
    )


STUDIES: Mapping[str, Callable[[Scale], Study]] = {
    "families": families,
    "future": future,
    "mask": mask,
    "pretraining": pretraining,
    "data": data,
    "weights": weights,
    "idm": idm,
    "clips": clips,
}


def _entries(
    scale: Scale,
    label: str,
    options: Mapping[str, Any],
    *,
    x: float | None = None,
    both: bool = False,
    data: Mapping[str, Data] | None = None,
) -> list[Entry]:
    """The entry at the samples of the reference, and, if `both` and they differ, a second one at its compute."""
    cells = _cells(scale, options, scale.steps, data=data)
    compared = cells[0].flops() / _cells(scale, {}, scale.steps)[0].flops()
    if abs(compared - 1) < SAME:
        return [Entry(label=label, standing="both", cells=cells, x=x)]
    if not both:
        return [Entry(label=label, standing="samples", cells=cells, x=x)]
    compute = _cells(scale, options, round(scale.steps / compared), data=data)
    return [
        Entry(label=label, standing="samples", cells=cells, x=x),
        Entry(label=label, standing="compute", cells=compute, x=x),
    ]


def _cells(
    scale: Scale,
    options: Mapping[str, Any],
    steps: int,
    *,
    data: Mapping[str, Data] | None = None,
    play: tuple[str, ...] | None = None,
) -> tuple[Cell, ...]:
    """One cell for every training seed, with `data` beside the demonstrations, that plays all tasks or those named."""
    found: dict[str, Data] = {
        "general": Collection(tasks=scale.general, episodes=2, first_seed=0),
        "demos": Collection(tasks=scale.tasks, episodes=scale.demos, first_seed=2_000),
        **(data or {}),
    }
    if "embodied_steps" in options:
        found["embodied"] = Collection(tasks=scale.tasks, episodes=scale.demos, first_seed=1_000, action_noise=0.3)
    usual = {name: parameter.default for name, parameter in inspect.signature(compare).parameters.items()}
    changed = {name: value for name, value in options.items() if value != usual[name]}
    return tuple(
        Cell(
            options={**changed, "align_steps": steps, "seed": seed},
            data=found,
            heldout=Collection(tasks=play or scale.tasks, episodes=HELDOUT, first_seed=3_000),
            tasks=play or scale.tasks,
            episodes=scale.episodes,
            first_seed=1_000_000,
            max_steps=scale.max_steps,
            windows=scale.windows // len(scale.tasks) if play else scale.windows,
        )
        for seed in range(scale.seeds)
    )
