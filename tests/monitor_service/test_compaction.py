"""Compaction: nobody who reads can tell whether it has happened, in whatever order batches came."""

import math
import struct
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, func, select

from monitor_service import blocks, compaction, comparing, ledger, points, queries, runs, tables
from monitor_service.batches import Incoming
from monitor_service.compaction import Group, compact, due
from monitor_service.errors import Conflict
from monitor_service.settings import Settings
from monitor_service.store import Store, open_engine
from shared.exchange import Batch, Columns, RunSpec

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
pytestmark = pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)
ODD = (math.nan, math.inf, -math.inf, -0.0, 5e-324, struct.unpack("<d", b"\1\0\0\0\0\0\xf4\x7f")[0])
AT_ONCE = timedelta(0)


class Kept:
    """A store with one run, filled and read without HTTP."""

    def __init__(self, url: str) -> None:
        self.settings = Settings(database_url=url)
        self.store = Store(open_engine(url), queue_size=100, observe=lambda requests, seconds: None)
        self.store.start()
        self.run("demo")

    def run(self, name: str) -> None:
        self.store.write(partial(runs.register, name=name, spec=RunSpec(started_at=NOON), now=NOON))

    def send(
        self, seq: int, steps: Any, *, run: str = "demo", session: str = "s1", attempt: int = 1, **series: Any
    ) -> bool:
        columns = Columns(step=list(steps), time=[NOON.timestamp() + s for s in steps], series=series)
        batch = Batch(session=session, seq=seq, attempt=attempt, columns=columns)
        known = {"settings": self.settings, "recall": self.store.recall}
        work = partial(runs.exchange, name=run, incoming=Incoming.of(batch), now=NOON, **known)
        return self.store.write(work).is_duplicate

    def compact(self) -> int:
        """Compact everything; the number of batches taken."""
        taken = 0
        while groups := self.due():
            taken += sum(compact(self.store, group) for group in groups)
        return taken

    def due(self, idle_after: timedelta = AT_ONCE) -> list[Group]:
        with self.store.reading() as connection:
            return due(connection, NOON, idle_after)

    def loss(self, attempt: str = "effective", run: str = "demo", **more: Any) -> dict[int, bytes]:
        """Bits of each value, by step."""
        with self.store.reading() as connection:
            row = queries.run_row(connection, run)
            told = points.read(connection, row, ["loss"], attempt, **more)["loss"]
        pairs = zip(told.step.tolist(), told.value.tolist(), strict=True)
        return {step: struct.pack("<d", value) for step, value in pairs}

    def buckets(self, buckets: int, **more: Any) -> Any:
        with self.store.reading() as connection:
            row = queries.run_row(connection, "demo")
            told = points.gather(connection, row, ["loss"], buckets, **more)["loss"]
        return SimpleNamespace(**{name: column.tolist() for name, column in vars(told).items()})

    def count(self, table: Any) -> int:
        with self.store.reading() as connection:
            return connection.scalar(select(func.count()).select_from(table)) or 0


@pytest.fixture
def kept(url: str) -> Iterator[Kept]:
    found = Kept(url)
    yield found
    found.store.close()


def bits(values: Mapping[int, float]) -> dict[int, bytes]:
    return {step: struct.pack("<d", value) for step, value in values.items()}


def test_every_bit_of_every_double_and_large_steps_survive(kept: Kept) -> None:
    sent = {2**53 + 1 + n: value for n, value in enumerate(ODD)} | {0: 1.5, 2**63 - 1: 2.5}
    steps = sorted(sent)
    kept.send(1, steps, loss=[sent[step] for step in steps], other=[None, *[0.0] * (len(steps) - 1)])
    assert kept.compact() == 1
    assert (kept.count(tables.batches), kept.count(tables.blocks)) == (0, 1)
    assert kept.loss() == bits(sent)


def test_a_thousand_steps_make_a_block_and_the_rest_waits_for_more(kept: Kept) -> None:
    for seq in range(1, 10):
        kept.send(seq, range(100 * seq, 100 * seq + 100), loss=[float(seq)] * 100)
    assert kept.due(timedelta(minutes=1)) == []
    kept.send(10, range(1000, 1100), loss=[0.5] * 100)
    assert kept.due(timedelta(minutes=1)) == [Group(1, 1)]
    kept.compact()
    kept.send(11, range(1100, 1110), loss=[0.25] * 10)
    assert len(kept.loss()) == 1010


def test_a_repeat_is_known_after_compaction_and_another_batch_with_its_number_is_refused(kept: Kept) -> None:
    kept.send(1, [1], loss=[1.0])
    kept.compact()
    assert kept.send(1, [1], loss=[1.0])
    with pytest.raises(Conflict, match="seq 1"):
        kept.send(1, [1], loss=[2.0])
    assert kept.compact() == 0


def test_late_batches_land_in_blocks_that_stand_already(kept: Kept) -> None:
    steps = range(0, 6000, 2)
    kept.send(1, steps, loss=[float(step) for step in steps])
    kept.compact()
    before = kept.count(tables.blocks)
    kept.send(3, [1, 2500, 9001], loss=[-1.0, -2.0, -3.0])
    kept.send(2, [2500, 2501], loss=[-5.0, -6.0])  # sent before, so its 2500 does not count
    expected = bits({**{s: float(s) for s in steps}, 1: -1.0, 2500: -2.0, 2501: -6.0, 9001: -3.0})
    assert kept.loss() == expected
    kept.compact()
    assert kept.loss() == expected
    assert kept.count(tables.blocks) == before + 1
    assert kept.loss(from_step=2500, to_step=2502) == {s: expected[s] for s in (2500, 2501, 2502)}


def test_two_compactions_at_once_do_it_once(kept: Kept) -> None:
    kept.send(1, range(50), loss=[0.5] * 50)
    with kept.store.reading() as connection:
        one, two = (compaction.prepare(connection, Group(1, 1)) for _ in range(2))
    assert one is not None
    assert two is not None
    assert kept.store.write(lambda connection: compaction.carry_out(connection, one)) == 1
    assert kept.store.write(lambda connection: compaction.carry_out(connection, two)) == 0
    assert (kept.count(tables.blocks), len(kept.loss())) == (1, 50)


def test_what_was_prepared_for_a_run_that_left_is_not_carried_out_on_the_next_with_its_id(kept: Kept) -> None:
    kept.send(1, range(50), loss=[0.5] * 50)
    with kept.store.reading() as connection:
        plan = compaction.prepare(connection, Group(1, 1))
    assert plan is not None
    kept.store.write(lambda connection: connection.execute(delete(tables.runs)))
    kept.run("next")
    if kept.store.engine.dialect.name == "sqlite":  # PostgreSQL gives no id twice
        with kept.store.reading() as connection:
            assert connection.scalar(select(tables.runs.c.id)) == 1
    kept.send(1, range(3), loss=[1.0, 2.0, 3.0], run="next")
    assert kept.store.write(lambda connection: compaction.carry_out(connection, plan)) == 0
    assert kept.loss(run="next") == bits({0: 1.0, 1: 2.0, 2: 3.0})


def test_a_compaction_that_fails_midway_leaves_everything_as_it_was(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.send(1, range(50), loss=[0.5] * 50)
    monkeypatch.setattr(ledger, "write_down", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        compact(kept.store, Group(1, 1))
    assert (kept.count(tables.blocks), kept.count(tables.batches), len(kept.loss())) == (0, 1, 50)


def test_gaps_are_known_before_and_after_compaction(kept: Kept) -> None:
    for seq in (1, 2, 5, 6, 9):
        kept.send(seq, [seq], loss=[1.0])
    for _ in range(2):
        with kept.store.reading() as connection:
            (one,) = ledger.sessions(connection, 1)
        assert (one.last_seq, one.received, one.missing, one.gaps) == (9, 5, 4, [(3, 4), (7, 8)])
        kept.compact()
    for seq in (4, 3, 8, 7):
        kept.send(seq, [seq], loss=[1.0])
    kept.compact()
    with kept.store.reading() as connection:
        (one,) = ledger.sessions(connection, 1)
    assert (one.gaps, kept.count(tables.ledger)) == ([], 1)


def test_many_buckets_of_many_points_agree_with_the_points(kept: Kept) -> None:
    steps = 6000
    values = [ODD[s % len(ODD)] if s % 700 == 0 else math.sin(s) for s in range(steps)]
    for seq in range(3):
        own = range(seq * 2000, seq * 2000 + 2000)
        kept.send(seq + 1, own, loss=[values[s] for s in own])
    kept.compact()
    told = kept.buckets(6)
    assert told.count == [1000] * 6
    assert kept.buckets(1).min == [min(v for v in values if math.isfinite(v))]
    for buckets in (1, 4, 6, 13):
        told = kept.buckets(buckets)
        assert sum(told.count) == steps
        ends = list(zip(told.step_from, told.step_to, strict=True))
        assert all(one[1] + 1 == two[0] for one, two in pairwise(ends))
        for number, (first, last) in enumerate(ends):
            inside = values[first : last + 1]
            finite = [v for v in inside if math.isfinite(v)]
            found = (told.min[number], told.max[number], told.count[number], told.nonfinite[number])
            assert found == (min(finite), max(finite), len(inside), len(inside) - len(finite))


def test_runs_side_by_side_are_told_by_headers_and_only_blocks_wider_than_a_cell_are_unpacked(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"demo": [math.sin(s) for s in range(30_000)], "other": [math.cos(s) for s in range(20_500)]}
    kept.run("other")
    for run, own in values.items():
        for seq in range(0, len(own), 10_000):
            some = own[seq : seq + 10_000]
            kept.send(seq + 1, range(seq, seq + len(some)), run=run, loss=some)
    kept.compact()
    unpacked: list[bytes] = []
    real = blocks.unpack
    monkeypatch.setattr(blocks, "unpack", lambda axes, some: unpacked.extend(axes) or real(axes, some))

    def compare(cells: int) -> Any:
        with kept.store.reading() as connection:
            return comparing.compare(connection, ["demo", "other"], ["loss"], cells)

    told = compare(10)
    assert unpacked == [], "blocks of 1,000 steps fit into cells of 3,000"
    begins = told.grid.step_from
    for run, own in values.items():
        columns = told.series["loss"][run]
        assert sum(columns.count) == len(own)
        for cell, low, last in zip(columns.cell, columns.min, columns.last, strict=True):
            inside = own[begins[cell] : begins[cell] + 3000]
            assert (low, last) == (min(inside), inside[-1])
    compare(100)
    assert len(unpacked) == kept.count(tables.blocks), "cells of 300 steps need the points, each once"


SENDINGS = st.lists(
    st.tuples(
        st.sampled_from(["life/1", "life/2"]),  # an attempt belongs to one life
        st.integers(1, 2),
        st.sets(st.integers(0, 30), min_size=1, max_size=8),
        st.booleans(),
        st.booleans(),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SENDINGS, st.randoms(use_true_random=False), st.integers(1, 4))
def test_any_order_repetition_and_compaction_of_batches_gives_the_same_series(
    kept: Kept, sendings: list[Any], random: Any, size: int
) -> None:
    run = f"run-{kept.count(tables.runs)}"
    kept.run(run)
    batches, slowly = [], {1: {}, 2: {}}
    for session, attempt, steps, has_gap, has_other in sendings:
        seq = 1 + sum(1 for one in batches if one["session"] == session)
        values = [None if has_gap and step % 3 == 0 else float(100 * seq + step) for step in sorted(steps)]
        other = {"other": [0.5] * len(values)} if has_other else {}
        columns = {"steps": sorted(steps), "loss": values, **other}
        batches.append({"seq": seq, "session": session, "attempt": attempt, **columns})
    for one in sorted(batches, key=lambda one: (one["session"], one["seq"])):
        known = {s: v for s, v in zip(one["steps"], one["loss"], strict=True) if v is not None}
        slowly[one["attempt"]].update(known)
    order = batches + random.sample(batches, len(batches) // 2)
    random.shuffle(order)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compaction, "BLOCK_ROWS", size)
        patch.setattr(compaction, "OPEN_ROWS", size // 2)
        for one in order:
            kept.send(run=run, **one)
            if random.random() < 0.4:
                kept.compact()
    for attempt in (1, 2):
        assert kept.loss(str(attempt), run) == bits(slowly[attempt])
    kept.compact()
    for attempt in (1, 2):
        assert kept.loss(str(attempt), run) == bits(slowly[attempt])
    with kept.store.reading() as connection:
        told = ledger.sessions(connection, kept.count(tables.runs))
    assert sum(one.received for one in told) == len(batches)
    assert not any(one.gaps for one in told)


@pytest.fixture
def other(url: str, kept: Kept) -> Iterator[Kept]:
    """A second monitor on the same database."""
    found = Kept(url)
    yield found
    found.store.close()


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 12), st.randoms(use_true_random=False))
def test_two_monitors_at_once_store_each_batch_once_in_whatever_order_it_reaches_them(
    kept: Kept, other: Kept, count: int, random: Any
) -> None:
    run = f"run-{kept.count(tables.runs)}"
    kept.run(run)
    seqs = range(1, count + 1)
    orders = [random.sample(seqs, count) for _ in range(2)]  # each batch reaches both
    told: list[bool] = []

    def send(one: Kept, order: list[int]) -> None:
        for seq in order:
            told.append(one.send(seq, [seq, seq + 1], run=run, loss=[10.0 * seq, 10.0 * seq + 1]))
            if seq % 5 == 0:
                one.compact()

    threads = [threading.Thread(target=send, args=pair) for pair in zip((kept, other), orders, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(told) == [False] * count + [True] * count
    slowly: dict[int, float] = {}
    for seq in seqs:
        slowly |= {seq: 10.0 * seq, seq + 1: 10.0 * seq + 1}
    assert kept.loss(run=run) == other.loss(run=run) == bits(slowly)
