"""Makes numbered batches of what was recorded and puts them into the outbox."""

import logging
import math
from collections.abc import Sequence
from functools import lru_cache
from uuid import uuid4

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from shared.base import SeriesName
from shared.events import AnyEvent
from shared.exchange import Batch, Columns, OutboxCounts
from trainer.link.outbox import Outbox
from trainer.link.recorder import Piece, Recorder, Row
from trainer.link.segment import Record
from trainer.link.sparing import SparingLog

log = logging.getLogger(__name__)
_series_name = TypeAdapter(SeriesName)


class Packer:
    """Numbers the batches of one session: 1, 2, 3 … without gaps. A session is one life of one process."""

    def __init__(self, recorder: Recorder, outbox: Outbox) -> None:
        self.session = uuid4().hex
        self._recorder, self._outbox = recorder, outbox
        self._last_seq = 0
        self._quietly = SparingLog(log)

    def pack(self, pieces: Sequence[Piece], counts: OutboxCounts, hold_s: float = 0.0) -> None:
        """Queue a batch for each piece; the monitor may hold its reply to the last one for ``hold_s``.

        What can't be a batch (an attempt of 0, a negative step) is dropped and counted: the caller's mistake
        must cost neither the training nor the data beside it.
        """
        for i, piece in enumerate(pieces, 1):
            try:
                self._queue(self._batch(piece, counts, hold_s if i == len(pieces) else 0.0))
            except (ValueError, TypeError, PydanticSerializationError) as error:
                self._recorder.count_dropped(len(piece.rows), len(piece.events))
                self._quietly.warning(
                    "pack",
                    "attempt %s: %d steps and %d events make no batch and are dropped: %s",
                    piece.attempt,
                    len(piece.rows),
                    len(piece.events),
                    error,
                )

    def halve(self, record: Record) -> bool:
        """Replace a batch that the monitor finds too large by its halves; ``False`` for one that has none.

        The first half keeps session and number, so that no gap opens; the second gets this session's next
        number. Of a batch that an earlier process left, the second is a part of that one's session, whose
        numbers this process does not know, and whose attempt it is. That is allowed only because a batch too
        large was never stored. If the process is killed between the two, rows of the second half may arrive
        twice, in two batches, with equal values.
        """
        try:
            batch = Batch.model_validate_json(record.body)
        except ValidationError:
            return False
        rows, events = len(batch.columns.step), len(batch.events)
        if max(rows, events) < 2:
            return False
        middle, event_middle = math.ceil(rows / 2), math.ceil(events / 2)
        self._queue(_part(batch, slice(middle), slice(event_middle)), is_new=False)
        second = _part(batch, slice(middle, None), slice(event_middle, None))
        if batch.session == self.session:
            self._queue(second.model_copy(update={"seq": self._last_seq + 1}))
        else:
            part = f"{batch.session.partition('/')[0]}/{uuid4().hex[:12]}"
            self._queue(second.model_copy(update={"session": part, "seq": 1}), is_new=False)
        self._outbox.settle(record)
        return True

    def _batch(self, piece: Piece, counts: OutboxCounts, hold_s: float) -> Batch:
        events: list[AnyEvent] = list(piece.events)  # type: ignore[arg-type]  # validated by Batch just below
        return Batch(
            session=self.session,
            seq=self._last_seq + 1,
            attempt=piece.attempt,
            columns=self._columns(piece.rows),
            events=events,
            outbox=counts,
            hold_s=hold_s,
        )

    def _queue(self, batch: Batch, *, is_new: bool = True) -> None:
        body = batch.model_dump_json().encode()
        self._outbox.append(Record(batch.seq, batch.hold_s, body), has_events=bool(batch.events))
        if is_new:
            self._last_seq = batch.seq

    def _columns(self, rows: Sequence[Row]) -> Columns:
        names = dict.fromkeys(name for row in rows for name in row.values)
        return Columns(
            step=[row.step for row in rows],
            time=[row.time_s for row in rows],
            series={name: _column(rows, name) for name in names if self._is_sound(name)},
        )

    def _is_sound(self, name: str) -> bool:
        if _is_series_name(name):
            return True
        self._quietly.warning(
            "name", "series %r is left out: a name has letters, digits and _ . / - only", name
        )
        return False


def _column(rows: Sequence[Row], name: str) -> list[float | None]:
    return [float(row.values[name]) if name in row.values else None for row in rows]


def _part(batch: Batch, rows: slice, events: slice) -> Batch:
    columns = batch.columns
    some = Columns(
        step=columns.step[rows],
        time=columns.time[rows],
        series={name: values[rows] for name, values in columns.series.items()},
    )
    return batch.model_copy(update={"columns": some, "events": batch.events[events], "hold_s": 0.0})


@lru_cache(maxsize=1_000)
def _is_series_name(name: str) -> bool:
    try:
        _series_name.validate_python(name)
    except ValidationError:
        return False
    return True
