"""The grids of studies: what stands in them, what they share, and what is refused before anything is trained."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest

from actwam.recipes.families import FAMILIES
from actwam.sim.collect import PATIENCE, Collection
from actwam.sim.env import EVALUATION_SEEDS, TRAINING_SEEDS
from actwam.study.cell import Cell
from actwam.study.grid import SCALES, STUDIES, Study, study_of

SCALE = SCALES["laptop"]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", STUDIES)
def test_every_study_has_a_reference_and_seeds(name: str, scale: str) -> None:
    study = study_of(name, SCALES[scale])
    for entry in study.entries:
        assert len({cell.key for cell in entry.cells}) == len(entry.cells)
        assert {cell.options["seed"] for cell in entry.cells} == set(range(SCALES[scale].seeds))


def test_every_family_stands_in_the_study_of_families() -> None:
    assert {entry.label for entry in study_of("families", SCALE).entries} == set(FAMILIES)


def test_cells_that_studies_share_are_the_same() -> None:
    keys = {name: {cell.key for e in study_of(name, SCALE).entries for cell in e.cells} for name in STUDIES}
    assert keys["mask"] <= keys["families"]
    for name in ("future", "data", "weights", "pretraining"):
        reference = next(e for e in study_of("families", SCALE).entries if e.label == "ACTION_CENTERED")
        assert {cell.key for cell in reference.cells} <= keys[name], name


def test_equal_compute_is_equal() -> None:
    entries = study_of("future", SCALE).entries
    reference = next(entry for entry in entries if entry.label == "2 frames")
    for entry in entries:
        flops, samples = entry.cells[0].flops(), entry.cells[0].samples()
        if entry.standing in ("compute", "both"):
            assert flops == pytest.approx(reference.cells[0].flops(), rel=0.01), entry.label
        if entry.standing in ("samples", "both"):
            assert samples == reference.cells[0].samples(), entry.label
    assert {entry.standing for entry in entries if entry.label == "none"} == {"samples", "compute"}


def test_episodes_are_paired() -> None:
    cells = [cell for name in STUDIES for entry in study_of(name, SCALE).entries for cell in entry.cells]
    assert len({(cell.first_seed, cell.episodes, cell.max_steps) for cell in cells}) == 1


def seeds_of(collection: Collection) -> range:
    """Every seed that it may use, if as many experts fail as are let fail."""
    return range(collection.first_seed, collection.first_seed + collection.episodes * (1 + PATIENCE) + 1)


def collections_of(cell: Cell) -> list[Collection]:
    """What is trained on, and what teaches the model that labels."""
    each = [[data] if isinstance(data, Collection) else [data.videos, data.labelled] for data in cell.data.values()]
    return [collection for some in each for collection in some]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", STUDIES)
def test_what_is_trained_on_is_neither_played_nor_held_out(name: str, scale: str) -> None:
    for cell in {cell.key: cell for entry in study_of(name, SCALES[scale]).entries for cell in entry.cells}.values():
        played = range(cell.first_seed, cell.first_seed + cell.episodes)
        assert played.start in EVALUATION_SEEDS
        assert played[-1] in EVALUATION_SEEDS
        held_out = [cell.heldout, *(d.heldout for d in cell.data.values() if not isinstance(d, Collection))]
        trained = collections_of(cell)
        for one in trained:
            assert seeds_of(one)[-1] in TRAINING_SEEDS
            for other in held_out:
                apart = not set(one.tasks) & set(other.tasks) or not set(seeds_of(one)) & set(seeds_of(other))
                assert apart, (name, one, other)
        for one, other in combinations(dict.fromkeys(trained), 2):
            if set(one.tasks) & set(other.tasks) and one.first_seed != other.first_seed:
                assert not set(seeds_of(one)) & set(seeds_of(other)), (name, one, other)


def test_general_videos_show_none_of_the_tasks() -> None:
    for scale in SCALES.values():
        assert not set(scale.general) & {*scale.tasks, *scale.held_out}
        assert set(scale.held_out) <= set(scale.tasks)


def test_unknown_studies_and_options_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown study 'famlies'; there are families"):
        study_of("famlies", SCALE)
    cell = study_of("mask", SCALE).entries[0].cells[0]
    with pytest.raises(ValueError, match="unknown family 'MOTUS'; there are ACTION_CENTERED"):
        replace(cell, options={"family": "MOTUS"}).recipe()


def test_a_study_that_contradicts_itself_is_refused() -> None:
    good = study_of("mask", SCALE)
    with pytest.raises(ValueError, match=r"UNCOUPLED \(both\) stands there twice"):
        replace(good, entries=(*good.entries, good.entries[-1]))
    with pytest.raises(ValueError, match="no entry JOINT"):
        replace(good, reference="JOINT")


def test_cells_of_another_size_are_refused() -> None:
    good = study_of("mask", SCALE)
    wide = replace(
        good.entries[0],
        label="wide",
        cells=tuple(replace(cell, options={**cell.options, "visual_width": 160}) for cell in good.entries[0].cells),
    )
    with pytest.raises(ValueError, match=r"parameters differ by more than 2%.*wide"):
        Study(name="mask", question="?", entries=(*good.entries, wide), reference=good.reference)
