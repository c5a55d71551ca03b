import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from shared.events import Finding, Severity
from trainer.guards.base import StepView, Vitals
from trainer.guards.spike import Spike, SpikeConfig


class Stream:
    """Healthy steps of a diffusion training, its loss weighted by (t + 1) / sqrt(t), and spikes on request.

    Per-sample losses scatter around a profile of t that sinks as the model learns; the gradient norm follows
    the rms of what the batch should cost. The residuals scatter by 0.11 and 0.16, as measured on a small
    U-Net. A step is refused as the device would: by the ceilings.
    """

    def __init__(self, guard: Spike, seed: int = 0, timed: bool = True, batch: int = 8) -> None:
        self.guard, self.timed, self.batch = guard, timed, batch
        self.rng, self.iteration, self.refused = np.random.default_rng(seed), 0, 0

    def vitals(self, loss_factor: float = 1.0, norm_factor: float = 1.0) -> Vitals:
        t = np.clip(self.rng.random(self.batch), 1e-3, 1)
        level = 0.2 + 2 * math.exp(-self.iteration / 150)
        usual = level * (t + 1) / np.sqrt(t) * (0.3 + t)
        losses = usual * self.rng.lognormal(0, 0.2, self.batch) * loss_factor
        norm = 2 * np.sqrt((usual**2).mean()) * self.rng.lognormal(0, 0.15) * norm_factor
        ceilings = self.guard.limits.ceilings(torch.tensor(t) if self.timed else None).tolist()
        refused = not (losses.mean() <= ceilings[0] and norm <= ceilings[1])
        self.iteration += 1
        return Vitals(
            objective="diffusion",
            iteration=self.iteration,
            step=self.iteration,
            loss=float(losses.mean()),
            parts={},
            grad_norm=float(norm),
            clip=1.0,
            lr=1e-3,
            refused=refused,
            reason=_reason(losses.mean(), norm) if refused else None,
            sample_losses=tuple(losses.tolist()) if self.timed else (),
            times=tuple(t.tolist()) if self.timed else (),
        )

    def feed(self, **factors: float) -> tuple[Vitals, Finding | None]:
        vitals = self.vitals(**factors)
        ids = tuple(f"map_{i}" for i in range(self.batch))
        return vitals, self.guard.inspect(StepView(vitals, ids, watched=None))  # type: ignore[arg-type]

    def run(self, steps: int) -> Iterator[Finding]:
        for _ in range(steps):
            _, finding = self.feed()
            if finding is not None:
                yield finding


def _reason(loss: float, norm: float) -> Any:
    if not math.isfinite(loss):
        return "nonfinite_loss"
    return "spike" if math.isfinite(norm) else "nonfinite_grad"


@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_three_thousand_healthy_steps_raise_no_alarm(seed: int, timed: bool) -> None:
    assert list(Stream(Spike("diffusion"), seed, timed).run(3000)) == []


@pytest.mark.parametrize("factors", [{"loss_factor": 3.0}, {"norm_factor": 10.0}])
def test_nearly_all_spikes_are_refused_on_the_device_and_told(factors: dict[str, float]) -> None:
    stream, seen, tried = Stream(Spike("diffusion"), batch=16), 0, 0
    for step in range(2500):
        is_spike = step > 800 and step % 17 == 0  # before that the loss sinks fast, and the guard allows more
        vitals, finding = stream.feed(**factors if is_spike else {})
        tried += is_spike
        seen += is_spike and vitals.refused and finding is not None and finding.severity is Severity.ERROR
        assert is_spike or finding is None
    assert seen >= 0.95 * tried


def test_without_times_only_an_enormous_step_is_refused() -> None:
    stream = Stream(Spike("diffusion"), timed=False)
    assert list(stream.run(300)) == []
    assert stream.feed(loss_factor=3.0)[1] is None
    assert stream.feed(loss_factor=1e4)[0].refused


@pytest.mark.parametrize("factors", [{"loss_factor": math.nan}, {"norm_factor": math.inf}])
def test_what_is_not_finite_teaches_nothing(factors: dict[str, float]) -> None:
    stream = Stream(Spike("diffusion"))
    list(stream.run(200))
    before = json.dumps(stream.guard.state_dict(), allow_nan=False)
    for _ in range(100):
        vitals, finding = stream.feed(**factors)
        assert vitals.refused
        assert finding is None
    assert json.dumps(stream.guard.state_dict(), allow_nan=False) == before


def test_a_spike_teaches_nothing() -> None:
    stream = Stream(Spike("diffusion"))
    list(stream.run(200))
    before = stream.guard.limits.table.clone()
    for _ in range(20):
        stream.feed(loss_factor=30.0, norm_factor=30.0)
    assert torch.equal(stream.guard.limits.table, before)


def test_a_step_refused_along_with_another_objective_teaches_nothing(vitals: Callable[..., Vitals]) -> None:
    guard = Spike("diffusion")
    before = guard.state_dict()
    view = StepView(vitals(refused=True, reason=None), (), watched=None)  # type: ignore[arg-type]
    assert guard.inspect(view) is None
    assert guard.state_dict() == before


def test_a_lasting_change_is_a_new_regime_and_training_goes_on() -> None:
    stream = Stream(Spike("diffusion"))
    list(stream.run(300))
    findings = [stream.feed(loss_factor=20.0, norm_factor=20.0)[1] for _ in range(500)]
    told = [finding for finding in findings if finding is not None]
    assert [finding.severity for finding in told] == [Severity.ERROR] * 31 + [Severity.WARNING]
    assert "new regime" in told[-1].message


def test_a_spike_is_told_with_its_numbers_and_its_worst_sample() -> None:
    stream = Stream(Spike("diffusion"), batch=2)
    list(stream.run(300))
    vitals, finding = stream.feed(loss_factor=50.0)
    assert finding is not None
    assert finding.reading["worst_sample"] in {"map_0", "map_1"}
    assert finding.reading["loss"] == vitals.loss
    assert finding.reading["usual_loss"] == pytest.approx(vitals.loss / 50, rel=1.0)
    assert float(finding.reading["loss_z"]) > 8
    assert finding.message.startswith("diffusion: loss")
    assert finding.message.endswith("the update was refused")


def test_a_spike_that_came_through_is_only_a_warning() -> None:
    stream = Stream(Spike("diffusion"))
    list(stream.run(300))
    stream.guard.limits.publish([1.0] * 32, [math.inf] * 3, [1.0] * 3)  # as if the host had been late
    vitals, finding = stream.feed(loss_factor=50.0)
    assert not vitals.refused
    assert finding is not None
    assert finding.severity is Severity.WARNING


def test_the_adaptive_clip_lies_a_little_above_the_usual_norm() -> None:
    stream = Stream(Spike("diffusion"))
    list(stream.run(500))
    clipped = 0
    for _ in range(1000):
        vitals, _ = stream.feed()
        clipped += vitals.grad_norm > stream.guard.limits.ceilings(torch.tensor(vitals.times))[2].item()
    assert 0 < clipped < 50  # 2.5 deviations: about 6 of 1000


def test_the_adaptive_clip_can_be_switched_off() -> None:
    stream = Stream(Spike("diffusion", SpikeConfig(adaptive_clip=False)))
    list(stream.run(200))
    assert stream.guard.limits.ceilings(torch.rand(8))[2] > 3e38


def test_a_loss_that_may_be_negative_is_judged_by_its_norm() -> None:
    def negated(vitals: Vitals) -> Vitals:
        return Vitals(**{f: getattr(vitals, f) for f in Vitals.__slots__} | {"loss": -vitals.loss})

    stream = Stream(Spike("diffusion"), timed=False)
    for step in range(400):
        view = StepView(negated(stream.vitals()), (), watched=None)  # type: ignore[arg-type]
        assert stream.guard.inspect(view) is None, step
    assert stream.vitals(norm_factor=1e6).reason == "spike"


def test_a_resumed_guard_goes_on_to_the_bit() -> None:
    first = Stream(Spike("diffusion"))
    list(first.run(150))
    second = Spike("diffusion")
    second.load_state_dict(json.loads(json.dumps(first.guard.state_dict(), allow_nan=False)))
    assert torch.equal(second.limits.table, first.guard.limits.table)
    for _ in range(100):
        vitals = first.vitals()
        view = StepView(vitals, (), watched=None)  # type: ignore[arg-type]
        assert first.guard.inspect(view) == second.inspect(view)
    assert torch.equal(second.limits.table, first.guard.limits.table)


def test_other_objectives_are_none_of_its_business(vitals: Callable[..., Vitals]) -> None:
    guard = Spike("diffusion")
    before = guard.state_dict()
    assert guard.inspect(StepView(vitals(objective="discriminator"), (), watched=None)) is None  # type: ignore[arg-type]
    assert guard.state_dict() == before


def test_a_regime_that_could_never_be_seen_is_refused() -> None:
    with pytest.raises(ValidationError, match="give at most 64"):
        SpikeConfig(regime_flags=65)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_losses_of_any_size_are_judged_alike(scale: float) -> None:
    """A sum over all pixels is 65536 times their mean: nothing may overflow on the way to the device."""
    stream = Stream(Spike("diffusion"), batch=16)
    for _ in range(600):
        usual = stream.vitals()
        scaled = {"loss": usual.loss * scale, "sample_losses": tuple(x * scale for x in usual.sample_losses)}
        fields = {name: getattr(usual, name) for name in Vitals.__slots__}
        step = Vitals(**fields | scaled | {"refused": False, "reason": None})
        assert stream.guard.inspect(StepView(step, (), watched=None)) is None  # type: ignore[arg-type]
    loss, norm, clip = stream.guard.limits.ceilings(torch.tensor(step.times)).tolist()
    assert step.loss < loss < 10 * step.loss
    assert step.grad_norm / 2 < clip < norm < 20 * step.grad_norm
