"""Optimizers whose kernel can't refuse: the host reads the verdict, and a bad step is never taken."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adafactor, AdamW, Muon, Optimizer, RMSprop

from trainer.guards.host_meter import HostMeter
from trainer.guards.loss_scale import LossScale
from trainer.guards.vitals import Meter

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "foreach adamw": lambda p: AdamW(p, lr=1e-2, foreach=True),
    "rmsprop": lambda p: RMSprop(p, lr=1e-2),
    "adafactor": lambda p: Adafactor(p, lr=1e-2),
    "muon": lambda p: Muon([one for one in p if one.ndim == 2], lr=1e-2),
    "sgd with dampening": lambda p: SGD(p, lr=1e-2, momentum=0.9, dampening=0.1),
}


def everything(model: nn.Module, *optimizers: Optimizer) -> list[Tensor]:
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    moments = [value for state in states for value in state.values() if isinstance(value, Tensor)]
    return [tensor.detach().clone() for tensor in [*model.state_dict().values(), *moments]]


def take_step(model: nn.Module, meter: Meter, losses: Any, seed: int, factor: float = 1.0) -> bool:
    """One step; ``factor`` multiplies the loss."""
    model.zero_grad()
    torch.manual_seed(seed)
    total = model(torch.randn(4, 5)).square().mean() * factor
    scale = meter.loss_scale
    total.backward(None if scale is None else scale.scale)
    refused = meter.measure(losses(total))
    meter.step()
    meter.settle(1e-2)
    return bool(refused)


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "with a loss scale"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_any_optimizer_takes_the_good_steps_and_none_of_the_bad(kind: str, scaled: bool, losses: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    plain = copy.deepcopy(model)
    optimizer, reference = OPTIMIZERS[kind](model.parameters()), OPTIMIZERS[kind](plain.parameters())
    loss_scale = LossScale() if scaled else None
    meter = HostMeter("main", optimizer, model.parameters(), max_norm=0.1, loss_scale=loss_scale)
    assert take_step(model, meter, losses, 9, math.nan), "the first step is refused"
    for seed in range(4):
        assert not take_step(model, meter, losses, seed)
        plain.zero_grad()
        torch.manual_seed(seed)
        plain(torch.randn(4, 5)).square().mean().backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
        reference.step()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)  # torch divides by norm + 1e-6
    before = everything(model, optimizer)
    assert take_step(model, meter, losses, 5, math.inf)
    assert all(map(torch.equal, before, everything(model, optimizer)))


def test_several_optimizers_with_their_groups_are_refused_together(losses: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    groups = [{"params": [model[0].weight]}, {"params": [model[0].bias], "weight_decay": 0.0}]
    first = AdamW(groups, lr=1e-2, fused=True)
    second = SGD(model[2].parameters(), lr=1e-2, momentum=0.9, fused=True)
    meter = Meter("main", [first, second], model.parameters(), max_norm=0.1)
    assert not take_step(model, meter, losses, 0)
    before = everything(model, first, second)
    assert take_step(model, meter, losses, 1, math.nan)
    assert all(map(torch.equal, before, everything(model, first, second)))
    assert not take_step(model, meter, losses, 2)
    assert not any(map(torch.equal, before[:4], everything(model, first, second)))


def test_a_compiled_model_is_measured_like_any_other(losses: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    plain = copy.deepcopy(model)
    for one in (torch.compile(model, backend="eager"), plain):
        optimizer = AdamW(one.parameters(), lr=1e-2, fused=True)
        meter = Meter("main", optimizer, one.parameters(), max_norm=0.1)
        refused = [
            take_step(one, meter, losses, seed, factor) for seed, factor in enumerate((1, math.nan, 1))
        ]
        assert refused == [False, True, False]
    assert torch.equal(model[0].weight, plain[0].weight)
