"""Series: packed and unpacked without changing a bit, merged over attempts, gathered into buckets."""

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor_service.blocks import HEADER, chunks_of, header_of, pack_axis
from monitor_service.blocks import unpack as unpack_blocks
from monitor_service.rows import Points, Rows, Values, merge
from monitor_service.series import Buckets, effective_stretches, gather, pack, unpack
from shared.exchange import Columns

QUIET = settings(max_examples=50, deadline=None)


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


def points(steps: Sequence[int], values: Sequence[float], attempt: int = 1) -> Points:
    return Points(
        np.full(len(steps), attempt),
        np.array(steps, np.int64),
        np.array(steps, float),
        np.array(values, float),
    )


@QUIET
@given(
    st.lists(st.floats(allow_nan=True, allow_subnormal=True) | st.none(), min_size=1, max_size=40),
    st.integers(0, 2**53 + 1),
)
def test_every_double_comes_back_bit_for_bit_and_gaps_stay_gaps(
    values: list[float | None], first: int
) -> None:
    steps = list(range(first, first + len(values)))
    columns = Columns(
        step=steps, time=[float(step) for step in steps], series={"loss": values, "other": values}
    )
    rows = unpack(pack(columns).payload, "s1", 7, {"loss"})
    assert (set(rows.series), rows.sessions, set(rows.seq.tolist())) == ({"loss"}, ("s1",), {7})
    found = rows.points("loss", 3)
    back = dict(zip(found.step.tolist(), found.value.tolist(), strict=True))
    sent = {step: value for step, value in zip(steps, values, strict=True) if value is not None}
    assert {step: bits(value) for step, value in back.items()} == {s: bits(v) for s, v in sent.items()}
    assert set(found.attempt.tolist()) <= {3}


ROW = st.tuples(
    st.sampled_from("abc"), st.integers(1, 2**62), st.floats(), st.floats() | st.none(), st.booleans()
)


@QUIET
@given(st.lists(ROW, min_size=1, max_size=40), st.integers(1, 9))
def test_blocks_unpacked_at_once_are_the_rows_that_were_packed(told: list[Any], size: int) -> None:
    names, seqs, values, gaps, others = zip(*told, strict=True)
    gapped = np.array([value is not None for value in gaps])
    series = {
        "loss": Values(np.array(values), np.ones(len(told), bool)),
        "grad_norm": Values(np.array([value or 0.0 for value in gaps]), gapped),
        "other": Values(np.array(values), np.repeat(others, 5)[: len(told)]),  # none at all in some blocks
    }
    session = np.array(["abc".index(name) for name in names])
    steps = 7 * np.arange(len(told))
    rows = Rows(steps, np.array(values), ("a", "b", "c"), session, np.array(seqs, np.int64), series)
    pieces = [rows.take(slice(begin, begin + size)) for begin in range(0, len(told), size)]
    packed = [chunks_of(piece) for piece in pieces]
    chunks = {name: [one[name][1] if name in one else None for one in packed] for name in series}
    back = unpack_blocks([pack_axis(piece) for piece in pieces], chunks)
    assert [back.sessions[place] for place in back.session] == list(names)
    assert (back.step.tolist(), back.seq.tolist()) == (steps.tolist(), list(seqs))
    assert back.time.tobytes() == rows.time.tobytes()
    for name in series:
        one, two = rows.points(name, 1), back.points(name, 1)
        assert (one.step.tolist(), one.value.tobytes()) == (two.step.tolist(), two.value.tobytes())


def test_the_digest_tells_minus_zero_from_zero_and_a_gap_from_a_value() -> None:
    digests = {
        pack(Columns(step=[1], time=[1.0], series={"loss": [value]})).digest for value in (0.0, -0.0, None)
    }
    assert len(digests) == 3


def sent(seq: int, steps: Sequence[int], values: Sequence[float]) -> Rows:
    count = len(steps)
    loss = Values(np.array(values, float), np.ones(count, bool))
    origin = np.zeros(count, np.int64), np.full(count, seq)
    return Rows(np.array(steps, np.int64), np.array(steps, float), ("s1",), *origin, {"loss": loss})


@pytest.mark.parametrize("is_late", [False, True])
def test_of_a_step_sent_twice_the_later_batch_counts_whichever_came_first(is_late: bool) -> None:
    parts = [sent(1, [1, 2], [0.1, 0.2]), sent(2, [2, 3], [20.0, 30.0])]
    both = merge(parts[::-1] if is_late else parts).points("loss", 1)
    assert both.step.tolist() == [1, 2, 3]
    assert both.value.tolist() == [0.1, 20.0, 30.0]


def test_a_range_of_steps_includes_both_ends() -> None:
    assert sent(1, [1, 2, 3, 4], [0, 0, 0, 0]).within(2, 3).step.tolist() == [2, 3]


@QUIET
@given(st.lists(st.integers(0, 12), min_size=1, max_size=6))
def test_each_step_belongs_to_the_highest_attempt_that_begins_at_or_before_it(starts: list[int]) -> None:
    attempts = list(enumerate(starts, start=1))
    seen = {
        step: one.attempt
        for one in effective_stretches(attempts)
        for step in range(one.first, 16 if one.last is None else one.last + 1)
    }
    slowly = {s: max(n for n, start in attempts if start <= s) for s in range(min(starts), 16)}
    assert seen == slowly


NO_CHUNKS = np.empty(0, HEADER)


def slow_buckets(some: Points, buckets: int) -> list[tuple[float, ...]]:
    """The same in plain Python: a bucket at a time, a point at a time."""
    first, last = int(some.step[0]), int(some.step[-1])
    width = math.ceil((last - first + 1) / buckets)
    rows = []
    for begin in range(first, last + 1, width):
        inside = [v for s, v in zip(some.step, some.value, strict=True) if begin <= s < begin + width]
        if inside:
            finite = [v for v in inside if math.isfinite(v)]
            low, high = (min(finite), max(finite)) if finite else (math.nan, math.nan)
            end = min(begin + width - 1, last)
            rows.append((begin, end, low, high, inside[-1], len(inside), len(inside) - len(finite)))
    return rows


def rows_of(buckets: Buckets) -> list[tuple[float, ...]]:
    columns = ("step_from", "step_to", "min", "max", "last", "count", "nonfinite")
    return list(zip(*(getattr(buckets, column).tolist() for column in columns), strict=True))


@QUIET
@given(
    st.dictionaries(st.integers(0, 200), st.floats(), min_size=1, max_size=60),
    st.integers(1, 30),
)
def test_buckets_agree_with_the_slow_way(values: dict[int, float], buckets: int) -> None:
    steps = sorted(values)
    some = points(steps, [values[step] for step in steps])
    assert shown(rows_of(gather(NO_CHUNKS, some, buckets))) == shown(slow_buckets(some, buckets))


@QUIET
@given(
    st.dictionaries(st.integers(0, 60), st.floats(width=32), min_size=2, max_size=60),
    st.sets(st.integers(1, 59), max_size=8),
    st.sets(st.integers(0, 8)),
    st.integers(1, 20),
)
def test_points_between_chunks_are_gathered_as_if_each_were_a_chunk(
    values: dict[int, float], cuts: set[int], whole: set[int], buckets: int
) -> None:
    steps = np.array(sorted(values))
    value = np.array([values[step] for step in steps])
    chunks, single, alone = [], [], []
    for number, places in enumerate(np.split(np.arange(len(steps)), sorted(cuts))):
        if len(places) and number in whole:
            chunks.append(header_of(steps[places], steps[places].astype(float), value[places]))
        else:
            single += places.tolist()
            alone += [header_of(steps[[p]], steps[[p]].astype(float), value[[p]]) for p in places]
    headers = np.frombuffer(b"".join(chunks), HEADER)
    one_by_one = np.frombuffer(b"".join([*chunks, *alone]), HEADER)
    mixed = gather(headers, points(steps[single].tolist(), value[single].tolist()), buckets)
    assert shown(rows_of(mixed)) == shown(rows_of(gather(one_by_one, points([], []), buckets)))


def shown(rows: list[tuple[float, ...]]) -> list[list[str]]:
    """As text, where NaN equals NaN; which of 0.0 and -0.0 is the less, nobody can say."""
    return [[str(float(value) + 0.0) for value in row] for row in rows]


@pytest.mark.parametrize("steps", [[], [7], [0, 2**53 + 1]])
def test_buckets_of_hardly_any_points_lose_none(steps: list[int]) -> None:
    gathered = gather(NO_CHUNKS, points(steps, [1.0] * len(steps)), 1000)
    assert gathered.count.sum() == len(steps)
