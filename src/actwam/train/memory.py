"""What a stage of training needs in memory (`actwam.memory`)."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from actwam import checkpoint
from actwam.memory import Ledger, Need, Tokens, encoding, size_of, stand_in, with_reserve
from actwam.model.config import TransformerConfig
from actwam.model.context import Instructions
from actwam.model.transformer import WorldActionTransformer
from actwam.objective import NOISY_ACTION, NOISY_FUTURE, NoisyBatch
from actwam.tokens import Table
from actwam.train.adapt import adapt, published
from actwam.train.config import Precision, Recipe, StageConfig
from actwam.train.saving import FILE_BYTES
from actwam.train.state import TrainState
from actwam.train.step import Lesson, forward_losses
from actwam.types import Group, Mode

META = torch.device("meta")
STEP_COPIES = 3
"""Float32 copies of the largest tensor that the step of adamw8bit makes at most: the weight and both moments."""


def recipe_need(recipe: Recipe, stage: StageConfig, device: torch.device, precision: Precision) -> Need:
    """For a stage of a recipe, a teacher beside it in float32. Reads `config.json` of `recipe.start`, and no weights.

    Raises ValueError when the stage or the picture does not fit the model, and when the start is no checkpoint.
    """
    grid, _ = latent_grid(recipe)
    if any(side % patch for side, patch in zip(grid, recipe.model.patch, strict=True)):
        raise ValueError(
            f"recipe {recipe.name}: pictures make latents of {grid[0]} x {grid[1]}, which do not divide into tokens of "
            f"{recipe.model.patch[0]} x {recipe.model.patch[1]}; choose another height or width"
        )
    tokens = recipe_tokens(recipe)
    if recipe.teacher is None:
        return training_need(recipe.model, stage, recipe.table, tokens, device, precision)
    need = training_need(recipe.model, stage, recipe.table, replace(tokens, future_frames=0), device, precision)
    with META:
        teacher = size_of(WorldActionTransformer(recipe.model).parameters())
    return with_reserve(replace(need, weights=need.weights + teacher, reserve=0), device)


def own_need(
    recipe: Recipe, stage: StageConfig, device: torch.device, precision: Precision, at_once: int, pieces: int
) -> Need:
    """What one of many processes needs that compute `at_once` samples at once with a model cut in so many pieces. The
    block that is computed, and the one that comes next, are whole.
    """
    need = recipe_need(recipe, replace(stage, batch_size=at_once), device, precision)
    if pieces == 1:
        return need
    whole, own = need.gradients, {name: getattr(need, name) // pieces for name in ("optimizer", "average", "gradients")}
    blocks = 2 * need.weights // recipe.model.layers
    step = need.at_once - whole + own["gradients"] + blocks
    return with_reserve(replace(need, weights=need.weights // pieces, **own, at_once=step, reserve=0), device)


def recipe_tokens(recipe: Recipe) -> Tokens:
    """What the model of a recipe reads at once."""
    grid, time_stride = latent_grid(recipe)
    return Tokens(
        grid=grid,
        future_frames=recipe.window.latent_frames(time_stride),
        actions=recipe.window.action_horizon,
        history=len(recipe.window.history_offsets),
    )


def latent_grid(recipe: Recipe) -> tuple[tuple[int, int], int]:
    """Height and width of the latents of a recipe, and how many pictures make a latent frame."""
    layout = recipe.layouts[0]
    if recipe.start is None:
        assert recipe.codec is not None  # a recipe without it has a start
        return (layout.height // recipe.codec.patch, layout.width // recipe.codec.patch), 1
    made = encoding(*checkpoint.stored_codec(recipe.start), layout.height, layout.width)
    return made.grid, made.time_stride


@lru_cache(maxsize=64)
def training_need(
    config: TransformerConfig,
    stage: StageConfig,
    table: Table,
    tokens: Tokens,
    device: torch.device,
    precision: Precision,
) -> Need:
    """For a step of a stage, every sample with an instruction of its own and all groups that the modes know.

    Raises ValueError when the stage freezes what it cannot.
    """
    TrainState.start(torch.nn.Linear(64, 64), stage)  # torchao computes what its codes mean once, and not from fakes
    with META:
        model = WorldActionTransformer(config)
    adapt(model, stage, META)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        state = TrainState.start(model, stage)
        parameters = list(model.parameters())
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        weights, gradients = size_of(parameters), size_of(trained)
        copies = _checkpoint_need(model, state)
        low = stand_in(model, device)
        noisy = shaped_batch(config, stage, tokens)
        text = torch.empty(stage.batch_size, config.text_tokens, config.text_width)
        rows, robots = (torch.zeros(stage.batch_size, dtype=torch.long) for _ in range(2))
    # Out of the mode, so that what the model keeps for later calls (masks, angles) is real. Fake meets fake anyway.
    given = [*parameters, *(x for _, part in noisy.tensors() for x in part.values()), text, rows, robots]
    with Ledger(given) as ledger:
        autocast = low if precision == "bf16" else None
        loss = forward_losses(stage, model, table, Lesson(noisy, Instructions(text, rows), robots), autocast)["loss"]
        activations = ledger.alive
        loss.backward()
    at_once = ledger.most
    if stage.optimizer == "adamw8bit":
        at_once = max(at_once, gradients + STEP_COPIES * 4 * max(parameter.numel() for parameter in trained))
    need = Need(
        weights=weights,
        optimizer=size_of(moment for moments in state.optimizer.state.values() for moment in moments.values()),
        average=size_of(state.average.values()),
        gradients=gradients,
        activations=activations,
        at_once=at_once,
        checkpoint=copies if device.type == "cpu" else 0,
        host=0 if device.type == "cpu" else copies,
        advice=_advice(stage, len(config.experts)),
    )
    return with_reserve(need, device)


def _checkpoint_need(model: WorldActionTransformer, state: TrainState) -> int:
    """Bytes that are copied to the CPU to write a checkpoint while training goes on (`train.saving`), those that are
    made of the copies, and those of a file that is being written.
    """
    weights, train_state = state.weights(), state.tensors().values()
    with Ledger([*model.parameters(), *state.average.values()]) as ledger:
        published(model, weights)
    copied = size_of(train_state)
    return size_of(weights.values()) + ledger.most + copied + min(copied, FILE_BYTES)


def shaped_batch(config: TransformerConfig, stage: StageConfig, tokens: Tokens) -> NoisyBatch:
    """A batch of the stage's size whose values nobody looks at."""
    modes, size = {source.mode for source in stage.sources}, stage.batch_size
    shapes = tokens.shapes(config, size)
    if modes == {Mode.VIDEO}:
        shapes = {group: shape for group, shape in shapes.items() if group not in (Group.STATE, Group.ACTION)}
    teaching = {Group.ACTION: NOISY_ACTION, Group.FUTURE: NOISY_FUTURE}
    taught = [group for group in shapes if teaching.get(group, frozenset()) & modes]
    unlike = Mode.VIDEO in modes
    # whom some samples may lack: at the ends of episodes there is no future, and at their beginnings no history
    partial = {
        Group.HISTORY: True,
        Group.STATE: unlike or stage.objective.state_dropout > 0,
        Group.ACTION: unlike,
        Group.FUTURE: True,
    }
    who = {group: (size, tokens.history) if group is Group.HISTORY else (size,) for group in partial}
    each = {Group.ACTION} if stage.objective.action_prefix and Mode.POLICY in modes else frozenset[Group]()
    return NoisyBatch(
        values={group: torch.empty(shape) for group, shape in shapes.items()},
        sigmas={group: torch.empty(shapes[group][:2] if group in each else (size,)) for group in shapes},
        targets={group: torch.empty(shapes[group]) for group in taught},
        present={group: torch.ones(who[group], dtype=torch.bool) for group in shapes if partial.get(group)},
        weighs={group: torch.ones(shapes[group], dtype=torch.bool) for group in taught},
        taught=dict.fromkeys(taught, size),
    )


def _advice(stage: StageConfig, experts: int) -> str:
    """What the stage could do with less, in the order of what it costs."""
    options = {
        "recompute_activations": not stage.recompute_activations,
        f"a batch_size below {stage.batch_size}": stage.batch_size > 1,
        "optimizer adamw8bit": stage.optimizer == "adamw",
        "ema_decay None": stage.ema_decay is not None,
        "weights bf16 with adamw8bit": stage.weights == "fp32" and stage.lora is None,
        "frozen_weights bf16": bool(stage.freeze or stage.lora) and stage.frozen_weights == "fp32",
        "freeze the visual expert": experts > 1 and not stage.freeze,
        "lora": stage.lora is None,
    }
    left = [what for what, helps in options.items() if helps]
    return f"try, in this order: {', '.join(left)}" if left else "take a larger machine"
