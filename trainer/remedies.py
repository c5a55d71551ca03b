"""What is changed so that a fault stays away: rates turned down, samples set aside, data passed over."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from shared.events import Change
from trainer.checkpoint import AS_BEFORE, Easing, LoadCheckpoint, RestoreSnapshot
from trainer.factors import Factors, Lowered
from trainer.reporting import Reporter
from trainer.state import TrainState


class Remedies:
    """Changes a run beside its weights. Each change is told; what lasts is in the record, which stays.

    Args:
        eased: scalars on the device, all 1, by which learning rates are multiplied.
        returns_over: steps over which rates and clipping norms come back.
    """

    def __init__(
        self, state: TrainState, reporter: Reporter, eased: Sequence[Tensor], returns_over: int
    ) -> None:
        self._state, self._reporter = state, reporter
        clip = [meter.clip_factor for meter in state.meters.values()]
        lowered = Lowered.model_validate(reporter.record.factors)
        self._factors = Factors(eased, clip, reporter.change, returns_over, lowered)
        state.loader.quarantine(reporter.record.quarantined)

    @property
    def lowered(self) -> Lowered:
        """What is turned down."""
        return self._factors.lowered

    def quarantine(self, ids: Sequence[str], reason: str, incident: str | None) -> None:
        """Leave these samples out for the rest of the run."""
        record = self._reporter.record
        fresh = [one for one in ids if one not in record.quarantined]
        record.quarantined += fresh
        self._state.loader.quarantine(fresh)
        for one in fresh:
            self._tell("quarantine", one, reason, incident)

    def go_along_with(
        self, rung: RestoreSnapshot | LoadCheckpoint, reason: str, incident: str | None
    ) -> None:
        """What this rung asks for beside the way back, where that has led."""
        if rung.easing != AS_BEFORE:
            self._lower(self._state.step, rung.easing, reason, incident)
        first = self._state.iteration
        if rung.past is not None and rung.past > first:
            self._state.loader.skip(rung.past - first)
            self._tell("data_window", f"{first}..{rung.past - 1}", reason, incident)

    def ease(self, step: int, easing: Easing, reason: str) -> bool:
        """Turn down what nothing has turned down yet; answers whether it was so."""
        if self._factors.is_usual:
            self._lower(step, easing, reason, None)
            return True
        return False

    def follow(self) -> None:
        """Set what is due at the state's step. Costs a comparison while nothing is turned down."""
        told = self.lowered
        self._factors.follow(self._state.step)
        if self.lowered is not told:
            self._remember()

    def _lower(self, step: int, easing: Easing, reason: str, incident: str | None) -> None:
        self._factors.lower(
            step, reason, lr=easing.lr, clip=easing.clip, rewarm=easing.rewarm, incident=incident
        )
        self._remember()

    def _remember(self) -> None:
        self._reporter.record.factors = self._factors.state_dict()

    def _tell(
        self, what: Literal["quarantine", "data_window"], value: str, reason: str, incident: str | None
    ) -> None:
        self._reporter.change(
            Change(
                step=self._state.step, what=what, value=value, previous="", reason=reason, incident=incident
            )
        )
