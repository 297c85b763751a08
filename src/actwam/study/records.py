"""The records of cells: a file of JSON lines that only grows. What stands in it is never trained again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actwam.sim.results import EpisodeOutcome
from actwam.study.cell import OUTCOMES, Cell
from actwam.study.statistics import Episodes, Key

FILE = "cells.jsonl"
FIELDS = ("key", "settings", "result", "provenance")
_MEANING = {letter: outcome for outcome, letter in OUTCOMES.items()}


class Records:
    """The records in a folder, by the keys of their cells."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError on a line that is damaged; half a line, which an interruption leaves, does not count."""
        self.path = folder / FILE
        self._records: dict[str, dict[str, Any]] = {}
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        lines = text.splitlines(keepends=True)
        for number, line in enumerate(lines, start=1):
            if not line.endswith("\n"):
                break  # nothing is cut off here: who only looks on may meet a line that is being written
            try:
                record = json.loads(line)
                self._records[record["key"]] = {name: record[name] for name in FIELDS}
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{self.path}: line {number} is damaged ({error}): delete the line") from error

    def __contains__(self, cell: Cell) -> bool:
        return cell.key in self._records

    def __getitem__(self, cell: Cell) -> dict[str, Any]:
        return self._records[cell.key]

    def add(self, cell: Cell, result: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
        """Note what came of a cell, with its settings and what produced it."""
        record = {"key": cell.key, "settings": cell.settings(), "result": result, "provenance": provenance}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            os.truncate(self.path, self.path.read_bytes().rfind(b"\n") + 1)  # half a line, if there is one
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self._records[cell.key] = record

    def episodes(self, cells: tuple[Cell, ...]) -> Episodes:
        """The outcomes of cells that differ in their training seed."""
        success: dict[Key, bool] = {}
        crashes = 0
        for cell in cells:
            for task, letters in self[cell]["result"]["episodes"].items():
                for place, letter in enumerate(letters):
                    outcome = _MEANING[letter]
                    crashes += outcome is EpisodeOutcome.CRASH
                    if outcome is not EpisodeOutcome.CRASH:
                        key = (task, int(cell.options["seed"]), cell.first_seed + place)
                        success[key] = outcome is EpisodeOutcome.SUCCESS
        return Episodes(success, crashes)

    def windows(self, cells: tuple[Cell, ...], measure: str) -> dict[Key, float] | None:
        """`psnr` or `ssim` of the windows of every held-out episode, their mean; None where there is no future."""
        values: dict[Key, list[float]] = {}
        for cell in cells:
            imagined = self[cell]["result"]["imagined"]
            if imagined is None:
                return None
            for instruction, episode, value in zip(
                imagined["instructions"], imagined["episodes"], imagined[measure], strict=True
            ):
                values.setdefault((instruction, int(cell.options["seed"]), episode), []).append(value)
        return {key: sum(several) / len(several) for key, several in values.items()}
