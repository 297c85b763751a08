"""`WorldActionTransformer`: the Wan 2.2 block over groups of tokens, with one expert (GWP-0) or two
(GWP-0.5).

The same class is a million or six billion parameters. It has four verbs, and none of them depends on
`self.training`, on call order or on anything set from outside:

    text_context(text)                 keys and values of the instruction, reused while it does not change
    encode(inputs, ..., context)       clean groups -> `Context`
    advance(context)                   the same history, seen from a moment later
    forward(inputs, ..., context)      noisy groups -> their velocities; they see the context and each other
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import cast

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from actwam import flow
from actwam.model.block import Block, CrossAttention, ExpertBlock, Stream
from actwam.model.config import TransformerConfig
from actwam.model.layers import FeedForward, NoiseEmbedding, modulate, rotate, step_rope, visual_rope
from actwam.model.projectors import VectorDecoder, VectorEncoder
from actwam.tokens import Segment, Table, attention_mask
from actwam.types import Context, Group

_FIRST_FRAME = {Group.OBSERVATION: 0, Group.FUTURE: 1}
_FIRST_STEP = {Group.STATE: 0, Group.ACTION: 1}


@dataclass(frozen=True)
class GroupInput:
    """One group as the model takes it.

    `value`: latents (B, Z, F, h, w) for visual groups, normalised vectors (B, n, S or A) for state and
    action. `sigma`: the noise level, (B, 1) for the whole group or (B, n) for each of its tokens.
    """

    group: Group
    value: Float[Tensor, "B ..."]
    sigma: Float[Tensor, "B n"]


@dataclass(frozen=True)
class TextContext:
    """Cross-attention keys and values of B instructions: for each layer, for each expert, a pair (B, N, M,
    G).
    """

    layers: tuple[tuple[tuple[Tensor, Tensor], ...], ...]

    def select(self, rows: Int[Tensor, "b"]) -> TextContext:
        """The instructions of the given rows, so that a batch encodes each distinct instruction once."""
        return TextContext(tuple(tuple((k[rows], v[rows]) for k, v in layer) for layer in self.layers))

    @classmethod
    def stack(cls, contexts: Sequence[TextContext]) -> TextContext:
        """Instructions that were encoded one by one, as one batch."""
        if len(contexts) == 1:
            return contexts[0]
        layers = zip(*(context.layers for context in contexts), strict=True)
        pairs = (tuple(zip(*layer, strict=True)) for layer in layers)
        return cls(
            tuple(
                tuple((torch.cat([k for k, _ in expert]), torch.cat([v for _, v in expert])) for expert in layer)
                for layer in pairs
            )
        )


class Expert(nn.Module):
    """What one residual stream has once: text embedder, noise embedding, and the modulation of its head."""

    def __init__(self, config: TransformerConfig, width: int) -> None:
        super().__init__()
        self.text_embedder = FeedForward(config.text_width, width, width)
        self.noise = NoiseEmbedding(width, config.frequencies)
        self.head_table = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.head_norm = nn.LayerNorm(width, config.eps, elementwise_affine=False)

    def head(self, x: Float[Tensor, "B n D"], embedded: Float[Tensor, "B m D"]) -> Float[Tensor, "B n D"]:
        """The last norm, modulated by (shift, scale) = head_table + the embedded noise level."""
        shift, scale = self.head_table[0] + embedded.float(), self.head_table[1] + embedded.float()
        return modulate(self.head_norm(x), scale, shift).to(self.head_table.dtype)


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
        if text.shape[-1] != self.config.text_width:
            raise ValueError(f"text is {text.shape[-1]} wide, this model reads {self.config.text_width}")
        embedded = [expert.text_embedder(text.to(expert.head_table.dtype)) for expert in self.experts]
        return TextContext(
            tuple(
                tuple(
                    cast("ExpertBlock", expert).cross.encode(e)
                    for expert, e in zip(block.experts, embedded, strict=True)
                )
                for block in self.blocks
            )
        )

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
        inputs, segments, mask = self._arrange(inputs, table, context)
        streams, _ = self._streams(inputs, embodiment)
        keys, values = [], []
        for i, block in enumerate(self.blocks):
            past = None if context is None else (context.keys[i], context.values[i])
            if i + 1 < len(self.blocks):
                streams, k, v = block(streams, text.layers[i], past, mask)
            else:  # nobody reads the residual stream behind the last keys and values
                k, v = block.keys_values(streams)
            keys.append(k if past is None else torch.cat([past[0], k], dim=2))
            values.append(v if past is None else torch.cat([past[1], v], dim=2))
        groups, lengths = tuple(s.group for s in segments), tuple(s.length for s in segments)
        return Context(groups, lengths, tuple(keys), tuple(values))

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
        text: TextContext,
        embodiment: Int[Tensor, "B"],
        table: Table,
        context: Context | None = None,
        valid: Mapping[Group, Bool[Tensor, "B ..."]] | None = None,
        recompute_activations: bool = False,
    ) -> dict[Group, Float[Tensor, "B ..."]]:
        """Velocities of the visual and action groups among `inputs`, shaped like their values, in float32.

        `valid[group]` is False for samples that do not have this group, (B,), or these of its moments, (B, R): nobody
        looks at its tokens there. With `recompute_activations` only what goes into a block is kept for the backward
        pass, which computes the rest of it again: the same gradients for less memory and about a third more time.
        """
        inputs, segments, mask = self._arrange(inputs, table, context)
        streams, embedded = self._streams(inputs, embodiment)
        if valid:
            mask = _with_absent(mask, segments, valid)
        for i, block in enumerate(self.blocks):
            past = None if context is None else (context.keys[i], context.values[i])
            if recompute_activations:
                streams, _, _ = checkpoint(
                    block, streams, text.layers[i], past, mask, use_reentrant=False, preserve_rng_state=False
                )
            else:
                streams, _, _ = block(streams, text.layers[i], past, mask)
        hidden = [part for s in streams for part in s.x.split([length for length, _ in s.runs], dim=1)]
        return {
            item.group: self._velocity(item, part, embedded[item.group], embodiment)
            for item, part in zip(inputs, hidden, strict=True)
            if item.group is not Group.STATE
        }

    def _arrange(
        self, inputs: Sequence[GroupInput], table: Table, context: Context | None
    ) -> tuple[list[GroupInput], tuple[Segment, ...], Bool[Tensor, "Q L"] | None]:
        """Inputs in the order of self-attention (expert by expert), all segments, and the group mask."""
        inputs = sorted(inputs, key=lambda item: self.config.expert_of(item.group))
        segments = self._segments(inputs, context)
        first_query = 0 if context is None else len(context.groups)
        return inputs, segments, _mask(table, segments, first_query, inputs[0].value.device)

    def _streams(
        self, inputs: Sequence[GroupInput], embodiment: Tensor
    ) -> tuple[list[Stream], dict[Group, Float[Tensor, "B m D"]]]:
        """The residual streams of all experts that have tokens here, and the embedded noise level of every
        group.
        """
        streams, embedded = [], {}
        for index, expert in enumerate(self.experts):
            members = [item for item in inputs if self.config.expert_of(item.group) == index]
            if not members:
                continue
            tokens, runs = [self._embed(item, embodiment).float() for item in members], []
            for item, token in zip(members, tokens, strict=True):
                embedded[item.group], modulation = expert.noise(item.sigma)
                runs.append((token.shape[1], modulation))
            rope = torch.cat([self._rope(item) for item in members])
            streams.append(Stream(index, torch.cat(tokens, dim=1), tuple(runs), rope))
        return streams, embedded

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
        embedded: Float[Tensor, "B m D"],
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
        self, noisy: Float[Tensor, "B n c"], output: Float[Tensor, "B n c"], sigma: Float[Tensor, "B _"]
    ) -> Float[Tensor, "B n c"]:
        """The velocity of tokens, in float32, from what the network puts out for them."""
        if not self.config.precondition:
            return output.float()
        skip, scale = flow.precondition(sigma[..., None].float())
        return skip * noisy + scale * output.float()

    def _segments(self, inputs: Sequence[GroupInput], context: Context | None) -> tuple[Segment, ...]:
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


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # kept for training too, wherever it was first needed
def _mask(
    table: Table, segments: tuple[Segment, ...], first_query: int, device: torch.device
) -> Bool[Tensor, "Q L"] | None:
    """The group mask on a device, made once for every arrangement; None where everybody sees everything."""
    mask = attention_mask(table, segments, first_query)
    return None if bool(mask.all()) else mask.to(device)


def _with_absent(
    mask: Bool[Tensor, "Q L"] | None, segments: Sequence[Segment], valid: Mapping[Group, Bool[Tensor, "B ..."]]
) -> Bool[Tensor, "B 1 Q L"]:
    """Hide the tokens of groups, or of moments of history, that a sample does not have."""
    some = next(iter(valid.values()))
    everyone = torch.ones(len(some), dtype=torch.bool, device=some.device)
    columns = []
    for segment in segments:
        who = valid.get(segment.group, everyone)
        moments = who.reshape(len(who), -1)
        columns.append(moments.repeat_interleave(segment.length // moments.shape[1], dim=1))
    present = torch.cat(columns, dim=1)[:, None, None]
    if Group.HISTORY not in valid:
        return present if mask is None else mask & present
    # a moment that is not there sees nothing that is: it looks at itself, as attention to nothing is not a number
    assert mask is not None  # it hides the moments' future
    itself = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)[-mask.shape[0] :]
    return (mask & present) | itself


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
