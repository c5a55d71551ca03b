"""The average follows the published rule, update by update, and a refused update does not exist for it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.ema import Ema, EmaConfig

EVERY, AFTER, BETA = 4, 12, 0.9


def published(weights: list[Tensor]) -> Tensor:
    """The average after all ``weights``: upstream's rule (SPEC §9) with its own counters."""
    average, step, initted = weights[0] * 0, 0, False
    for online in weights:
        s = step
        step += 1
        if s % EVERY != 0:
            continue
        if s <= AFTER:
            average = online.double().clone()
            continue
        if not initted:
            average, initted = online.double().clone(), True
        e = step - AFTER - 1
        decay = min(BETA, 1 - (1 + e) ** (-2 / 3)) if e > 0 else 0.0
        average = average + (1 - decay) * (online.double() - average)
    return average


class Walk:
    """An observer that writes down a weight after every applied update."""

    def __init__(self) -> None:
        self.weights: dict[int, Tensor] = {}
        self.statistics: dict[int, Tensor] = {}

    def __call__(self, phase: Any, loop: Any) -> None:
        if phase == "report":
            applied = int(loop.objectives[0].meter.applied)
            self.weights.setdefault(applied, loop.model.head.weight.detach().clone())
            self.statistics.setdefault(applied, loop.model.inner[1].running_var.clone())


def refuse(phase: Any, loop: Any) -> None:
    if phase == "measure" and loop.state.iteration in (4, 5, 8, 9, 17, 18, 22, 30):
        loop.model.head.weight.grad[0, 0, 0, 0] = torch.nan


@pytest.mark.parametrize("late", [False, True])
def test_the_average_is_the_published_one_also_between_refused_steps(
    lab: Any, late: bool, request: pytest.FixtureRequest
) -> None:
    if late:
        request.getfixturevalue("late_numbers")
    walk = Walk()
    loop = lab.run(config=lab.without_replay(), steps=40, observers=[refuse, walk])
    assert loop.reporter.record.skipped_steps == 8
    assert sorted(set(walk.weights) - {0}) == list(range(1, 41))
    for name, seen in (("head.weight", walk.weights), ("inner.1.running_var", walk.statistics)):
        expected = published([seen[n] for n in range(1, 41)])
        # float32 arithmetic against float64: some ulps of the largest value, gathered over ten averagings
        torch.testing.assert_close(loop.state.ema.tensors[name].double(), expected, rtol=2e-6, atol=1e-6)


def test_a_refused_update_leaves_the_average_bit_for_bit() -> None:
    model = nn.Linear(2, 2)
    ema = Ema(model, EmaConfig(every=1, start_after=0))
    before = {name: tensor.clone() for name, tensor in ema.tensors.items()}
    with torch.no_grad():
        model.weight.fill_(torch.nan)
    ema.update(range(1), torch.tensor(0), torch.tensor(True))
    assert all(torch.equal(before[name], ema.tensors[name]) for name in before)


def test_constants_have_no_average_and_counters_neither() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[0].requires_grad_(False)
    assert set(Ema(model, EmaConfig()).tensors) == {
        *("1.weight", "1.bias"),
        *("1.running_mean", "1.running_var"),
    }


def test_a_model_carries_the_average_only_within_the_block() -> None:
    model = nn.Linear(2, 2)
    ema = Ema(model, EmaConfig())
    own = model.weight.detach().clone()
    ema.tensors["weight"].fill_(3.0)
    seen: list[Tensor] = []

    def look_and_fail() -> None:
        with ema.in_place_of(model):
            seen.append(model.weight.detach().clone())
            raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        look_and_fail()
    assert torch.equal(seen[0], torch.full((2, 2), 3.0))
    assert torch.equal(model.weight, own)
    assert torch.equal(ema.tensors["weight"], torch.full((2, 2), 3.0))
