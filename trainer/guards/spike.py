"""Loss and gradient norm far above what this batch should give, judged in the log domain.

A diffusion loss varies far more with the sampled time than with anything that goes wrong, so the guard learns
what each time usually costs and judges what is left. It publishes what it knows as ``limits``: the device
refuses by them in the same step; here the step is judged again, explained, and learned from if it was normal.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from pydantic import Field, model_validator

from shared.events import Finding, Severity
from trainer.guards.base import StepView, Vitals, finding
from trainer.guards.expectation import LossOfTime, NormOfLoss, Residuals
from trainer.guards.limits import Limits, bins_of
from trainer.section import Section


class SpikeConfig(Section):
    window: int = Field(256, ge=8, description="Accepted residuals remembered, in steps; a median needs 8.")
    warm_up: int = Field(64, ge=8, description="Accepted residuals before the first decision, in steps.")
    refresh: int = Field(
        8, ge=1, description="Median and scale are taken anew this often, in accepted steps."
    )
    floor: float = Field(0.05, gt=0, description="Least robust deviation, in log units.")
    warn_loss_above: float = Field(
        5.0, gt=0, description="Tell of a step whose loss is this many robust deviations too high."
    )
    warn_norm_above: float = Field(
        8.0, gt=0, description="Tell of a step whose gradient norm is so many too high: its tail is heavier."
    )
    skip_loss_above: float = Field(7.5, gt=0, description="Refuse a step whose loss is so many too high.")
    skip_norm_above: float = Field(10.0, gt=0, description="Refuse a step whose norm is so many too high.")
    untimed_above: float = Field(
        12.0, gt=0, description="In place of the last four where no diffusion time explains the loss."
    )
    bin_rate: float = Field(0.02, gt=0, le=1, description="Least weight of a new sample in its time's mean.")
    forgetting: float = Field(0.995, gt=0, lt=1, description="Of the norm's regression, for each step.")
    regime_flags: int = Field(
        32, ge=2, description="So many flagged steps of the last `regime_window` are a regime."
    )
    regime_window: int = Field(64, ge=2, description="In steps.")
    adaptive_clip: bool = Field(
        True, description="Clip to the usual norm of such a batch, if below max_norm."
    )
    clip_above: float = Field(2.5, gt=0, description="Clip a norm this many robust deviations too high.")

    @model_validator(mode="after")
    def _a_regime_fits_its_window(self) -> Self:
        if self.regime_flags > self.regime_window:
            raise ValueError(
                f"regime_flags is {self.regime_flags}, but regime_window holds {self.regime_window} steps, "
                f"so no regime would ever be seen; give at most {self.regime_window}"
            )
        return self


@dataclass(frozen=True, slots=True)
class _Judged:
    """A step against its expectation, in natural logarithms; a residual is ``None`` if none is known."""

    bins: Sequence[int]
    rms: float
    expected_loss: float
    expected_norm: float
    loss_residual: float | None
    norm_residual: float | None
    loss_z: float
    norm_z: float


class _Thresholds(NamedTuple):
    """Robust deviations above which to tell, and above which to refuse."""

    warn_loss: float
    warn_norm: float
    skip_loss: float
    skip_norm: float


class Spike:
    """Loss and gradient norm of one objective: host arithmetic on numbers that are there, no device read.

    A refused spike is an error; a step that stands out, or is refused too late, a warning. When half of the
    recent steps stand out, it is the run that has changed: the guard says so, and learns anew. Steps refused
    for another reason, and steps that stand out, never enter what it knows. A loss that is not positive is
    not judged, its norm is.

    ``limits`` stays the same object for ever; give it to the objective's ``Meter``, whose device it shares.
    """

    scans = False

    def __init__(
        self, objective: str, config: SpikeConfig | None = None, *, limits: Limits | None = None
    ) -> None:
        self.objective, self.name = objective, f"spike.{objective}"
        self.limits = limits if limits is not None else Limits()
        self._config = config or SpikeConfig()
        self._flags: deque[bool] = deque(maxlen=self._config.regime_window)
        self._timed = True
        self._forget()

    def inspect(self, view: StepView) -> Finding | None:
        vitals = view.vitals
        if vitals.objective != self.objective or not _is_usable(vitals):
            return None
        self._timed = bool(vitals.times)
        judged = self._judge(vitals)
        stands_out = self._stands_out(vitals, judged)
        self._flags.append(stands_out)
        if sum(self._flags) >= self._config.regime_flags:
            return self._begin_anew(view)
        if not stands_out:
            self._learn(vitals, judged)
            self._publish()
        return self._tell(view, judged, stands_out)

    def state_dict(self) -> dict[str, Any]:
        return {
            "flags": list(self._flags),
            "timed": self._timed,
            "losses": self._losses.state_dict(),
            "norms": self._norms.state_dict(),
            "loss_residuals": self._loss_residuals.state_dict(),
            "norm_residuals": self._norm_residuals.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._flags = deque(state["flags"], maxlen=self._config.regime_window)
        self._timed = state["timed"]
        self._losses.load_state_dict(state["losses"])
        self._norms.load_state_dict(state["norms"])
        self._loss_residuals.load_state_dict(state["loss_residuals"])
        self._norm_residuals.load_state_dict(state["norm_residuals"])
        self._publish()

    def _forget(self) -> None:
        config = self._config
        self._flags.clear()
        self._losses = LossOfTime(config.bin_rate)
        self._norms = NormOfLoss(config.forgetting)
        self._loss_residuals, self._norm_residuals = (
            Residuals(config.window, config.warm_up, config.refresh, config.floor) for _ in range(2)
        )
        self._publish()

    def _publish(self) -> None:
        """Hand the device what is known now: a function of the state alone, so a resumed run is bit-exact."""
        above = self._thresholds()
        self._expected = self._losses.expected()
        offset, slope = self._norms.line() or (0.0, 0.0)
        clip = self._norm_residuals.at(self._config.clip_above) if self._config.adaptive_clip else math.inf
        middle = sum(map(math.log, self._expected)) / len(self._expected)
        ceilings = (
            middle + self._loss_residuals.at(above.skip_loss),
            slope * middle + offset + self._norm_residuals.at(above.skip_norm),
            slope * middle + offset + clip,
        )
        # in units of the middle, so that a loss of any size stays within float32
        expected = [loss / math.exp(middle) for loss in self._expected]
        self.limits.publish(expected, [_exp(ceiling) for ceiling in ceilings], (1.0, slope, slope))

    def _thresholds(self) -> _Thresholds:
        config = self._config
        if not self._timed:
            return _Thresholds(*(config.untimed_above,) * 4)
        return _Thresholds(
            config.warn_loss_above, config.warn_norm_above, config.skip_loss_above, config.skip_norm_above
        )

    def _judge(self, vitals: Vitals) -> _Judged:
        bins = bins_of(vitals.times) if self._timed else [0]
        losses = [self._expected[place] for place in bins]
        mean = math.log(sum(losses) / len(losses))
        rms = math.log(math.hypot(*losses) / math.sqrt(len(losses))) if self._timed else 0.0
        line = self._norms.line()
        norm = line[0] + line[1] * rms if line else 0.0
        loss_known = not self._losses.is_empty and vitals.loss > 0
        norm_known = line is not None and vitals.grad_norm > 0
        loss_residual = math.log(vitals.loss) - mean if loss_known else None
        norm_residual = math.log(vitals.grad_norm) - norm if norm_known else None
        return _Judged(
            bins=bins,
            rms=rms,
            expected_loss=mean,
            expected_norm=norm,
            loss_residual=loss_residual,
            norm_residual=norm_residual,
            loss_z=0.0 if loss_residual is None else self._loss_residuals.z(loss_residual),
            norm_z=0.0 if norm_residual is None else self._norm_residuals.z(norm_residual),
        )

    def _stands_out(self, vitals: Vitals, judged: _Judged) -> bool:
        above = self._thresholds()
        too_high = judged.loss_z > above.skip_loss or judged.norm_z > above.skip_norm
        return too_high or vitals.reason == "spike"

    def _learn(self, vitals: Vitals, judged: _Judged) -> None:
        if judged.loss_residual is not None:
            self._loss_residuals.accept(judged.loss_residual)
        if judged.norm_residual is not None:
            self._norm_residuals.accept(judged.norm_residual)
        if vitals.grad_norm > 0 and not (self._timed and self._losses.is_empty):
            self._norms.learn(judged.rms, math.log(vitals.grad_norm))
        self._losses.learn(judged.bins, vitals.sample_losses if self._timed else (vitals.loss,))

    def _begin_anew(self, view: StepView) -> Finding:
        flagged, steps = sum(self._flags), len(self._flags)
        self._forget()
        message = (
            f"{self.objective}: a new regime, no spike: {flagged} of the last {steps} steps stood out; it is "
            f"learned anew, and for {self._config.warm_up} steps no spike is refused"
        )
        return finding("spike", view, Severity.WARNING, message, flagged=flagged)

    def _tell(self, view: StepView, judged: _Judged, stands_out: bool) -> Finding | None:
        vitals = view.vitals
        above = self._thresholds()
        if not (stands_out or judged.loss_z > above.warn_loss or judged.norm_z > above.warn_norm):
            return None
        usual_loss = math.exp(judged.expected_loss + self._loss_residuals.usual)
        usual_norm = math.exp(judged.expected_norm + self._norm_residuals.usual)
        done = "refused" if vitals.refused else "applied"
        message = (
            f"{self.objective}: loss {vitals.loss:.4g} where such a batch usually gives {usual_loss:.4g} "
            f"(z {judged.loss_z:.1f}), gradient norm {vitals.grad_norm:.4g} instead of {usual_norm:.4g} "
            f"(z {judged.norm_z:.1f}); the update was {done}"
        )
        return finding(
            "spike",
            view,
            Severity.ERROR if vitals.refused else Severity.WARNING,
            message,
            loss=vitals.loss,
            usual_loss=usual_loss,
            loss_z=judged.loss_z,
            grad_norm=vitals.grad_norm,
            usual_grad_norm=usual_norm,
            norm_z=judged.norm_z,
            **self._worst_sample(view, judged),
        )

    def _worst_sample(self, view: StepView, judged: _Judged) -> dict[str, str]:
        """The sample whose own loss is furthest above its expectation, if there are names and times."""
        losses = view.vitals.sample_losses
        if not self._timed or len(view.sample_ids) != len(losses):
            return {}
        excess = [loss / self._expected[place] for loss, place in zip(losses, judged.bins, strict=True)]
        return {"worst_sample": view.sample_ids[excess.index(max(excess))]}


def _exp(exponent: float) -> float:
    """Infinite where ``math.exp`` would raise for being too large."""
    return math.exp(exponent) if exponent < 700 else math.inf


def _is_usable(vitals: Vitals) -> bool:
    """A step with finite numbers of its own: applied, or refused because it is a spike."""
    numbers = (vitals.loss, vitals.grad_norm, *vitals.sample_losses, *vitals.times)
    return all(map(math.isfinite, numbers)) and (not vitals.refused or vitals.reason == "spike")
