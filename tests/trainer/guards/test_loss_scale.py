"""A loss scale has a floor, an overflow is nobody's fault above it, and nothing is read to know all that."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from shared.events import Severity
from trainer.guards.loss_scale import LARGEST, ZEROS_EVERY, LossScale, share_of_zeros
from trainer.guards.nonfinite import Nonfinite
from trainer.guards.underflow import Underflow
from trainer.guards.vitals import Meter


class Scaled:
    """A linear model trained under a loss scale; ``factor`` multiplies its gradient alone."""

    def __init__(self, losses: Any, **options: Any) -> None:
        torch.manual_seed(0)
        self.model, self.losses = nn.Linear(4, 2), losses
        self.optimizer = AdamW(self.model.parameters(), lr=1e-2, fused=True)
        self.scale = LossScale(**options)
        self.meter = Meter(
            "main", self.optimizer, self.model.parameters(), max_norm=0.1, loss_scale=self.scale
        )

    def step(self, factor: float = 1.0, loss: float = 1.0) -> Any:
        self.optimizer.zero_grad()
        torch.manual_seed(self.meter.iteration)
        total = self.model(torch.randn(3, 4)).square().mean() * loss
        total.backward(self.scale.scale)
        self.model.weight.grad *= factor
        self.meter.measure(self.losses(total))
        self.meter.step()
        self.meter.settle(1e-2)
        (vitals,) = self.meter.arrived()
        return vitals


def test_a_scaled_step_is_the_step_without_a_scale(losses: Any) -> None:
    scaled, plain = Scaled(losses), Scaled(losses, start=1.0)
    for _ in range(5):
        one, other = scaled.step(), plain.step()
        assert (one.loss_scale, other.loss_scale) == (65536.0, 1.0)
        # a power of two changes no digit
        assert (one.loss, one.grad_norm, one.clip) == (other.loss, other.grad_norm, other.clip)
    assert torch.equal(scaled.model.weight, plain.model.weight)


def test_an_overflow_halves_the_scale_and_leaves_every_bit_as_it_was(losses: Any) -> None:
    scaled = Scaled(losses)
    scaled.step()
    before = copy.deepcopy(scaled.model.state_dict())
    vitals = scaled.step(factor=math.inf)
    assert (vitals.refused, vitals.reason, vitals.is_at_fault) == (True, "overflow", False)
    assert float(scaled.scale.scale) == 32768
    assert all(torch.equal(before[name], now) for name, now in scaled.model.state_dict().items())
    assert not scaled.step().refused


def test_at_the_floor_a_gradient_that_is_not_finite_is_a_finding(losses: Any) -> None:
    scaled = Scaled(losses, start=4.0, floor=1.0)
    seen = [scaled.step(factor=math.nan) for _ in range(300)]
    assert [one.reason for one in seen[:4]] == ["overflow", "overflow", "nonfinite_grad", "nonfinite_grad"]
    assert float(scaled.scale.scale) == 1.0, "torch's own scale would be 0 by now, and the next step NaN"
    assert not scaled.step().refused
    assert torch.isfinite(scaled.model.weight).all()


def test_the_scale_grows_after_clean_steps_in_a_row_and_up_to_its_largest(losses: Any) -> None:
    scaled = Scaled(losses, start=LARGEST / 2, growth_every=3)
    for factor in (1, 1, math.inf, 1, 1, 1, 1, 1, 1, 1, 1, 1):
        scaled.step(factor)
    assert float(scaled.scale.scale) == LARGEST
    assert scaled.scale.state_dict() == [LARGEST, 0]


def test_a_loss_that_is_not_finite_is_not_the_scales_fault(losses: Any) -> None:
    scaled = Scaled(losses)
    vitals = scaled.step(loss=math.nan)
    assert (vitals.reason, vitals.is_at_fault) == ("nonfinite_loss", True)
    assert scaled.scale.state_dict() == [65536.0, 0]


@pytest.mark.parametrize("values", [{"floor": 0.0}, {"start": 0.5}, {"start": math.nan}, {"start": 2.0**30}])
def test_a_scale_without_a_sound_floor_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="1 <= floor <= start"):
        LossScale(**values)


def test_a_scaled_step_reads_nothing_from_the_device(losses: Any, device_reads: Any, host_reads: Any) -> None:
    scaled = Scaled(losses)
    scaled.meter.restore(0, ZEROS_EVERY)
    total = scaled.model(torch.ones(3, 4)).square().mean()
    with device_reads, host_reads:
        total.backward(scaled.scale.scale)
        scaled.meter.measure(losses(total))
        scaled.meter.step()
        scaled.meter.settle(1e-2)
    assert (device_reads.seen, host_reads.seen) == ([], [])


def test_the_zeros_of_a_gradient_are_counted_now_and_then(losses: Any) -> None:
    scaled = Scaled(losses)
    shares = [scaled.step().zero_share for _ in range(3)]
    assert shares == [0.0, None, None]
    grads = [torch.tensor([0.0, 1.0, 0.0, 2.0]), torch.zeros(50), torch.ones(4)]
    assert float(share_of_zeros(grads)) == pytest.approx(2 / 8)


def test_an_underflow_is_told_once_and_an_overflow_not_at_all(new_training: Any, vitals: Any) -> None:
    training, guard = new_training(), Underflow()
    shares = [0.2, None, 0.21, 0.4, 0.4, 0.2, 0.4]
    told = [guard.inspect(training.view(vitals(zero_share=share, loss_scale=8.0))) for share in shares]
    assert [one is not None for one in told] == [False, False, False, True, False, False, True]
    assert told[3].severity is Severity.WARNING
    assert "40.0% of the gradient's elements are exactly 0, 20.0% at best" in told[3].message
    overflow = vitals(refused=True, reason="overflow", grad_norm=math.inf)
    assert Nonfinite().inspect(training.view(overflow)) is None
