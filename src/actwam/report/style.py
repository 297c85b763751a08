"""How the figures of results look, as PNG."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

INK, SOFT, LINE, PAPER = "#1c1f24", "#5f6672", "#e2e3e0", "#ffffff"
COLOURS = ("#2563c9", "#c26a12", "#8a4fc0", "#24794a")
"""Those of the report page. Each comes with a marker of its own, for who cannot tell the colours apart."""
MARKERS = ("o", "D", "s", "^")
WIDTH, DPI = 8.0, 200
"""Inches; 1600 pixels wide, shown at half of that on most pages."""

STYLE: dict[Any, Any] = {
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": LINE,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 10.5,
    "savefig.facecolor": PAPER,
}


def write_png(draw: Callable[[], Figure], path: Path) -> None:
    """Draw in this style and write `path`, whose folder is made."""
    with rc_context(STYLE):
        figure = draw()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=DPI, metadata={"Software": None})
