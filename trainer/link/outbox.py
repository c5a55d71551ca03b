"""Batches on their way to the monitor: a first-in-first-out queue on disk that outlives a SIGKILL.

A directory belongs to one run and to one process at a time. In it:

    run.json          which run this is, so that the rest can be delivered later
    00000001.spool    waiting batches, oldest file first; deleted when all of it has been delivered
    rejected/         batches that will never be stored: refused by the monitor, or damaged on disk
    lock              held by the process that uses the directory

What was delivered is not written down: after a crash some batches go out twice, which ``(session, seq)``
makes harmless. A process never writes into the files of the one before it.

Nothing is synced at first, since a SIGKILL leaves written pages alone; ``sync`` makes events outlive a power
cut, and is called as soon as the monitor fails to take them.
"""

import fcntl
import json
import logging
import os
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from shared.base import Message, Name
from shared.exchange import RunSpec
from trainer.link.segment import Record, Segment
from trainer.link.sparing import SparingLog

SEGMENT_BYTES = 4 << 20
"""A file this long is followed by the next, so that delivered batches give their disk back soon."""
MAX_REJECTED_FILES = 100
STEPS_SHARE = 7 / 8

log = logging.getLogger(__name__)


class SpoolError(Exception):
    """A spool directory can't be used; ``path`` says which."""

    def __init__(self, path: Path, found: str, remedy: str) -> None:
        super().__init__(f"{path}: {found}. {remedy}")
        self.path = path


class Address(Message):
    """Whose batches a spool holds: the run's name, and its description for a monitor that forgot it."""

    run: Name
    spec: RunSpec

    def save(self, directory: Path) -> None:
        """Write ``run.json``. Raises ``OSError``."""
        directory.mkdir(parents=True, exist_ok=True)
        temporary = directory / "run.json.new"
        temporary.write_text(self.model_dump_json(indent=1), encoding="utf-8")
        temporary.replace(directory / "run.json")

    @classmethod
    def load(cls, directory: Path) -> "Address":
        """Read ``run.json``. Raises ``SpoolError`` when there is none or it makes no sense."""
        path = directory / "run.json"
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise SpoolError(
                path, f"can't be read: {error.strerror}", "Name a run's spool folder."
            ) from error
        except ValidationError as error:
            raise SpoolError(path, f"makes no sense: {error}", "Name a run's spool folder.") from error


class Outbox:
    """The queue. Only the link's thread uses it; its counts may be read from anywhere.

    ``append`` never fails: what the disk does not take stays in memory, and then ``has_room`` says no until
    it has been written or delivered. So a full disk costs at most one packing of memory.
    """

    def __init__(self, directory: Path, limit_bytes: int) -> None:
        self.directory, self._limit_bytes = directory, limit_bytes
        self._segments: deque[Segment] = deque()
        self._writing: Segment | None = None
        self._unsaved: deque[Record] = deque()
        self._lock: IO[bytes] | None = None
        self._is_unsynced = False
        self._quietly = SparingLog(log)
        self.pending = 0
        self.rejected = 0
        self.spooled = 0
        """Batches that had to wait for the monitor; counted by who knows whether it is away."""

    @property
    def size_bytes(self) -> int:
        """Disk in use by waiting batches."""
        return sum(segment.size for segment in self._segments)

    def open(self) -> None:
        """Take the directory and queue what an earlier process left in it.

        Raises:
            SpoolError: another process uses it.
            OSError: it can't be made or written.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        lock = (self.directory / "lock").open("ab")
        try:
            # Not flock: loader workers forked from a trainer that was killed would go on holding it.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise SpoolError(
                self.directory, "another process uses this spool", "End it, or wait for it."
            ) from error
        self._lock = lock
        self._segments.extend(Segment(path) for path in sorted(self.directory.glob("*.spool")))
        self.pending += sum(segment.unread for segment in self._segments)

    def close(self) -> None:
        """Let go of the directory. What waits stays in it for the next process."""
        self._save_waiting()
        if self._writing is not None and self._writing.is_done:
            self._remove(self._writing)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def has_room(self, *, for_steps: bool) -> bool:
        """Whether more may wait. Steps are refused earlier than events, so that findings outlive them."""
        self._save_waiting()
        share = STEPS_SHARE if for_steps else 1.0
        return not self._unsaved and self.size_bytes < share * self._limit_bytes

    def append(self, record: Record, *, has_events: bool) -> None:
        """Queue a batch; with ``has_events`` the next ``sync`` makes it outlive a power cut."""
        self.pending += 1
        self._is_unsynced |= has_events
        self._unsaved.append(record)
        self._save_waiting()

    def take(self) -> Record | None:
        """The oldest batch not taken yet. ``settle`` or ``reject`` it, or it comes again after a restart."""
        for segment in tuple(self._segments):
            while (line := self._read(segment)) is not None:
                try:
                    record = Record.parse(line, segment)
                except ValueError:
                    self._set_aside_damaged(segment, line)
                    continue
                segment.outstanding += 1
                return record
            self._tidy(segment)
        return self._unsaved.popleft() if self._unsaved else None

    def settle(self, record: Record) -> None:
        """This batch needs no more: it was stored, or refused for good."""
        self.pending -= 1
        if record.segment is not None:
            record.segment.outstanding -= 1
            self._tidy(record.segment)

    def reject(self, record: Record, reason: str) -> None:
        """Set a batch aside that the monitor will never take."""
        self.rejected += 1
        content = b'{"refused": %s, "batch": %s}\n' % (json.dumps(reason).encode(), record.body)
        self._keep_rejected(f"seq{record.seq}.json", content)
        self.settle(record)

    def sync(self) -> None:
        """Make events on disk outlive a power cut; nothing to do when there are no new ones."""
        if not self._is_unsynced or self._writing is None:
            return
        try:
            self._writing.sync()
            self._is_unsynced = False
        except OSError as error:
            self._quietly.warning(
                "sync", "spool %s: %s; findings may not outlive a power cut", self.directory, error
            )

    def _save_waiting(self) -> None:
        """Write to disk what memory holds, as far as the disk takes it."""
        try:
            while self._unsaved:
                self._segment_to_write().append(self._unsaved[0].line())
                self._unsaved.popleft()
        except (OSError, SpoolError) as error:
            if self._writing is not None and not self._writing.size:
                self._remove(self._writing)
            self._quietly.warning(
                "disk", "spool %s: %s; batches wait in memory, training goes on", self.directory, error
            )

    def _segment_to_write(self) -> Segment:
        if self._lock is None:
            self.open()
        if self._writing is None or self._writing.size >= SEGMENT_BYTES:
            self.sync()
            self.directory.mkdir(parents=True, exist_ok=True)
            last = max((int(p.stem) for p in self.directory.glob("*.spool") if p.stem.isdigit()), default=0)
            self._writing = Segment(self.directory / f"{last + 1:08d}.spool")
            self._segments.append(self._writing)
        return self._writing

    def _read(self, segment: Segment) -> bytes | None:
        try:
            return segment.read()
        except OSError as error:
            self._quietly.warning(
                "read", "spool %s: %s; %d batches lost", segment.path, error, segment.unread
            )
            self.pending -= segment.unread
            self.rejected += segment.unread
            self._drop(segment)
            return None

    def _tidy(self, segment: Segment) -> None:
        """Give the disk back once everything in a file is settled."""
        if not segment.is_done or segment not in self._segments:
            return
        if segment is not self._writing or segment.size >= SEGMENT_BYTES:
            self._remove(segment)
        elif segment.size:
            try:
                segment.clear()
            except OSError:
                self._drop(segment)

    def _remove(self, segment: Segment) -> None:
        with suppress(OSError):
            segment.path.unlink()
        self._drop(segment)

    def _drop(self, segment: Segment) -> None:
        if segment in self._segments:
            self._segments.remove(segment)
        if segment is self._writing:
            self._writing = None

    def _set_aside_damaged(self, segment: Segment, line: bytes) -> None:
        self.pending -= 1
        self.rejected += 1
        log.warning("spool %s: a damaged batch of %d bytes is set aside", segment.path, len(line))
        self._keep_rejected("damaged.txt", line)

    def _keep_rejected(self, name: str, content: bytes) -> None:
        """Keep the first ones for inspection: they show the cause, and a hundred more would not."""
        folder = self.directory / "rejected"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            number = len(os.listdir(folder)) + 1
            if number <= MAX_REJECTED_FILES:
                (folder / f"{number:03d}-{name}").write_bytes(content)
        except OSError as error:
            self._quietly.warning("rejected", "can't keep a rejected batch in %s: %s", folder, error)
