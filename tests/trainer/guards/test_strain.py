"""Update ratio and moment lag, against the slow, obvious way; and looks that cost nothing in between."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from trainer.guards.host_meter import HostMeter
from trainer.guards.loss_scale import LossScale
from trainer.guards.strain import Strain
from trainer.guards.vitals import Meter


class Bench:
    """A small model whose update is looked at in each step."""

    def __init__(self, losses: Any, optimizer: Any, meter: type[Meter] = Meter, **options: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
        self.optimizer: Optimizer = optimizer(self.model.parameters())
        strain = Strain([self.optimizer], every=options.pop("every", 1))
        self.meter = meter(
            "main", self.optimizer, self.model.parameters(), max_norm=0.1, strain=strain, **options
        )
        self._losses = losses

    def step(self, factor: float = 1.0) -> Any:
        self.model.zero_grad()
        scale = self.meter.loss_scale
        loss = self.model(torch.randn(4, 5)).square().mean() * factor
        loss.backward(None if scale is None else scale.scale)
        self.meter.measure(self._losses(loss))
        self.meter.step()
        self.meter.settle(1e-2)
        (vitals,) = self.meter.arrived()
        return vitals

    def matrices(self) -> list[Tensor]:
        return [p for p in self.model.parameters() if p.ndim == 2]


@pytest.mark.parametrize("kind", ["fused", "not fused", "scaled"])
def test_both_numbers_are_those_of_the_slow_way(kind: str, losses: Any) -> None:
    fused = kind != "not fused"
    scale = {"loss_scale": LossScale()} if kind == "scaled" else {}
    bench = Bench(losses, lambda p: AdamW(p, lr=1e-2, fused=fused), Meter if fused else HostMeter, **scale)
    for _ in range(3):
        bench.step()
    before = [p.detach().clone() for p in bench.matrices()]
    seconds = [bench.optimizer.state[p]["exp_avg_sq"].clone() for p in bench.matrices()]
    vitals = bench.step()
    moved = [float((p.detach() - b).norm() / b.norm()) for p, b in zip(bench.matrices(), before, strict=True)]
    taken = [p.grad for p in bench.matrices()]  # fused kernels leave what they divided
    lags = [
        float(g.norm() / v.sum().sqrt()) * math.sqrt(1 - 0.999**3)
        for g, v in zip(taken, seconds, strict=True)
        if g is not None
    ]
    assert vitals.update_ratio == pytest.approx(max(moved), rel=1e-3)
    assert vitals.moment_lag == pytest.approx(max(lags), rel=1e-3)


def test_an_optimizer_without_second_moments_has_an_update_ratio_only(losses: Any) -> None:
    bench = Bench(losses, lambda p: SGD(p, lr=1e-2, momentum=0.9, fused=True))
    vitals = bench.step()
    assert vitals.update_ratio > 0
    assert vitals.moment_lag is None


class HostCounting(Optimizer):
    """Keeps second moments as Adam does, and counts its steps on the host, or not at all."""

    def __init__(self, parameters: Any, *, counts: bool = True, one_for_all: bool = False) -> None:
        super().__init__(parameters, {"lr": 1e-2, "betas": (0.9, 0.999)})
        self._counts, self._one_for_all = counts, one_for_all

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            squares = parameter.grad.square()
            now = squares.mean().reshape(1) if self._one_for_all else squares
            state.setdefault("exp_avg_sq", torch.zeros_like(now)).mul_(0.999).add_(now, alpha=1e-3)
            if self._counts:
                state["step"] = state.get("step", 0) + 1
            parameter.add_(parameter.grad.sign(), alpha=-1e-2)


def test_a_count_on_the_host_serves_as_well_and_without_one_there_is_no_lag(losses: Any) -> None:
    lags = []
    for counts in (True, False):
        bench = Bench(losses, lambda p, c=counts: HostCounting(p, counts=c), HostMeter)
        bench.step()
        vitals = bench.step()
        assert vitals.update_ratio > 0
        lags.append(vitals.moment_lag)
    counted, uncounted = lags
    assert counted == pytest.approx(1, abs=0.7)
    assert uncounted is None


def test_moments_of_another_shape_are_none_of_adam_s(losses: Any) -> None:
    bench = Bench(losses, lambda p: HostCounting(p, one_for_all=True), HostMeter)
    bench.step()
    vitals = bench.step()
    assert vitals.update_ratio > 0
    assert vitals.moment_lag is None


def test_it_looks_every_so_often(losses: Any) -> None:
    bench = Bench(losses, lambda p: AdamW(p, lr=1e-2, fused=True), every=3)
    assert [bench.step().update_ratio is not None for _ in range(7)] == [
        *(True, False, False),
        *(True, False, False),
        True,
    ]
    with pytest.raises(ValueError, match="every 0 steps never comes"):
        Strain([bench.optimizer], every=0)


def test_a_refused_step_moves_nothing(losses: Any) -> None:
    bench = Bench(losses, lambda p: AdamW(p, lr=1e-2, fused=True))
    bench.step()
    vitals = bench.step(math.nan)
    assert vitals.refused
    assert vitals.update_ratio == 0.0


def test_a_look_reads_nothing_from_the_device(losses: Any, device_reads: Any, host_reads: Any) -> None:
    bench = Bench(losses, lambda p: AdamW(p, lr=1e-2, fused=True))
    bench.step()
    with device_reads, host_reads:
        assert bench.step().update_ratio is not None
    assert (device_reads.seen, host_reads.seen) == ([], [])


def test_shares_of_two_ranks_give_the_numbers_of_the_whole(losses: Any) -> None:
    """Each rank's sums are made the whole's by ``add``: here by doubling, as if the other had the same."""
    alone = Bench(losses, lambda p: AdamW(p, lr=1e-2, fused=True))
    shared = Bench(losses, lambda p: AdamW(p, lr=1e-2, fused=True))
    sums: list[int] = []
    strain = Strain([shared.optimizer], every=1, add=lambda one: sums.append(len(one.mul_(2))))
    shared.meter._strain = strain
    for bench in (alone, shared):
        torch.manual_seed(1)
        bench.step()
    torch.manual_seed(2)
    one = alone.step()
    sums.clear()
    torch.manual_seed(2)
    other = shared.step()
    assert (one.update_ratio, one.moment_lag) == pytest.approx((other.update_ratio, other.moment_lag))
    assert sums == [2, 2, 2, 2], "the same small sums on each rank, whatever its share"
