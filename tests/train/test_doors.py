"""What is refused before the first step, and before hours of encoding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from actwam.data.dataset import LeRobotDataset
from actwam.data.writer import DatasetWriter
from actwam.train.config import SourceConfig
from actwam.train.encode import encodings
from actwam.train.prepare import fit_robots
from actwam.types import Mode


def test_an_instruction_that_cannot_be_read_is_found_before_anything_is_encoded(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with DatasetWriter(folder, tiny.robot()) as writer:
        for number in range(3):
            episode = tiny.episode(number, tiny.robot())
            long = "one two three four five six seven"
            writer.add_episode(replace(episode, instruction=long) if number else episode)
    dataset = LeRobotDataset.open(folder)
    checkpoint = tiny.checkpoint(robots=fit_robots(tiny.recipe(), {"squares": dataset}, tmp_path / "statistics"))
    sources = [SourceConfig(dataset="squares", mode=Mode.POLICY)]
    with pytest.raises(ValueError, match=r"data: episode 1: instruction has 7 words, this model reads 1 to 6"):
        encodings(sources, checkpoint, checkpoint.codec, {"squares": dataset}, tmp_path / "cache", lambda *_: None)
    assert not (tmp_path / "cache").exists()


def test_robots_of_one_index_need_equal_widths() -> None:
    narrow = replace(tiny.robot(1), index=0)
    with pytest.raises(ValueError, match="have one index and other widths: give each its own index"):
        tiny.recipe(robots=(tiny.robot(0), narrow), layouts=(tiny.LAYOUT,) * 2)
    tiny.recipe(robots=(tiny.robot(0), replace(tiny.robot(0), name="twin")), layouts=(tiny.LAYOUT,) * 2)
