"""Instructions as a model reads them, kept as long as they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from actwam.model.context import TextContext

TEXTS = 8
"""Instructions whose keys and values a policy keeps: the last ones it was given. In bfloat16 each takes 24 MB (GWP-0)
or 47 MB (GWP-0.5).
"""


class Instructions:
    """Keys and values of the last distinct instructions that a policy was given."""

    def __init__(self) -> None:
        self.kept: dict[str, TextContext] = {}

    def contexts(self, instructions: Sequence[str], embed: Callable[[str], TextContext]) -> TextContext:
        """Those of B instructions, as one; what is not kept is embedded."""
        distinct = list(dict.fromkeys(instructions))
        known = [self.kept.pop(instruction, None) for instruction in distinct]
        contexts = [context or embed(text) for text, context in zip(distinct, known, strict=True)]
        self.kept.update(zip(distinct, contexts, strict=True))  # the newest come last
        for old in list(self.kept)[:-TEXTS]:
            self.kept.pop(old, None)
        context = TextContext.stack(contexts)
        if len(distinct) == len(instructions):
            return context
        device = context.leaves[0].device
        return context.select(torch.tensor([distinct.index(text) for text in instructions], device=device))
