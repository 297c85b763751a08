"""A policy from demonstrations and from what `actwam label` made of videos: docs/guides/pseudo_labels.md."""

from __future__ import annotations

from dataclasses import replace

from actwam.recipes.metaworld import laptop
from actwam.train.config import Recipe, SourceConfig
from actwam.types import Mode


def mixed(align_steps: int = 720, weight: float = 1.0, min_confidence: float = 0.9) -> Recipe:
    """The last stage of `metaworld.laptop`, from random weights, on `demos` and on the trusted windows of `labels`."""
    recipe = laptop(align_steps=align_steps)
    align = recipe.stages[-1]
    labels = SourceConfig(dataset="labels", mode=Mode.POLICY, weight=weight, min_confidence=min_confidence)
    return replace(recipe, name="pseudo_labels.mixed", stages=(replace(align, sources=(*align.sources, labels)),))
