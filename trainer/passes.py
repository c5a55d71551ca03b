"""What is computed of one batch: the phases between its fetch and its report, objective by objective."""

from collections.abc import Callable, Sequence
from enum import StrEnum

import torch
from torch import Tensor, nn

from shared.events import Finding
from trainer.guards.at_rest import AtRest
from trainer.guards.base import StepLosses
from trainer.guards.pieces import combine, piece_of
from trainer.held import HeldModes
from trainer.news import mended
from trainer.objective import Objective
from trainer.precision import Precision, computing_in
from trainer.probe import Trainee
from trainer.taken import Batch


class Phase(StrEnum):
    """What is done in a step, in this order.

    FORWARD to UPDATE come once for each objective, FORWARD and BACKWARD once for each piece of the batch.
    """

    FETCH = "fetch"
    FORWARD = "forward"
    BACKWARD = "backward"
    MEASURE = "measure"
    UPDATE = "update"
    REPORT = "report"


class Passes:
    """Computes losses and gradients of a batch, decides on the device, and updates.

    ``losses`` and ``objective`` are of the step at hand; until it is measured, ``losses`` are those of the
    last piece. With ``micro_batches`` pieces a batch's gradients are added up in turn, in the memory that one
    piece takes.

    Args:
        enter: called at the start of each phase.
        hear: what had to be put back before it was used: modes of modules, learning rates.
    """

    def __init__(
        self,
        model: nn.Module,
        objectives: Sequence[Objective],
        at_rest: AtRest,
        *,
        device: torch.device,
        precision: Precision,
        micro_batches: int,
        enter: Callable[[Phase], None],
        hear: Callable[[Sequence[Finding]], None],
    ) -> None:
        assert isinstance(model, Trainee)
        self._model, self.objectives, self._at_rest = model, objectives, at_rest
        self.device, self.precision, self.micro_batches = device, precision, micro_batches
        self._enter, self._hear = enter, hear
        self.objective = objectives[0]
        self.losses: StepLosses | None = None
        self.begin()

    def begin(self) -> None:
        """The modes of the modules are what they shall stay."""
        self._modes = HeldModes(self._model)

    def losses_of(self, batch: Batch, number: int) -> StepLosses:
        """The first objective's losses of a batch: what a replay computes."""
        return self._losses(batch, self.objectives[0].name, number)

    def carry_out(self, batch: Batch, number: int) -> Tensor:
        """All phases of update ``number``; answers whether its first objective refused it, on the device."""
        answers: list[Tensor] = []
        for objective in self.objectives:
            self.objective = objective
            self._add_up_gradients(batch, number)
            if not answers:  # the batch's first update: nothing may have changed since the last one's
                self._at_rest.compare()
            self._enter(Phase.MEASURE)
            assert self.losses is not None
            # a refusal carries over to later objectives
            answers.append(objective.meter.measure(self.losses, answers[-1] if answers else None))
            self._enter(Phase.UPDATE)
            self._update(number)
        return answers[0]

    def _add_up_gradients(self, batch: Batch, number: int) -> None:
        """Forward and backward, piece by piece; then ``losses`` are those of the whole batch."""
        pieces: list[StepLosses] = []
        for piece in range(self.micro_batches):
            self._enter(Phase.FORWARD)
            if piece == 0:
                self._hear(mended(number, "modes", self.objective.name, self._modes.put_back()))
                self.objective.meter.protect()
            part = piece_of(batch, piece, self.micro_batches)
            self.losses = self._losses(part, self.objective.name, number)
            self._enter(Phase.BACKWARD)
            self.objective.backward(self.losses, share=1 / self.micro_batches)
            pieces.append(self.losses)
        self.losses = combine(pieces)

    def _losses(self, batch: Batch, objective: str, number: int) -> StepLosses:
        with computing_in(self.precision, self.device):
            return self._model.training_step(batch, objective, number)

    def _update(self, number: int) -> None:
        """Apply the update where the device did not refuse it, and forget all gradients.

        All, since the loss of one objective may flow through the weights of another.
        """
        self._hear(mended(number, "schedule", self.objective.name, self.objective.update()))
        self._model.zero_grad(set_to_none=True)
