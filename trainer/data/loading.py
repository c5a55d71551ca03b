"""Batches without end, in an order that is a function of the seed, from a position that can be saved.

Batch ``n`` depends on the data, the seed, the batch size and ``n``, and on nothing else: not on workers, on
batches before it, or on a global random state. So the whole position is ``n``, and going back is setting it.
"""

import logging
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from multiprocessing.connection import wait
from typing import Any, NamedTuple, TypeVar

import torch
from pydantic import Field, ValidationError
from torch.utils.data import DataLoader

from trainer.data.batches import Batches, Inspect, Loaded, LoadingConfig, Refusal, Share, Source
from trainer.data.errors import DataError, PositionMismatch
from trainer.data.items import Batch
from trainer.section import Section

log = logging.getLogger(__name__)

_REMEMBERED = 1_000  # batches
_RESTARTS = 3
_DYING_S = 1.0  # a process that is killed closes its files first


class Remark(NamedTuple):
    """Something odd that was trained on, or mended: an item's, or (``id`` is empty) the loader's."""

    id: str
    words: str
    number: int = 1
    """Of its kind, counted from 1: the first, second, fourth, eighth ... are told."""


class Position(Section):
    """Where a loader is, and what that position belongs to."""

    next_batch: int = Field(ge=0)
    batch_size: int
    seed: int
    data: str


class Loader:
    """Hands out batches; ``refused`` lists each item that ``inspect`` refused, once, in the order met.

    With a ``share`` it is that part of each batch; the parts of all processes make the batch of one.
    ``inspect`` runs where the item is loaded; with workers, and where processes don't fork, it is pickled. So
    does ``notice``, which tells what is odd about an item that is trained on all the same.

    With workers a batch that comes a second time within 1,000 is loaded once more here: if it should be
    another one, the workers are stuck or share a seed. Then they are started anew at the position, and the
    right batch is handed out; after three times this process loads by itself. If a worker dies, killed for
    its memory, say, its batch is loaded by a new one, alone: what kills a worker never comes to this process.
    """

    def __init__(
        self,
        source: Source,
        config: LoadingConfig,
        inspect: Inspect | None = None,
        share: Share = Share(),  # noqa: B008
        notice: Inspect | None = None,
    ) -> None:
        if config.batch_size % share.world:
            raise DataError(
                f"a batch of {config.batch_size} can't be shared evenly by {share.world} ranks; make "
                f"loading.batch_size a multiple of {share.world}"
            )
        self.config = config
        self.refused: list[Refusal] = []
        self._source = source
        self._batches = Batches(source, config, inspect, share, notice)
        self._next = 0
        self._remarks: list[Remark] = []
        self._num_odd = self._num_restarts = self._num_deaths = 0
        self._prints: deque[int] = deque(maxlen=_REMEMBERED)
        self._stream: Iterator[Loaded] | None = None

    def next_batch(self) -> Batch:
        """The batch at the position, which then moves on by one.

        Raises:
            DataError: ``inspect`` refuses every item, or the batch kills each worker that loads it.
        """
        loaded = self._checked(self._load())
        self._next += 1
        known = {refusal.id for refusal in self.refused}
        self.refused += [refusal for refusal in loaded.refused if refusal.id not in known]
        for one in loaded.odd:
            self._num_odd += 1
            if self._num_odd & (self._num_odd - 1) == 0:  # a data set full of them must not flood the log
                self._remarks.append(Remark(one.id, one.reason, self._num_odd))
        return loaded.batch

    def take_remarks(self) -> list[Remark]:
        """What is to be told since the last call."""
        taken, self._remarks = self._remarks, []
        return taken

    def quarantine(self, ids: Iterable[str]) -> None:
        """Leave these items out from now on; batches are filled from the items that follow, as for a refusal.

        Batch ``n`` then depends on the quarantine too, which is not part of the position: no going back in
        the data takes it back, and a new process has to be told again.
        """
        if self._batches.quarantine(ids):
            self.close()  # workers have a copy of their own, and batches made with it

    def skip(self, num_batches: int) -> None:
        """Move on by this many batches without loading them."""
        self._move_to(self._next + num_batches)

    def state_dict(self) -> dict[str, Any]:
        """The position, fit for JSON: batches handed out count, prefetched ones don't."""
        return self._position().model_dump()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position, forward or back.

        Raises:
            PositionMismatch: the state is malformed, or of other data, another seed or batch size.
        """
        try:
            saved = Position.model_validate(state)
        except ValidationError as error:
            raise PositionMismatch(f"not a loading position: {state!r}") from error
        self._check_same_order(saved)
        self._move_to(saved.next_batch)

    def close(self) -> None:
        """End the workers; the position stays."""
        self._stream = None

    def _position(self) -> Position:
        return Position(
            next_batch=self._next,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            data=self._source.fingerprint,
        )

    def _check_same_order(self, saved: Position) -> None:
        here = self._position()
        for field, meaning in (("data", "data set"), ("seed", "seed"), ("batch_size", "batch size")):
            if getattr(saved, field) != getattr(here, field):
                raise PositionMismatch(
                    f"the saved loading position belongs to {meaning} {getattr(saved, field)}, this run has "
                    f"{getattr(here, field)}; resume with what the run began with, or start a new run"
                )

    def _move_to(self, next_batch: int) -> None:
        if next_batch != self._next:
            self.close()
            self._prints.clear()  # going back, batches come again by right
        self._next = next_batch

    def _checked(self, loaded: Loaded) -> Loaded:
        """The batch at the position, whatever the workers gave for it."""
        if self._stream is None or loaded.print not in self._prints:
            self._prints.append(loaded.print)
            return loaded
        own = self._batches[self._next]
        self._prints.append(own.print)
        if own.print == loaded.print:
            return loaded
        self._give_up_workers(f"batch {self._next} came as a repetition of an earlier one", "came twice")
        return own

    def _load(self) -> Loaded:
        if self.config.num_workers == 0 or self._num_restarts >= _RESTARTS:
            return self._batches[self._next]
        try:
            if self._stream is None:
                self._stream = self._start_workers(count(self._next), self.config.num_workers)
            return next(self._stream)
        except (RuntimeError, OSError, EOFError) as error:  # what is said depends on what it was sending
            if not _has_lost_a_worker(self._stream):
                raise
            log.warning("%r", error)
            self.close()
            return self._load_after_a_death()

    def _load_after_a_death(self) -> Loaded:
        """The batch at the position, from a worker that loads nothing else; if it dies too, from nobody."""
        stream = self._start_workers(range(self._next, self._next + 1), 1)
        try:
            loaded = next(stream)
        except (RuntimeError, OSError, EOFError) as error:
            if not _has_lost_a_worker(stream):
                raise
            raise DataError(
                f"two data workers in a row died at batch {self._next}, the second while it loaded nothing "
                f"else; it would hold {', '.join(self._batches.names(self._next))}: find the file among them "
                "that can't be read and mend it or take it out; or, if the system killed them for memory, "
                "give it more, or lower loading.num_workers or loading.batch_size"
            ) from error
        self._num_deaths += 1
        done = "a new one loaded it, the workers start anew behind it, and nothing is missing"
        what = f"a data worker died before batch {self._next}; {done}"
        self._remarks.append(Remark("", what, self._num_deaths))
        return loaded

    def _give_up_workers(self, what: str, spared: str) -> None:
        """They are started anew for the batch after this one, or never again."""
        self.close()
        self._num_restarts += 1
        done = (
            "the workers were started anew at its position"
            if self._num_restarts < _RESTARTS
            else "this process loads by itself from here on"
        )
        self._remarks.append(Remark("", f"{what}; {done}, and nothing {spared}", self._num_restarts))

    def _start_workers(self, numbers: Iterable[int], num_workers: int) -> Iterator[Loaded]:
        loader: DataLoader[Loaded] = DataLoader(
            self._batches,
            batch_size=None,
            sampler=numbers,
            num_workers=num_workers,
            collate_fn=_as_is,
            generator=torch.Generator(),  # else starting workers would draw from torch's global one
        )
        with _deaths_are_no_signals():
            return iter(loader)


def _has_lost_a_worker(stream: object) -> bool:
    """Whether an error of the stream comes from a worker's death, and not from the data."""
    return bool(wait([one.sentinel for one in getattr(stream, "_workers", ())], _DYING_S))


@contextmanager
def _deaths_are_no_signals() -> Iterator[None]:
    """Keep SIGCHLD as it is: torch's handler raises wherever the main thread stands, amid an update, say.

    Without it a worker's death is seen where its next batch is waited for, within 5 s.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    known = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if known is not None:  # one that was set outside of Python can't be put back
            signal.signal(signal.SIGCHLD, known)


_Anything = TypeVar("_Anything")


def _as_is(loaded: _Anything) -> _Anything:
    return loaded
