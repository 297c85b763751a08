"""`WorldActionTransformer`: the Wan 2.2 block over groups of tokens, with one expert (GWP-0) or two
(GWP-0.5).

The same class is a million or six billion parameters. It has six verbs, and none of them depends on
`self.training`, on call order or on anything set from outside:

    text_context(text)                 keys and values of the instruction, reused while it does not change
    encode(inputs, ..., context)       clean groups -> `Context`
    advance(context)                   the same history, seen from a moment later
    forward(inputs, ..., context)      noisy groups -> their velocities; they see the context and each other
    begin(clean, noisy, ..., context)  `encode` and the first `forward` in one pass
    levels(group, sigmas)              noise levels, made ready once for all calls
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import cast

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from actwam import flow
from actwam.model.block import Block, CrossAttention, ExpertBlock, Level, Stream
from actwam.model.config import TransformerConfig
from actwam.model.context import Instructions, Kept, TextContext, TextPair, Told
from actwam.model.layers import FeedForward, NoiseEmbedding, Sight, modulate, rotate, step_rope, visual_rope
from actwam.model.projectors import VectorDecoder, VectorEncoder
from actwam.tokens import Rows, Segment, Table, attention_mask, rows_of
from actwam.types import Context, Group

_FIRST_FRAME = {Group.OBSERVATION: 0, Group.FUTURE: 1}
_FIRST_STEP = {Group.STATE: 0, Group.ACTION: 1}


@dataclass(frozen=True)
class GroupInput:
    """One group as the model takes it.

    `value`: latents (B, Z, F, h, w) for visual groups, normalised vectors (B, n, S or A) for state and
    action. `sigma`: the noise level, (B or 1, 1) for the whole group or (B, n) for each of its tokens. `level` is what
    `WorldActionTransformer.levels` made of sigma, if that was done before.
    """

    group: Group
    value: Float[Tensor, "B ..."]
    sigma: Float[Tensor, "_ _"]
    level: Level | None = None


class Expert(nn.Module):
    """What one residual stream has once: text embedder, noise embedding, and the modulation of its head."""

    def __init__(self, config: TransformerConfig, width: int) -> None:
        super().__init__()
        self.text_embedder = FeedForward(config.text_width, width, width)
        self.noise = NoiseEmbedding(width, config.frequencies)
        self.head_table = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.head_norm = nn.LayerNorm(width, config.eps, elementwise_affine=False)

    def head(self, x: Float[Tensor, "B n D"], embedded: Float[Tensor, "_ m D"]) -> Float[Tensor, "B n D"]:
        """The last norm, modulated by (shift, scale) = head_table + the embedded noise level."""
        shift, scale = self.head_table[0] + embedded.float(), self.head_table[1] + embedded.float()
        return modulate(self.head_norm(x), 1 + scale, shift).to(self.head_table.dtype)


class WorldActionTransformer(nn.Module):
    """See the module. Parameters are initialised from torch's global generator: seed it first."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        visual = config.experts[config.expert_of(Group.FUTURE)].width
        state = config.experts[config.expert_of(Group.STATE)].width
        action = config.experts[config.expert_of(Group.ACTION)].width
        patch = config.latent_channels * config.patch[0] * config.patch[1]
        robots, hidden = config.embodiments, config.projector_widths
        self.patch_embedding = nn.Linear(patch, visual)
        self.action_encoder = VectorEncoder(robots, config.action_width, hidden, action)
        self.state_encoder = (
            None if config.share_state_encoder else VectorEncoder(robots, config.state_width, hidden, state)
        )
        self.experts = cast(
            "Sequence[Expert]", nn.ModuleList(Expert(config, expert.width) for expert in config.experts)
        )
        self.blocks = cast("Sequence[Block]", nn.ModuleList(Block(config) for _ in range(config.layers)))
        self.patch_head = nn.Linear(visual, patch)
        self.action_decoder = VectorDecoder(robots, action, hidden, config.action_width)
        self.apply(_initialise)
        nn.init.zeros_(self.patch_head.weight)
        nn.init.zeros_(self.action_decoder.last.weight)
        # no loss reaches the padded dimensions of a robot: their velocity is zero, and stays it
        nn.init.zeros_(self.action_decoder.last.bias)

    def text_context(self, text: Float[Tensor, "B M E"]) -> TextContext:
        """Cross-attention keys and values of every layer and expert for B embedded instructions.

        Padding is zero and is attended to, as in Wan and in the official models.
        """
        embedded = self._embed_text(text)
        return TextContext(tuple(block.text_pairs(embedded) for block in self.blocks))

    def encode(
        self,
        inputs: Sequence[GroupInput],
        text: TextContext,
        embodiment: Int[Tensor, "B"],
        table: Table,
        context: Context | None = None,
    ) -> Context:
        """Encode groups, looking at the context and at one another, and return the context with them
        appended.
        """
        kept, _ = self._pass(inputs, text, embodiment, table, context, keep=[item.group for item in inputs])
        return kept.context()

    def begin(
        self,
        clean: Sequence[GroupInput],
        noisy: Sequence[GroupInput],
        text: TextContext,
        embodiment: Int[Tensor, "B"],
        table: Table,
        context: Context | None = None,
    ) -> tuple[Context, dict[Group, Float[Tensor, "B ..."]]]:
        """`encode` the clean groups and call `forward` with the noisy ones, in one pass: the weights are read once.

        Exact where no clean group sees a noisy one, as everywhere that a context can be kept.
        """
        inputs, keep = [*clean, *noisy], [item.group for item in clean]
        kept, velocities = self._pass(inputs, text, embodiment, table, context, keep=keep)
        return kept.context(), velocities

    @torch.no_grad()
    def levels(self, group: Group, sigmas: Sequence[float]) -> tuple[Level, ...]:
        """What the parts of the model make of noise levels of a group, each for a whole batch. Not for training."""
        index = self.config.expert_of(group)
        blocks = [cast("ExpertBlock", block.experts[index]) for block in self.blocks]
        sigma = torch.tensor(sigmas, device=self.patch_head.bias.device)[:, None, None]
        return tuple(
            replace(level, blocks=tuple(block.modulation(level.projected) for block in blocks))
            for level in (self._level(index, one) for one in sigma)
        )

    def level_parameters(self) -> list[nn.Parameter]:
        """What `levels` depends on."""
        tables = [cast("ExpertBlock", expert).table for block in self.blocks for expert in block.experts]
        return [*tables, *(parameter for expert in self.experts for parameter in expert.noise.parameters())]

    def tokens(self, inputs: Iterable[GroupInput]) -> int:
        """How many tokens they are."""
        return sum(len(self._rope(item)) for item in inputs)

    def segments(self, inputs: Iterable[GroupInput], context: Context | None = None) -> tuple[Segment, ...]:
        """All tokens in the order of self-attention, the context first. A frame of history is one moment."""
        past = () if context is None else zip(context.groups, context.lengths, strict=True)
        new = (
            Segment(
                item.group,
                len(self._rope(item)),
                item.value.shape[2] if item.group is Group.HISTORY else 1,
            )
            for item in inputs
        )
        return (*(Segment(group, length) for group, length in past), *new)

    def _level(self, expert: int, sigma: Float[Tensor, "_ m"]) -> Level:
        return Level(sigma, *self.experts[expert].noise(sigma))

    def advance(self, context: Context, moments: int = 1) -> Context:
        """Encoded history as it is seen `moments` later, when it stands that much further in the past.

        Exact, and nothing is encoded: history sees itself alone, and rotary attention knows places only by their
        distance, so that time turns the keys and changes nothing else. In bfloat16 every turn rounds them anew.
        Raises ValueError when the context holds other groups: these do not become history by waiting.
        """
        if set(context.groups) != {Group.HISTORY}:
            raise ValueError(f"only history moves on, and this context holds {', '.join(sorted(set(context.groups)))}")
        turn = visual_rope(-moments, 1, 1, 1, self.config.head_width, context.keys[0].device)
        return replace(context, keys=tuple(rotate(k, turn).to(k.dtype) for k in context.keys))

    def forward(
        self,
        inputs: Sequence[GroupInput],
        text: TextContext | Instructions,
        embodiment: Int[Tensor, "B"],
        table: Table,
        context: Context | None = None,
        valid: Mapping[Group, Bool[Tensor, "B ..."]] | None = None,
        recompute_activations: bool = False,
    ) -> dict[Group, Float[Tensor, "B ..."]]:
        """Velocities of the visual and action groups among `inputs`, shaped like their values, in float32.

        Of `Instructions`, which training hands over, every block makes its own keys and values when it is called.
        `valid[group]` is False for samples that do not have this group, (B,), or these of its moments, (B, R): nobody
        looks at its tokens there. With `recompute_activations` only what goes into a block is kept for the backward
        pass, which computes the rest of it again: the same gradients for less memory and about a third more time.
        """
        _, velocities = self._pass(
            inputs, text, embodiment, table, context, valid=valid, recompute_activations=recompute_activations
        )
        return velocities

    def _pass(
        self,
        inputs: Sequence[GroupInput],
        text: TextContext | Instructions,
        embodiment: Int[Tensor, "B"],
        table: Table,
        context: Context | None,
        *,
        keep: Sequence[Group] = (),
        valid: Mapping[Group, Bool[Tensor, "B ..."]] | None = None,
        recompute_activations: bool = False,
    ) -> tuple[Kept, dict[Group, Float[Tensor, "B ..."]]]:
        """All blocks: what is kept of the groups to `keep`, and the velocities of the others."""
        inputs, segments, rows = self._arrange(inputs, table, context)
        streams = self._streams(inputs, embodiment)
        kept = Kept(context, segments[len(segments) - len(inputs) :], keep)
        sight = Sight(rows, _present(table, segments, rows, valid) if valid else None)
        told = self._told(text)
        for i, block in enumerate(self.blocks):
            runs, past = [stream.runs_in(i) for stream in streams], kept.past(i)
            if i + 1 == len(self.blocks) and len(keep) == len(inputs):
                kept.append(*block.keys_values(streams, runs))  # nobody reads the residual stream behind them
            elif recompute_activations:
                streams, _, _ = checkpoint(
                    block, streams, runs, told[i], past, sight, use_reentrant=False, preserve_rng_state=False
                )
            else:
                streams, k, v = block(streams, runs, told[i], past, sight)
                kept.append(k, v)
        hidden = [part for s in streams for part in s.x.split([length for length, _ in s.runs], dim=1)]
        levels = [level for s in streams for _, level in s.runs]
        velocities: dict[Group, Tensor] = {
            item.group: self._velocity(item, part, level.embedded, embodiment)
            for item, part, level in zip(inputs, hidden, levels, strict=True)
            if item.group is not Group.STATE and item.group not in keep
        }
        return kept, velocities

    def _arrange(
        self, inputs: Sequence[GroupInput], table: Table, context: Context | None
    ) -> tuple[list[GroupInput], tuple[Segment, ...], tuple[Rows, ...]]:
        """Inputs in the order of self-attention (expert by expert), all segments, and the rows of the group mask."""
        inputs = sorted(inputs, key=lambda item: self.config.expert_of(item.group))
        segments = self.segments(inputs, context)
        first_query = 0 if context is None else len(context.groups)
        return inputs, segments, _rows(table, segments, first_query)

    def _streams(self, inputs: Sequence[GroupInput], embodiment: Tensor) -> list[Stream]:
        """The residual streams of all experts that have tokens here."""
        streams = []
        for index in range(len(self.experts)):
            members = [item for item in inputs if self.config.expert_of(item.group) == index]
            if not members:
                continue
            tokens = [self._embed(item, embodiment).float() for item in members]
            levels = [item.level or self._level(index, item.sigma) for item in members]
            runs = tuple((token.shape[1], level) for token, level in zip(tokens, levels, strict=True))
            rope = torch.cat([self._rope(item) for item in members])
            streams.append(Stream(index, torch.cat(tokens, dim=1), runs, rope))
        return streams

    def _embed_text(self, text: Float[Tensor, "B M E"]) -> tuple[Tensor, ...]:
        """Instructions in the width of every expert, (B, M, D)."""
        if text.shape[-1] != self.config.text_width:
            raise ValueError(f"text is {text.shape[-1]} wide, this model reads {self.config.text_width}")
        return tuple(expert.text_embedder(text.to(expert.head_table.dtype)) for expert in self.experts)

    def _told(self, text: TextContext | Instructions) -> Sequence[tuple[TextPair, ...] | Told]:
        """The instructions as each block takes them."""
        if isinstance(text, TextContext):
            return text.layers
        return [Told(self._embed_text(text.embedded), text.rows)] * len(self.blocks)

    def _embed(self, item: GroupInput, embodiment: Tensor) -> Float[Tensor, "B n D"]:
        value = item.value.to(self.patch_embedding.weight.dtype)
        if item.group is Group.ACTION:
            return self.action_encoder(value, embodiment)
        if item.group is Group.STATE:
            return (self.state_encoder or self.action_encoder)(value, embodiment)
        ph, pw = self.config.patch
        patches = rearrange(value, "b z f (h p) (w q) -> b (f h w) (z p q)", p=ph, q=pw)
        return self.patch_embedding(patches)

    def _rope(self, item: GroupInput) -> Tensor:
        width, device = self.config.head_width, item.value.device
        if item.group in _FIRST_STEP:
            return step_rope(_FIRST_STEP[item.group], item.value.shape[1], width, device)
        frames, h, w = item.value.shape[2:]
        first = _FIRST_FRAME.get(item.group, -frames)
        return visual_rope(first, frames, h // self.config.patch[0], w // self.config.patch[1], width, device)

    def _velocity(
        self,
        item: GroupInput,
        x: Float[Tensor, "B n D"],
        embedded: Float[Tensor, "_ m D"],
        embodiment: Tensor,
    ) -> Float[Tensor, "B ..."]:
        hidden = self.experts[self.config.expert_of(item.group)].head(x, embedded)
        if item.group is Group.ACTION:
            return self._skip(item.value, self.action_decoder(hidden, embodiment), item.sigma)
        frames, h, w = item.value.shape[2:]
        ph, pw = self.config.patch
        noisy = rearrange(item.value, "b z f (h p) (w q) -> b (f h w) (p q z)", p=ph, q=pw)
        return rearrange(
            self._skip(noisy, self.patch_head(hidden), item.sigma),
            "b (f h w) (p q z) -> b z f (h p) (w q)",
            f=frames, h=h // ph, w=w // pw, p=ph, q=pw,
        )  # fmt: skip

    def _skip(
        self, noisy: Float[Tensor, "B n c"], output: Float[Tensor, "B n c"], sigma: Float[Tensor, "_ _"]
    ) -> Float[Tensor, "B n c"]:
        """The velocity of tokens, in float32, from what the network puts out for them."""
        if not self.config.precondition:
            return output.float()
        skip, scale = flow.precondition(sigma[..., None].float())
        return skip * noisy + scale * output.float()


@lru_cache(maxsize=256)
def _rows(table: Table, segments: tuple[Segment, ...], first_query: int) -> tuple[Rows, ...]:
    """Of the group mask, made once for every arrangement."""
    return rows_of(attention_mask(table, segments, first_query))


def _present(
    table: Table, segments: Sequence[Segment], rows: Sequence[Rows], valid: Mapping[Group, Bool[Tensor, "B ..."]]
) -> Bool[Tensor, "B 1 _ L"] | None:
    """Which tokens there are, where samples lack groups or moments of history; None where that is nobody's concern.

    A group that no other one sees need not be hidden where it is absent: what it computes, nobody reads.
    """
    groups = {segment.group for segment in segments}
    seen = frozenset[Group]().union(*(table.sees[group] - {group} for group in groups)) | {Group.HISTORY}
    if not (hidden := valid.keys() & seen):
        return None
    some = valid[min(hidden)]
    everyone = torch.ones(len(some), dtype=torch.bool, device=some.device)
    columns = []
    for segment in segments:
        who = valid[segment.group] if segment.group in hidden else everyone
        moments = who.reshape(len(who), -1)
        columns.append(moments.repeat_interleave(segment.length // moments.shape[1], dim=1))
    present = torch.cat(columns, dim=1)[:, None, None]
    if Group.HISTORY not in hidden:
        return present
    # a moment that is not there sees nothing that is: it looks at itself, as attention to nothing is not a number
    itself = torch.eye(present.shape[3], dtype=torch.bool, device=present.device)
    return present | itself[-sum(row.length for row in rows) :]


def _initialise(module: nn.Module) -> None:
    """Xavier weights, zero biases, and blocks that begin as the identity (adaLN-zero)."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, NoiseEmbedding):
        nn.init.zeros_(module.project.weight)
        nn.init.zeros_(module.project.bias)
    elif isinstance(module, ExpertBlock):
        with torch.no_grad():
            module.table[[2, 5]] = 0
    elif isinstance(module, CrossAttention):
        nn.init.zeros_(module.out.weight)
