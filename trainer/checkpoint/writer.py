"""Saves beside training: one save under way, one waiting, and the loop collects what became of them."""

import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from trainer.checkpoint.errors import CheckpointError
from trainer.checkpoint.facts import Facts
from trainer.checkpoint.record import Record
from trainer.checkpoint.ring import CheckpointRing
from trainer.checkpoint.tensors import Parts


@dataclass(frozen=True)
class SaveResult:
    """What became of a save: a record, or the error that a loop reports and survives."""

    step: int
    attempt: int
    record: Record | None = None
    error: CheckpointError | None = None


@dataclass(frozen=True)
class _Job:
    parts: Parts
    facts: Facts
    step: int
    attempt: int
    probe_loss: float | None


class CheckpointWriter:
    """One thread that saves into a ring. All methods belong to the loop's thread.

    A full or slow disk delays saves and never a step: ``submit``, ``healthy`` and ``finished`` take no disk.
    Memory: the staged parts of two saves at most. Scan and hash share the cores with training.
    """

    def __init__(self, ring: CheckpointRing) -> None:
        self._ring = ring
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint-writer")
        self._lock = threading.Lock()
        self._waiting: _Job | None = None
        self._saves: deque[Future[SaveResult]] = deque()
        self._begun: tuple[str, float] | None = None
        self._promotion: Future[None] | None = None
        self.num_replaced = 0

    def submit(
        self, parts: Parts, facts: Facts, *, step: int, attempt: int, probe_loss: float | None = None
    ) -> None:
        """Take over staged parts and return at once. A save that still waits is replaced, and counted.

        Args:
            parts: from ``stage``, nobody else's from now on.
            facts: copied here, since guards and generators go on.
        """
        job = _Job(parts, deepcopy(facts), step, attempt, probe_loss)
        with self._lock:
            replaces = self._waiting is not None
            self._waiting = job
        if replaces:
            self.num_replaced += 1
        else:
            self._saves.append(self._pool.submit(self._save_waiting))

    def healthy(self, step: int, open_findings: bool) -> None:
        """As ``CheckpointRing.healthy``, but the thread does the promotion: a few comparisons a step."""
        if not self._ring.is_due(step, open_findings):
            return
        if self._promotion is None or self._promotion.done():
            self._raise_if_promotion_failed()
            self._promotion = self._pool.submit(self._promote, step)

    def finished(self) -> list[SaveResult]:
        """Results since the last call, oldest first.

        Raises:
            Exception: what went wrong in the thread and is no ``CheckpointError``, a ``ValueError`` say.
        """
        results = []
        while self._saves and self._saves[0].done():
            results.append(self._saves.popleft().result())
        return results

    def under_way(self) -> tuple[str, float] | None:
        """What the thread is at, and since when (``time.monotonic``); None if it is idle. Takes no lock."""
        return self._begun

    def drain(self) -> None:
        """Wait until nothing is under way; needed before a rollback. Results stay for ``finished``."""
        wait(self._saves)
        self._raise_if_promotion_failed()

    def close(self) -> None:
        """Finish what was submitted and end the thread."""
        self._pool.shutdown(wait=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _save_waiting(self) -> SaveResult:
        with self._lock:
            job, self._waiting = self._waiting, None
        assert job is not None, "one queued call for each job that waits"
        with self._busy(f"the checkpoint of step {job.step} is being written"):
            try:
                record = self._ring.save(
                    job.parts, job.facts, step=job.step, attempt=job.attempt, probe_loss=job.probe_loss
                )
            except CheckpointError as error:
                return SaveResult(job.step, job.attempt, error=error)
        return SaveResult(job.step, job.attempt, record=record)

    def _promote(self, step: int) -> None:
        with self._busy("a checkpoint is being marked as good"):
            self._ring.promote(step)

    @contextmanager
    def _busy(self, what: str) -> Iterator[None]:
        self._begun = what, time.monotonic()
        try:
            yield
        finally:
            self._begun = None

    def _raise_if_promotion_failed(self) -> None:
        """Waits for it, too; at ``healthy`` it has ended already."""
        if self._promotion is not None:
            self._promotion.result()
            self._promotion = None
