"""One ring of checkpoints for all ranks: the first writes and chooses, all load and prove the same files.

Every rank sees the run's folder. What of a state differs between ranks, their random states and what their
guards remember, is gathered into the one checkpoint by ``TrainState``.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from trainer.checkpoint import (
    CheckpointInvalid,
    CheckpointRing,
    CheckpointWriter,
    Loaded,
    NoValidCheckpoint,
    Record,
    RingConfig,
    SaveResult,
    Stored,
    read,
)
from trainer.ranks import Ranks

Accept = Callable[[Stored], str | None]


class Ring(Protocol):
    """What recovery asks of a ring."""

    def records(self) -> tuple[Record, ...]: ...
    def steps(self) -> tuple[int, ...]: ...
    def invalidate_after(self, step: int, attempt: int) -> None: ...
    def load_newest(
        self, *, before_step: int | None = None, good_first: bool = True, accept: Accept = ...
    ) -> Loaded: ...


class Writer(Protocol):
    """What recovery asks of a writer."""

    def submit(
        self, parts: Any, facts: Any, *, step: int, attempt: int, probe_loss: float | None
    ) -> None: ...
    def healthy(self, step: int, open_findings: bool) -> None: ...
    def finished(self) -> list[SaveResult]: ...
    def under_way(self) -> tuple[str, float] | None: ...
    def drain(self) -> None: ...
    def close(self) -> None: ...


def ring_and_writer(
    root: Path, config: RingConfig, on_change: Callable[[Record], None], ranks: Ranks
) -> tuple[Ring, Writer]:
    """Those of this rank; a run of one process has the ring itself.

    Raises:
        OSError: the folder can't be made.
    """
    ring = CheckpointRing(root, config, on_change) if ranks.is_first else None
    writer = Bystander() if ring is None else CheckpointWriter(ring)
    return ring if ring is not None and not ranks.are_many else CommonRing(root, ring, ranks), writer


class CommonRing:
    """The first rank's ring as all ranks see it. Each call is for all of them together, as with ``Ranks``.

    Args:
        ring: on the first rank.
    """

    def __init__(self, root: Path, ring: CheckpointRing | None, ranks: Ranks) -> None:
        self.root, self._ring, self._ranks = root, ring, ranks

    def records(self) -> tuple[Record, ...]:
        """All checkpoints, newest first."""
        return self._ranks.of_first(lambda: self._own.records())

    def steps(self) -> tuple[int, ...]:
        """Steps of what ``load_newest`` could offer, newest first."""
        return self._ranks.of_first(lambda: self._own.steps())

    def invalidate_after(self, step: int, attempt: int) -> None:
        """As ``CheckpointRing.invalidate_after``; the only call that the others do not wait for."""
        if self._ring is not None:
            self._ring.invalidate_after(step, attempt)

    def load_newest(
        self,
        *,
        before_step: int | None = None,
        good_first: bool = True,
        accept: Accept = lambda stored: None,
    ) -> Loaded:
        """As ``CheckpointRing.load_newest``; each rank must accept it, or the next older one is tried.

        Raises:
            NoValidCheckpoint: on all ranks; the first one's says what was tried.
        """
        if self._ring is None:
            return self._follow(accept)
        try:
            loaded = self._ring.load_newest(
                before_step=before_step,
                good_first=good_first,
                accept=lambda stored: self._offer(stored, accept),
            )
        except (NoValidCheckpoint, OSError) as error:
            self._say("none", str(error))
            raise
        self._say("loaded", loaded.record)
        return loaded

    @property
    def _own(self) -> CheckpointRing:
        assert self._ring is not None, "asked on the first rank only"
        return self._ring

    def _say(self, what: str, about: object) -> tuple[str, Any]:
        return self._ranks.of_first(lambda: (what, about))

    def _offer(self, stored: Stored, accept: Accept) -> str | None:
        draft = Record.draft(self.root, stored.manifest.step, stored.manifest.attempt)
        self._say("try", draft.path)
        return self._prove(stored, None, accept)

    def _follow(self, accept: Accept) -> Loaded:
        stored: Stored | None = None
        while True:
            what, about = self._say("", None)
            if what == "loaded":
                assert stored is not None, "the first rank offered it before"
                return Loaded(about, stored)
            if what == "none":
                raise NoValidCheckpoint(self.root, [])
            stored, refusal = _read(about)
            self._prove(stored, refusal, accept)

    def _prove(self, stored: Stored | None, refusal: str | None, accept: Accept) -> str | None:
        """What the first rank that refuses says. Nobody takes over what somebody can't read."""
        refusal = self._first_of(refusal)
        if refusal is not None:
            return refusal
        assert stored is not None
        return self._first_of(accept(stored))

    def _first_of(self, refusal: str | None) -> str | None:
        said = self._ranks.pool([] if refusal is None else [refusal])
        return next((f"rank {rank}: {one}" for rank, words in enumerate(said) for one in words), None)


class Bystander:
    """The writer of a rank that writes nothing."""

    def submit(self, parts: Any, facts: Any, *, step: int, attempt: int, probe_loss: float | None) -> None:
        """The first rank keeps the same state."""

    def healthy(self, step: int, open_findings: bool) -> None:
        """Promotion is the first rank's."""

    def finished(self) -> list[SaveResult]:
        """Nothing was begun."""
        return []

    def under_way(self) -> None:
        """Nothing is."""

    def drain(self) -> None:
        """Nothing is under way."""

    def close(self) -> None:
        """Nothing is open."""


def _read(path: Path) -> tuple[Stored | None, str | None]:
    try:
        return read(path), None
    except (CheckpointInvalid, OSError) as error:
        return None, f"can't read it: {error}"
