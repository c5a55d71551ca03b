"""The wire: gaps, losses and backlogs as the batches tell them, in whatever order they come."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from monitor_service.wire import MAX_SESSIONS, Wire
from shared.exchange import Batch, OutboxCounts

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def take(
    wire: Wire, seq: int, at_s: float = 0, session: str = "s1", *, is_first_heard: bool = True, **counts: int
) -> None:
    batch = Batch(session=session, seq=seq, attempt=1, outbox=OutboxCounts(**counts))
    wire.take(batch, NOON + timedelta(seconds=at_s), is_first_heard=is_first_heard)


def missing(seqs: Iterable[int]) -> int:
    wire = Wire()
    for seq in seqs:
        take(wire, seq)
    return wire.missing


def test_a_number_that_was_passed_over_is_missing_until_it_comes() -> None:
    assert missing([1, 2, 3]) == 0
    assert missing([1, 4]) == 2
    assert missing([1, 4, 3, 2]) == 0
    assert missing([3, 1, 2]) == 0


def test_a_gap_counts_from_its_beginning_and_ends_when_it_is_filled() -> None:
    wire = Wire()
    take(wire, 1, 0)
    take(wire, 3, 10)
    take(wire, 5, 20)
    assert (wire.missing, wire.gap_since) == (2, NOON + timedelta(seconds=10))
    take(wire, 2, 30)
    take(wire, 4, 40)
    assert (wire.missing, wire.gap_since) == (0, None)


def test_sessions_are_counted_apart_and_old_ones_forgotten() -> None:
    wire = Wire()
    for number in range(MAX_SESSIONS + 2):
        take(wire, 2, session=f"s{number}")
    assert wire.missing == MAX_SESSIONS
    take(wire, 1, session=f"s{MAX_SESSIONS + 1}")
    assert wire.missing == MAX_SESSIONS - 1


def test_a_late_batch_of_a_forgotten_session_is_neither_a_gap_nor_a_loss() -> None:
    wire = Wire()
    take(wire, 1, session="first", dropped_steps=3)
    for number in range(MAX_SESSIONS):
        take(wire, 1, session=f"s{number}", is_first_heard=False)
    take(wire, 7, session="first", is_first_heard=False, dropped_steps=3)
    assert wire.missing == 0
    assert wire.lost == {"steps": 3}


def test_a_run_that_was_here_before_these_notes_has_no_gap_before_them() -> None:
    wire = Wire()
    take(wire, 500, is_first_heard=False)
    take(wire, 501, is_first_heard=False)
    assert wire.missing == 0
    take(wire, 503, is_first_heard=False)
    assert wire.missing == 1


def test_losses_add_up_over_sessions_and_late_batches_tell_old_counts() -> None:
    wire = Wire()
    take(wire, 1, 0, dropped_steps=5)
    take(wire, 3, 10, dropped_steps=9, rejected_batches=1)
    take(wire, 2, 20, dropped_steps=7)
    assert (wire.lost, wire.lost_at) == ({"steps": 9, "rejected": 1}, NOON + timedelta(seconds=10))
    take(wire, 1, 30, session="s2", dropped_steps=2)
    assert (wire.lost["steps"], wire.lost_at) == (11, NOON + timedelta(seconds=30))


def test_a_backlog_grows_from_its_first_rise_until_it_shrinks() -> None:
    wire = Wire()
    for seq, waiting in enumerate([0, 3, 3, 8, 20], start=1):
        take(wire, seq, seq * 10, pending_batches=waiting)
    assert (wire.waiting, wire.growing_since) == (20, NOON + timedelta(seconds=20))
    take(wire, 6, 60, pending_batches=19)
    assert wire.growing_since is None
