"""Numbers and tables as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from actwam.report.page import NONE


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def number(value: int | float | None, form: str) -> str:
    return NONE if value is None else format(value, form)


def count(value: int | None) -> str:
    """1234567 -> "1.23 M"."""
    if value is None:
        return NONE
    size, unit = next(((s, u) for s, u in ((1e9, " G"), (1e6, " M"), (1e3, " k")) if value >= s), (1, ""))
    return f"{value / size:.3g}{unit}"


def measured_with(provenance: Mapping[str, Any]) -> str:
    """Commits, machine, versions and date in one line, as far as they are known."""
    machine, versions = provenance.get("machine", {}), provenance.get("versions", {})
    commit, trained = provenance.get("commit"), provenance.get("commits", ())
    parts = [
        f"cells of commit {', '.join(name[:12] + name[40:] for name in trained)}" if trained else None,
        f"commit {commit[:12]}{' with changes' if provenance.get('dirty') else ''}" if commit else "commit unknown",
        machine.get("gpu") or machine.get("cpu"),
        ", ".join(f"{name} {number}" for name, number in versions.items()),
        provenance.get("date"),
    ]
    return f"Measured with {'; '.join(part for part in parts if part)}."
