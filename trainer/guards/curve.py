"""What a curve of losses shows by itself: spikes, a level that is lost, divergence, plateau, collapse.

Everything is judged against the curve's own noise, in the log domain as long as the losses are positive, so
it fits any task and scale. Pure Python. ``state_dict`` is plain JSON.
"""

import math
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any, NamedTuple

from pydantic import Field

from trainer.guards.course import Course, CourseConfig, Sight, scatter
from trainer.section import Section

_LAST_FEW = 5  # the level now is their median
_WINDOW = 100  # rows whose scatter is the noise
_WARM_UP = 10  # rows before the first decision
_LEAST_NOISE = 0.01  # log units: a smoother curve is judged as if it had so much
_LEAST_RISE = 0.1  # log units: what rises by less is nobody's concern
_NEW_LEVEL = 10  # rows that stand out in a row are the level from now on
_AFTER_RESTART = 3  # rows in which a jump is the restart's own
_RECORDS = 1000  # rows whose highest jump a new spike must exceed
_SIGNED = 3  # a loss of either sign (adversary, policy gradient) must stand out so much more


class CurveConfig(Section):
    spike_above: float = Field(12.0, gt=0, description="Robust deviations of a single row that is a spike.")
    record_ratio: float = Field(1.5, ge=1, description="It must also exceed the highest jump before by this.")
    slack: float = Field(3.0, gt=0, description="CUSUM: robust deviations a row may be too high.")
    row_at_most: float = Field(8.0, gt=0, description="CUSUM: what one row counts at most, in deviations.")
    shift_above: float = Field(9.0, gt=0, description="CUSUM: excess deviations that are a lost level.")
    norm_ratio: float = Field(5.0, gt=1, description="Gradient norm, over its usual, that confirms a rise.")
    explosion_ratio: float = Field(30.0, gt=1, description="The same, twice in three rows, speaks alone.")
    course: CourseConfig = CourseConfig()


class Curve:
    """One curve, row by row. Forgets everything when the steps begin anew and the loss with them."""

    def __init__(self, config: CurveConfig | None = None) -> None:
        self._config = config or CurveConfig()
        self._last_step, self._grace = -math.inf, 0
        self._forget()

    def update(self, step: float, loss: float, grad_norm: float | None = None) -> Sight | None:
        """Take in one row; ``loss`` finite. A gradient norm that is missing or not finite is not judged."""
        if step < 0.5 * self._last_step:
            self._grace = _AFTER_RESTART
        self._last_step = step if self._grace else max(self._last_step, step)
        seen = self._take(loss, grad_norm)
        if self._grace and seen is not None and seen.kind != "plateau":
            self._forget()  # a new training in the same log begins high
            seen = self._take(loss, grad_norm)
        self._grace = max(0, self._grace - 1)
        return seen

    def state_dict(self) -> dict[str, Any]:
        return {
            "last_step": self._last_step if math.isfinite(self._last_step) else None,
            "grace": self._grace,
            "signed": self._signed,
            "zeros": self._zeros,
            "level": self._level.state_dict(),
            "norm": self._norm.state_dict(),
            "course": self._course.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._last_step = -math.inf if state["last_step"] is None else state["last_step"]
        self._grace, self._signed, self._zeros = state["grace"], state["signed"], state["zeros"]
        self._level.load_state_dict(state["level"])
        self._norm.load_state_dict(state["norm"])
        self._course.load_state_dict(state["course"])

    def _forget(self) -> None:
        self._signed, self._zeros = False, 0
        self._level, self._norm = _Level(self._config), _Norm(self._config)
        self._course = Course(self._config.course)

    def _take(self, loss: float, grad_norm: float | None) -> Sight | None:
        collapsed = self._collapse(loss)
        if loss <= 0 and not self._signed:
            if self._zeros:
                return collapsed
            self._forget()
            self._signed = True
        value = loss if self._signed else math.log(loss)
        norm = self._norm.take(grad_norm)
        seen = self._level.take(value, self._signed, norm.confirms) or norm.sight
        course = None if self._signed else self._course.take(value)
        return seen or course or collapsed

    def _collapse(self, loss: float) -> Sight | None:
        """A loss of exactly zero, row after row, where it was large: it is computed from nothing."""
        usual = self._level.usual
        if loss != 0 or self._signed or usual is None or usual < math.log(1e-3) or self._level.is_wild:
            self._zeros = 0
            return None
        self._zeros += 1
        if self._zeros != 3:
            return None
        return Sight(
            "collapse", f"is exactly 0 for the third time, after {math.exp(usual):.4g}", {"loss": 0.0}
        )


class _Level:
    """Residuals above the median of the last few rows: single spikes, and a CUSUM for what stays."""

    def __init__(self, config: CurveConfig) -> None:
        self._config = config
        self._values: deque[float] = deque(maxlen=_WINDOW)
        self._residuals: deque[float] = deque(maxlen=_WINDOW)
        self._jumps: deque[float] = deque(maxlen=_RECORDS)
        self._pending: list[float] = []
        self._excess, self._is_told = 0.0, False

    @property
    def usual(self) -> float | None:
        """The level now, in the curve's own units; ``None`` while there is none."""
        return median(list(self._values)[-_LAST_FEW:]) if self._values else None

    @property
    def is_wild(self) -> bool:
        """Whether it scatters so much (as an adversary's loss does) that no single value is odd."""
        return bool(self._residuals) and scatter(self._residuals) > 0.3

    def take(self, value: float, signed: bool, norm_confirms: bool) -> Sight | None:
        usual = self.usual
        if usual is None or len(self._residuals) < _WARM_UP:
            self._accept(value, usual)
            return None
        unit = max(map(abs, self._values)) if signed else 1.0
        noise = max(scatter(self._residuals), _LEAST_NOISE * unit, 1e-300)
        rise = value - usual
        z = rise / noise / (_SIGNED if signed else 1)
        seen = self._judge(z, rise, signed, norm_confirms, usual)
        self._jumps.append(max(0.0, rise))
        if z > 0.5 * (self._config.slack + 6) and (signed or rise > 0.5 * _LEAST_RISE):
            self._doubt(value)
        else:
            self._pending.clear()
            self._accept(value, usual)
        return seen

    def state_dict(self) -> dict[str, Any]:
        return {
            "values": list(self._values),
            "residuals": list(self._residuals),
            "jumps": list(self._jumps),
            "pending": list(self._pending),
            "excess": self._excess,
            "is_told": self._is_told,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._values = deque(state["values"], maxlen=_WINDOW)
        self._residuals = deque(state["residuals"], maxlen=_WINDOW)
        self._jumps = deque(state["jumps"], maxlen=_RECORDS)
        self._pending = list(state["pending"])
        self._excess, self._is_told = state["excess"], state["is_told"]

    def _judge(self, z: float, rise: float, signed: bool, norm_confirms: bool, usual: float) -> Sight | None:
        config = self._config
        numbers = {"z": z, "rise": rise, "usual": usual if signed else math.exp(usual)}
        how = f"{numbers['usual']:.4g}, {z:.1f} robust deviations"
        shifted = self._cusum(z, signed or rise > 0.5 * _LEAST_RISE)
        if shifted:
            return Sight("shift", f"stays above its level of {how}", numbers)
        ratio = config.record_ratio * (_SIGNED if signed else 1)
        record = max(self._jumps, default=0.0)
        if z > config.spike_above and rise > ratio * record and (signed or rise > _LEAST_RISE):
            return Sight("spike", f"jumps from {how}", numbers)
        if norm_confirms and z > config.slack:
            return Sight("spike", f"jumps from {how}, and the gradient norm with it", numbers)
        return None

    def _cusum(self, z: float, counts: bool) -> bool:
        """Whether the level has just been lost. One row, however high, is never enough."""
        slack = self._config.slack
        if counts or z <= 0:
            self._excess += max(-slack, min(z, self._config.row_at_most)) - slack
        self._excess = min(max(0.0, self._excess), self._config.shift_above * 1.01)
        if self._excess == 0:
            self._is_told = False
        crossed = self._excess > self._config.shift_above and not self._is_told
        self._is_told = self._is_told or crossed
        return crossed

    def _doubt(self, value: float) -> None:
        """A row that stands out waits outside; with enough others it is what is usual from now on."""
        self._pending.append(value)
        if len(self._pending) >= _NEW_LEVEL:
            self._values.extend(self._pending)
            self._pending.clear()

    def _accept(self, value: float, usual: float | None) -> None:
        if usual is not None:
            self._residuals.append(value - usual)
            if len(self._residuals) < _WARM_UP:
                self._jumps.append(max(0.0, value - usual))
        self._values.append(value)


class _NormSeen(NamedTuple):
    confirms: bool
    sight: Sight | None


class _Norm:
    """The gradient norm: alone it speaks only when it explodes or vanishes, else it confirms the loss."""

    def __init__(self, config: CurveConfig) -> None:
        self._config = config
        self._logs: deque[float] = deque(maxlen=_WINDOW)
        self._exploded: deque[bool] = deque(maxlen=3)
        self._zeros = 0

    def take(self, norm: float | None) -> _NormSeen:
        if norm is None or not math.isfinite(norm) or norm < 0:
            return _NormSeen(False, None)
        self._zeros = self._zeros + 1 if norm == 0 else 0
        if norm == 0:
            gone = Sight("vanishing", "has a gradient of exactly 0, three times", {"grad_norm": 0.0})
            return _NormSeen(False, gone if self._zeros == 3 else None)
        value = math.log(norm)
        if len(self._logs) < _WARM_UP:
            self._logs.append(value)
            return _NormSeen(False, None)
        return self._judge(value)

    def state_dict(self) -> dict[str, Any]:
        return {"logs": list(self._logs), "exploded": list(self._exploded), "zeros": self._zeros}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._logs = deque(state["logs"], maxlen=_WINDOW)
        self._exploded = deque(state["exploded"], maxlen=3)
        self._zeros = state["zeros"]

    def _judge(self, value: float) -> _NormSeen:
        usual = median(self._logs)
        noise = max(scatter(one - usual for one in self._logs), 0.1)
        far = (value - usual) / noise > 2 * self._config.slack
        confirms = far and value - usual > math.log(self._config.norm_ratio)
        self._exploded.append(far and value - usual > math.log(self._config.explosion_ratio))
        if not confirms:
            self._logs.append(value)
        if sum(self._exploded) < 2:
            return _NormSeen(confirms, None)
        self._exploded.clear()
        words = f"has a gradient norm of {math.exp(min(value, 700)):.4g}, usually {math.exp(usual):.4g}"
        return _NormSeen(confirms, Sight("explosion", words, {"log_norm": value, "usual": math.exp(usual)}))
