"""Learning rate, moving average, and what the optimizer decays and remembers."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import tiny
import torch
from torch import nn

from actwam.model.projectors import EmbodimentLinear
from actwam.train.parallel import ALONE
from actwam.train.saving import read_state, write_state
from actwam.train.state import TrainState, learning_rate


def test_the_learning_rate_warms_up_and_follows_a_cosine_to_its_end() -> None:
    stage = tiny.stage(steps=101, warmup_steps=10, learning_rate=1.0, final_learning_rate=0.1)
    rates = [learning_rate(stage, step) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * (n + 1) for n in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_without_warm_up_the_first_rate_is_the_highest() -> None:
    stage = tiny.stage(steps=3, warmup_steps=0, learning_rate=1.0, final_learning_rate=0.0)
    assert [learning_rate(stage, step) for step in range(3)] == pytest.approx([1.0, 0.5, 0.0])
    assert learning_rate(tiny.stage(steps=1, warmup_steps=0, learning_rate=1.0), 0) == 1.0


def test_matrices_decay_and_biases_norms_tables_and_embodiments_do_not() -> None:
    model = tiny.model("two")
    state = TrainState.start(model, tiny.stage(weight_decay=0.3))
    decay = {id(p): group["weight_decay"] for group in state.optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        owner = model.get_submodule(name.rpartition(".")[0])
        matrix = name.endswith(".weight") and not isinstance(owner, nn.RMSNorm | nn.LayerNorm | EmbodimentLinear)
        assert decay[id(parameter)] == (0.3 if matrix else 0.0), name
    assert {0.0, 0.3} == set(decay.values())


def test_the_average_moves_faster_at_first() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    state = TrainState.start(model, tiny.stage())
    nn.init.ones_(model.weight)
    state.update_average(0, 0.999)
    assert float(state.average["weight"]) == pytest.approx(0.9)  # decay (1 + 0) / (10 + 0)
    state.update_average(10, 0.999)
    assert float(state.average["weight"]) == pytest.approx(1 - 0.1 * 11 / 20)
    before = float(state.average["weight"])
    state.update_average(10**6, 0.999)
    assert 1 - float(state.average["weight"]) == pytest.approx((1 - before) * 0.999)


def test_the_average_is_not_the_weights() -> None:
    model = tiny.model()
    state = TrainState.start(model, tiny.stage())
    before = {name: tensor.clone() for name, tensor in state.average.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert all(torch.equal(state.average[name], tensor) for name, tensor in before.items())
    assert set(state.average) == set(model.state_dict())


def stepped(model: nn.Module, state: TrainState, times: int) -> None:
    for n in range(times):
        for i, parameter in enumerate(model.parameters()):
            parameter.grad = None if i == 0 and n % 2 else torch.full_like(parameter, 0.1 + n)
        state.optimizer.step()


def test_a_restored_optimizer_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    model, other = tiny.model(), tiny.model(seed=1)
    state, again = TrainState.start(model, tiny.stage()), TrainState.start(other, tiny.stage())
    stepped(model, state, 3)
    write_state(ALONE, state.tensors(), tmp_path)
    read_state(ALONE, again.tensors(), tmp_path)
    stepped(model, state, 3)
    stepped(other, again, 3)
    tensors = state.tensors()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in again.tensors().items())


def test_an_optimizer_without_a_step_is_restored_too(tmp_path: Path) -> None:
    model, other = tiny.model(), tiny.model(seed=1)
    state, again = TrainState.start(model, tiny.stage()), TrainState.start(other, tiny.stage())
    write_state(ALONE, state.tensors(), tmp_path)
    read_state(ALONE, again.tensors(), tmp_path)
    stepped(model, state, 2)
    stepped(other, again, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("change", ["missing", "extra", "misshaped"])
def test_the_state_of_another_model_is_refused(change: str, tmp_path: Path) -> None:
    model = tiny.model()
    state = TrainState.start(model, tiny.stage())
    tensors, before = dict(state.tensors()), tiny.weights_of(model)
    if change == "missing":
        del tensors["exp_avg/patch_head.weight"]
    elif change == "extra":
        tensors["weight/stranger"] = torch.zeros(1)
    else:
        tensors["weight/patch_head.bias"] = torch.zeros(1)
    write_state(ALONE, tensors, tmp_path)
    with pytest.raises(ValueError, match="train_state does not hold the tensors of this model"):
        read_state(ALONE, state.tensors(), tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
