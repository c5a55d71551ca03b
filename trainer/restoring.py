"""Takes over the newest checkpoint that proves to be the state that was saved."""

from trainer.checkpoint import Loaded, NoValidCheckpoint, Stored, stage
from trainer.common_ring import Ring
from trainer.probe import Probe
from trainer.state import TrainState


class Restoring:
    """Offers the state one checkpoint of the ring after the other, newest first, until one is proved.

    All were hashed, and fit the state in names, shapes and types; with a probe the loss of its batch must be
    the one that was saved, too, to ``tolerance`` of it. Call ``state.rebase()`` when all is as it shall be.
    """

    def __init__(
        self, ring: Ring, state: TrainState, probe: Probe | None = None, tolerance: float = 1e-3
    ) -> None:
        self._ring, self._state, self._probe, self._tolerance = ring, state, probe, tolerance

    def newest(self, *, before_step: int | None = None, good_first: bool = True) -> Loaded:
        """See ``CheckpointRing.load_newest``. If it raises, the state is that of one that was refused.

        Moments that a checkpoint had none of are there again for the next one, whichever rank refused it.

        Raises:
            NoValidCheckpoint: with everything that was tried.
        """
        held = self._state.held_moments()

        def accept(stored: Stored) -> str | None:
            self._state.hold_moments(held)
            return self._take_over(stored)

        try:
            return self._ring.load_newest(before_step=before_step, good_first=good_first, accept=accept)
        except (NoValidCheckpoint, OSError):
            self._state.hold_moments(held)
            raise

    def newest_or_stay(self, *, before_step: int | None = None) -> Loaded:
        """The same, but if it raises the state is what it was; costs a copy of it."""
        here = stage(self._state.parts()), self._state.facts()
        try:
            return self.newest(before_step=before_step)
        except (NoValidCheckpoint, OSError):
            self._state.restore(*here)
            raise

    def _take_over(self, stored: Stored) -> str | None:
        """Restore and prove it: why the checkpoint is not the state that was saved, or None."""
        try:
            self._state.restore(stored.parts, stored.facts)
        except ValueError as error:
            return str(error)
        if self._probe is None:
            return None
        return self._probe.difference(stored.facts["probe"], self._state.step, self._tolerance)
