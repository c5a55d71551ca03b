"""The checkpoints of a run: which are sealed, which are good, which to load, and which to let go.

    (writing) -> sealed -> good          bad: a check failed, or the run went back past it

A sealed one passed every check and was read back from the disk. A good one has also been followed by healthy
steps. State lives in each checkpoint's own folder, so a new process sees the same ring. One process writes to
a ring; anybody may look with ``list_records``.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainer.checkpoint.durable import (
    atomic_directory,
    remove_drafts,
    remove_folder,
    replace_file,
    write_file,
)
from trainer.checkpoint.errors import (
    CheckpointInvalid,
    CheckpointWriteFailed,
    NoValidCheckpoint,
    SaveRefused,
)
from trainer.checkpoint.facts import Facts
from trainer.checkpoint.files import Stored, read, write_draft
from trainer.checkpoint.record import (
    STATUS_FILE,
    USABLE,
    Record,
    State,
    list_records,
    newest_first,
)
from trainer.checkpoint.retention import RingConfig, surplus
from trainer.checkpoint.tensors import HostParts, Parts, on_host
from trainer.checkpoint.values import Failure, first_bad_value

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """A checkpoint that passed every check, and its record as it was then."""

    record: Record
    stored: Stored


class CheckpointRing:
    """Saves, proves, promotes, loads and deletes the checkpoints under ``root``.

    Args:
        root: made if missing. What interrupted saves left there is removed.
        on_change: told of every record that reached a state, in order, by the thread that changed it and
            under the ring's lock: it hands on and returns.
    """

    def __init__(
        self, root: Path, config: RingConfig, on_change: Callable[[Record], None] = lambda record: None
    ) -> None:
        self.root, self.config = root, config
        self._on_change = on_change
        self._saving = threading.Lock()  # one save at a time; never taken by what a step calls
        self._lock = threading.RLock()  # records and their status files
        self._unhealthy_step = -1
        root.mkdir(parents=True, exist_ok=True)
        remove_drafts(root)
        self._records = list_records(root)

    def records(self) -> tuple[Record, ...]:
        """All checkpoints, newest first. Free: takes no lock and no disk."""
        return self._records

    def steps(self) -> tuple[int, ...]:
        """Steps of what ``load_newest`` could offer, newest first: what a ``Ladder`` asks for."""
        return tuple(record.step for record in self._records if record.state in USABLE)

    def save(
        self, parts: Parts, facts: Facts, *, step: int, attempt: int, probe_loss: float | None = None
    ) -> Record:
        """Check, write and prove a checkpoint, then let old ones go. A sealed or good one is not made twice.

        Blocks for a scan (20 GB/s) and for what ``files.write`` costs. ``CheckpointWriter`` saves beside
        training.

        Raises:
            SaveRefused: a NaN, a negative second moment, a probe loss that is not finite.
            CheckpointWriteFailed: the disk did not take it.
            ValueError: a tensor or a fact that can't be kept.
        """
        draft = Record.draft(self.root, step, attempt)
        with self._saving:
            standing = self._find(draft.name)
            if standing is not None and standing.state in USABLE:
                return standing
            started = time.perf_counter()
            staged = on_host(parts)
            self._refuse_if_bad(draft, staged, probe_loss)
            if standing is not None:
                self._delete(standing)
            record = self._write(draft, staged, facts, probe_loss, started)
            with self._lock:
                self._put(record)
                self._let_go()
            return record

    def healthy(self, step: int, open_findings: bool) -> None:
        """Tell of an applied step; sealed checkpoints that waited long enough become good.

        Costs a few comparisons; at a promotion two fsyncs and the deletion of what is no longer kept.
        """
        if self.is_due(step, open_findings):
            self.promote(step)

    def is_due(self, step: int, open_findings: bool) -> bool:
        """Note how the step was, and whether a promotion is due. Takes no lock and no disk."""
        if open_findings:
            self._unhealthy_step = step
            return False
        return any(self._is_ripe(record, step) for record in self._records)

    def promote(self, step: int) -> None:
        """Make good what waited long enough at ``step``."""
        with self._lock:
            for record in reversed(self._records):
                if self._is_ripe(record, step):
                    self._change(record, State.GOOD)
            self._let_go()

    def mark_bad(self, name: str, check: str, found: str) -> None:
        """Take a checkpoint out of use. If the disk refuses the note, this process still remembers.

        Raises:
            ValueError: no checkpoint of that name.
        """
        with self._lock:
            record = self._find(name)
            if record is None:
                raise ValueError(f"no checkpoint {name!r} in {self.root}")
            self._change(record, State.BAD, check, found)

    def invalidate_after(self, step: int, attempt: int) -> None:
        """The run goes on from ``step``: what ``attempt`` and those before saved past it is abandoned.

        Drain the writer first, or a save still under way arrives afterwards.
        """
        with self._lock:
            self._unhealthy_step = min(self._unhealthy_step, step)
            for record in self._records:
                if record.step > step and record.attempt <= attempt and record.state in USABLE:
                    self._change(record, State.BAD, "abandoned", f"the run went back to step {step}")
            self._let_go()

    def load_newest(
        self,
        *,
        before_step: int | None = None,
        good_first: bool = True,
        accept: Callable[[Stored], str | None] = lambda stored: None,
    ) -> Loaded:
        """The newest good checkpoint that passes every check, else the newest sealed one.

        With ``good_first`` off it is the newest of both kinds: after a mere end of the process nothing speaks
        against the latest state, and a run that is killed often would otherwise never get ahead.

        A damaged one is marked bad at once. A refused one is marked when another was accepted; if all are
        refused, the program that asks has changed rather than they, and they stay what they are.

        Args:
            before_step: only checkpoints of a smaller step than this.
            accept: restores and runs the probe (its loss at save is ``stored.manifest.probe_loss``); answers
                why it refuses, or ``None``. After a refusal the next older checkpoint is offered.

        Raises:
            NoValidCheckpoint: with everything that was tried.
        """
        damaged: list[CheckpointInvalid] = []
        refused: list[CheckpointInvalid] = []
        for record in self._candidates(before_step, good_first):
            try:
                stored = _verified(record)
            except CheckpointInvalid as error:
                damaged.append(self._noted_bad(error))
                continue
            refusal = accept(stored)
            if refusal is None:
                for earlier in refused:
                    self._noted_bad(earlier)
                return Loaded(record, stored)
            refused.append(CheckpointInvalid(record.path, "accept", refusal))
        raise NoValidCheckpoint(self.root, damaged + refused)

    def _noted_bad(self, error: CheckpointInvalid) -> CheckpointInvalid:
        log.warning("%s", error)
        self.mark_bad(error.path.name, error.check, error.found)
        return error

    def _candidates(self, before_step: int | None, good_first: bool) -> list[Record]:
        usable = [one for one in self._records if one.state in USABLE]
        fits = [one for one in usable if before_step is None or one.step < before_step]
        return sorted(fits, key=lambda one: good_first and one.state is not State.GOOD)

    def _is_ripe(self, record: Record, step: int) -> bool:
        healthy_since = max(record.step, self._unhealthy_step)
        return record.state is State.SEALED and step - healthy_since >= self.config.promote_after

    def _refuse_if_bad(self, draft: Record, staged: HostParts, probe_loss: float | None) -> None:
        failure = first_bad_value(staged)
        if failure is None and probe_loss is not None and not math.isfinite(probe_loss):
            failure = Failure("probe", f"the probe's loss is {probe_loss}")
        if failure is None:
            return
        update = {"state": State.BAD, "failed_check": failure.check, "found": failure.found}
        with self._lock:
            self._on_change(draft.model_copy(update=update))
        raise SaveRefused(draft.path, failure.check, failure.found)

    def _write(
        self, draft: Record, staged: HostParts, facts: Facts, probe_loss: float | None, started: float
    ) -> Record:
        with atomic_directory(draft.path) as folder:
            manifest = write_draft(
                folder, staged, facts, step=draft.step, attempt=draft.attempt, probe_loss=probe_loss
            )
            measured = {
                "size_bytes": manifest.size_bytes,
                "probe_loss": probe_loss,
                "seconds": time.perf_counter() - started,
            }
            record = draft.model_copy(update=measured)
            write_file(folder / STATUS_FILE, [record.seal()])
        return record

    def _change(
        self, record: Record, state: State, check: str | None = None, found: str | None = None
    ) -> None:
        changed = record.model_copy(update={"state": state, "failed_check": check, "found": found})
        try:
            replace_file(record.path / STATUS_FILE, changed.seal())
        except CheckpointWriteFailed as error:
            log.warning("%s stays %s on disk: %s", record.name, record.state, error)
            if state is State.GOOD:
                return  # older good ones may only go once this is on disk; the next healthy step tries again
        self._put(changed)

    def _put(self, record: Record) -> None:
        """Readers take no lock: they see the tuple before or the tuple after."""
        others = (one for one in self._records if one.name != record.name)
        self._records = newest_first((*others, record))
        self._on_change(record)

    def _find(self, name: str) -> Record | None:
        return next((record for record in self._records if record.name == name), None)

    def _let_go(self) -> None:
        for record in surplus(self._records, self.config):
            self._delete(record)

    def _delete(self, record: Record) -> None:
        with self._lock:
            try:
                remove_folder(record.path)
            except OSError as error:
                log.warning("cannot delete %s: %s; it is tried again after the next save", record.name, error)
                return
            self._records = tuple(one for one in self._records if one.name != record.name)
            self._on_change(record.model_copy(update={"state": State.DELETED}))


def _verified(record: Record) -> Stored:
    stored = read(record.path)
    holds = stored.manifest.step, stored.manifest.attempt
    if holds != (record.step, record.attempt):
        raise CheckpointInvalid(record.path, "name", f"it holds step {holds[0]} of attempt {holds[1]}")
    return stored
