import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from trainer.guards import courier
from trainer.guards.base import Vitals
from trainer.guards.limits import Limits
from trainer.guards.vitals import Meter


class Bench:
    """A linear model whose loss, and so whose gradient, is scaled at will."""

    def __init__(self, losses: Any, max_norm: float = 1.0, name: str = "main", **options: Any) -> None:
        torch.manual_seed(0)
        self.model, self.losses = nn.Linear(4, 2), losses
        self.optimizer = AdamW(self.model.parameters(), lr=1e-2, fused=True)
        self.meter = Meter(name, self.optimizer, self.model.parameters(), max_norm=max_norm, **options)

    def step(self, scale: float = 1.0, carried: Tensor | None = None, lr: Any = 1e-2, **more: Any) -> Tensor:
        self.optimizer.zero_grad()
        torch.manual_seed(self.meter.iteration)
        total = self.model(torch.randn(3, 4)).square().mean() * scale
        total.backward()
        refused = self.meter.measure(self.losses(total, **more), carried)
        self.optimizer.step()
        self.meter.settle(lr)
        return refused

    def read(self, **more: Any) -> Vitals:
        self.step(**more)
        (vitals,) = self.meter.arrived()
        return vitals


def test_the_folded_clip_equals_torchs_own(losses: Any) -> None:
    bench = Bench(losses, max_norm=0.1)
    plain = copy.deepcopy(bench.model)
    reference = AdamW(plain.parameters(), lr=1e-2, fused=True)
    for step in range(6):
        bench.step(scale=10.0**step)
        torch.manual_seed(step)
        reference.zero_grad()
        (plain(torch.randn(3, 4)).square().mean() * 10.0**step).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
        reference.step()
        # torch divides by norm + 1e-6, we by norm: a relative 1e-6 at a norm of 1
        torch.testing.assert_close(bench.model.weight, plain.weight, rtol=1e-6, atol=1e-6)


def test_a_gradient_below_the_limit_is_not_scaled_at_all(losses: Any) -> None:
    bench = Bench(losses, max_norm=1e6)
    vitals = bench.read(scale=1e-3)
    gradient = bench.model.weight.grad
    assert vitals.clip == 1.0
    assert gradient is not None
    assert vitals.grad_norm == pytest.approx(
        math.hypot(gradient.norm(), bench.model.bias.grad.norm()), rel=1e-6
    )


def test_vitals_tell_what_was_measured(losses: Any) -> None:
    bench = Bench(losses, max_norm=0.25)
    bench.step()
    bench.meter.arrived()
    parts = {"mse": torch.tensor(0.5), "kl": torch.tensor(-2.0, dtype=torch.float64)}
    seen = bench.read(
        parts=parts, per_sample=torch.tensor([1.0, 2.0]), times=torch.tensor([0.25, 1.0]), lr=3e-4
    )
    assert (seen.objective, seen.iteration, seen.step, seen.lr) == ("main", 1, 1, 3e-4)
    assert (seen.parts, seen.sample_losses, seen.times) == ({"mse": 0.5, "kl": -2.0}, (1.0, 2.0), (0.25, 1.0))
    assert (seen.refused, seen.reason) == (False, None)
    assert seen.clip == pytest.approx(seen.grad_norm / 0.25)


def test_a_learning_rate_on_the_device_is_read_as_it_was_at_the_step(losses: Any) -> None:
    bench = Bench(losses)
    rate = torch.tensor(0.5)
    bench.step(lr=rate)
    rate.fill_(0.25)
    assert [v.lr for v in bench.meter.arrived()] == [0.5]


@pytest.mark.parametrize(
    ("scale", "reason"),
    [(math.nan, "nonfinite_loss"), (math.inf, "nonfinite_loss"), (-math.inf, "nonfinite_loss")],
)
def test_a_loss_that_is_not_finite_is_the_reason(scale: float, reason: str, losses: Any) -> None:
    vitals = Bench(losses).read(scale=scale)
    assert (vitals.refused, vitals.reason, vitals.clip) == (True, reason, 1.0)
    assert not math.isfinite(vitals.loss)


def test_a_gradient_that_is_not_finite_is_the_reason(losses: Any) -> None:
    bench = Bench(losses)
    handle = bench.model.weight.register_hook(lambda grad: grad * torch.inf)
    vitals = bench.read()
    handle.remove()
    assert (vitals.refused, vitals.reason) == (True, "nonfinite_grad")
    assert math.isfinite(vitals.loss)


def test_a_loss_or_norm_above_its_ceiling_is_a_spike(losses: Any) -> None:
    limits = Limits()
    bench = Bench(losses, limits=limits)
    usual = bench.read()
    ceilings = [usual.loss * 2, usual.grad_norm * 1e6, math.inf]
    limits.publish([1.0] * 32, ceilings, [1.0] * 3)
    spike = bench.read(scale=100.0)
    assert (spike.refused, spike.reason, spike.step) == (True, "spike", 1)
    ceilings = [math.inf, usual.grad_norm * 2, math.inf]
    limits.publish([1.0] * 32, ceilings, [1.0] * 3)
    assert bench.read(scale=100.0).reason == "spike"
    after = bench.read()
    assert (after.refused, after.step, after.iteration) == (False, 1, 3)


def test_the_adaptive_clip_never_exceeds_the_users(losses: Any) -> None:
    limits = Limits()
    bench = Bench(losses, max_norm=0.5, limits=limits)
    limits.publish([1.0] * 32, [math.inf, math.inf, 0.01], [1.0] * 3)
    vitals = bench.read()
    assert vitals.clip == pytest.approx(vitals.grad_norm / 0.01)
    limits.publish([1.0] * 32, [math.inf, math.inf, 100.0], [1.0] * 3)
    vitals = bench.read(scale=100.0)
    assert vitals.clip == pytest.approx(vitals.grad_norm / 0.5)


def test_a_later_objective_is_refused_with_the_earlier_one(losses: Any) -> None:
    first, second = Bench(losses), Bench(losses, name="second")
    before = second.model.weight.detach().clone()
    refused = second.step(carried=first.step(scale=math.nan))
    (vitals,) = second.meter.arrived()
    assert refused
    assert (vitals.refused, vitals.reason) == (True, None)
    assert torch.equal(second.model.weight, before)
    assert not second.step(carried=first.step())


def test_refused_steps_do_not_count_as_applied(losses: Any) -> None:
    bench = Bench(losses)
    for scale in (1.0, math.nan, 1.0, math.inf, math.nan, 1.0):
        bench.step(scale=scale)
    assert [v.step for v in bench.meter.arrived()] == [0, 1, 1, 2, 2, 2]
    assert (int(bench.meter.applied), bench.meter.iteration) == (3, 6)


def test_a_complete_step_reads_nothing_from_the_device(
    new_training: Any, device_reads: Any, host_reads: Any
) -> None:
    training = new_training()
    training.update()
    training.meter.arrived()
    with device_reads, host_reads:
        training.update()
        (vitals,) = training.meter.arrived()
    assert (device_reads.seen, host_reads.seen) == ([], [])
    assert vitals.iteration == 1
    with device_reads, host_reads:
        assert training.meter.applied > 0
    assert device_reads.seen  # or the count proves nothing
    assert host_reads.seen


class Copy:
    """Stands for a CUDA event: done when told, or when somebody waits for it."""

    def __init__(self) -> None:
        self.done, self.waits = False, 0

    def query(self) -> bool:
        return self.done

    def synchronize(self) -> None:
        self.waits += 1
        self.done = True


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[Copy]:
    made: list[Copy] = []

    def start(numbers: Tensor) -> tuple[Tensor, Copy]:
        made.append(Copy())
        return numbers, made[-1]

    monkeypatch.setattr(courier, "to_host", start)
    return made


def test_vitals_arrive_in_order_and_nobody_waits_within_the_history(losses: Any, copies: list[Copy]) -> None:
    bench = Bench(losses, history=2)
    bench.step()
    bench.step()
    assert bench.meter.arrived() == []
    copies[1].done = True
    assert bench.meter.arrived() == []  # the first has not come
    copies[0].done = True
    assert [v.iteration for v in bench.meter.arrived()] == [0, 1]
    assert sum(copy.waits for copy in copies) == 0


def test_the_host_waits_when_it_is_too_far_ahead_or_asked_to(losses: Any, copies: list[Copy]) -> None:
    bench = Bench(losses, history=2)
    for _ in range(4):
        bench.step()
    assert [v.iteration for v in bench.meter.arrived()] == [0, 1]
    assert [copy.waits for copy in copies] == [1, 1, 0, 0]
    assert [v.iteration for v in bench.meter.arrived(wait=True)] == [2, 3]


def test_a_restored_meter_forgets_what_is_under_way(losses: Any, copies: list[Copy]) -> None:
    bench = Bench(losses)
    bench.step()
    bench.meter.restore(applied=40, iteration=55)
    assert bench.meter.arrived(wait=True) == []
    bench.step()
    (vitals,) = bench.meter.arrived(wait=True)
    assert (vitals.step, vitals.iteration) == (40, 55)


@pytest.mark.parametrize("max_norm", [0.0, -1.0, math.nan])
def test_a_limit_that_is_not_positive_is_refused(max_norm: float, losses: Any) -> None:
    with pytest.raises(ValueError, match="max_norm"):
        Bench(losses, max_norm=max_norm)


def test_a_step_without_gradients_is_a_mistake(losses: Any) -> None:
    with pytest.raises(ValueError, match="no parameter has a gradient"):
        Bench(losses).meter.measure(losses(torch.tensor(1.0)))


def test_parameters_in_half_precision_are_measured_in_float32(losses: Any) -> None:
    model = nn.Linear(4, 2).to(torch.bfloat16)
    optimizer = AdamW(model.parameters(), fused=True)
    meter = Meter("main", optimizer, model.parameters(), max_norm=1.0)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e5)
    meter.measure(losses(torch.tensor(1.0)))
    optimizer.step()
    meter.settle(1e-3)
    (vitals,) = meter.arrived()
    assert vitals.grad_norm == pytest.approx(1e5 * math.sqrt(10), rel=0.01)


def test_parameters_in_double_precision_are_measured_in_it(losses: Any) -> None:
    model = nn.Linear(4, 2).double()
    optimizer = AdamW(model.parameters(), fused=True)
    meter = Meter("main", optimizer, model.parameters(), max_norm=1.0)
    total = model(torch.ones(3, 4, dtype=torch.float64)).square().mean()
    total.backward()
    assert not meter.measure(losses(total))
    optimizer.step()
    meter.settle(torch.tensor(1e-3, dtype=torch.float64))
    (vitals,) = meter.arrived()
    assert (vitals.loss, vitals.lr) == (total.item(), 1e-3)
