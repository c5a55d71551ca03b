"""The link against a real HTTP peer: what arrives, in which order, and that training never waits."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared.events import AttemptStarted, CommandUpdate, Finding, RunEnded, Severity
from shared.exchange import OutboxCounts
from trainer.link import Link

LONG_AGO = 1_700_000_000.0


def finding(message: str = "NaN in loss", step: int = 0) -> Finding:
    return Finding(step=step, guard="nonfinite", severity=Severity.ERROR, message=message)


def record_steps(link: Link, first: int, last: int, attempt: int = 1) -> float:
    """Record steps ``first`` to ``last - 1``; the longest single call, seconds."""
    longest = 0.0
    for step in range(first, last):
        begin = time.perf_counter()
        link.record_step(attempt, step, LONG_AGO + step, {"loss": step / 2})
        longest = max(longest, time.perf_counter() - begin)
    return longest


def test_steps_and_events_arrive_once_and_in_order(monitor, link_to, until):
    link = link_to(monitor.url)
    for first in range(0, 30, 10):
        record_steps(link, first, first + 10)
        link.record_event(1, finding(f"at {first}"))
        until(lambda first=first: first + 9 in monitor.steps())
    left = link.close()
    assert monitor.steps() == list(range(30))
    assert monitor.messages() == ["at 0", "at 10", "at 20"]
    assert [batch.seq for batch in monitor.batches] == list(range(1, len(monitor.batches) + 1))
    assert monitor.puts == ["/api/v1/runs/radio-7"]
    assert left == OutboxCounts()


def test_a_batch_whose_answer_was_lost_comes_again_with_its_number_and_its_bytes(monitor, link_to, until):
    monitor.script.append(lambda peer, body: peer.store_and_hang_up(body))
    link = link_to(monitor.url)
    record_steps(link, 0, 5)
    until(lambda: len(monitor.posts) >= 2)
    assert link.close().pending_batches == 0
    assert monitor.posts[0] == monitor.posts[1]
    assert monitor.steps() == list(range(5))


def test_with_the_monitor_away_everything_waits_and_then_arrives_in_order(
    start_monitor, free_port, link_to, until
):
    link = link_to(f"http://127.0.0.1:{free_port}")
    for first in range(0, 50, 10):
        record_steps(link, first, first + 10)
        link.record_event(1, finding(f"at {first}"))
        until(lambda first=first: link.counts().pending_batches > first / 10)
    until(lambda: link.counts().spooled_batches >= 5)
    monitor = start_monitor(free_port)
    assert link.close(5.0).pending_batches == 0
    assert monitor.steps() == list(range(50))
    assert [batch.seq for batch in monitor.batches] == list(range(1, len(monitor.batches) + 1))


def test_a_monitor_killed_and_back_loses_nothing_and_gets_nothing_twice(
    start_monitor, free_port, link_to, until
):
    first_life = start_monitor(free_port)
    link = link_to(first_life.url)
    record_steps(link, 0, 10)
    until(lambda: 9 in first_life.steps())
    first_life.die()
    record_steps(link, 10, 20)
    until(lambda: link.counts().spooled_batches > 0)
    second_life = start_monitor(free_port)
    second_life.stored.update(first_life.stored)
    link.close(5.0)
    assert first_life.steps() + second_life.steps() == list(range(20))
    assert second_life.puts, "a monitor that forgot the run was told of it again"


def test_a_monitor_that_hangs_slows_no_step(monitor, link_to, until):
    monitor.always = lambda peer, body: time.sleep(1.0)
    link = link_to(monitor.url, answer_timeout_s=0.2)
    begin = time.perf_counter()
    for first in range(0, 100, 10):
        record_steps(link, first, first + 10)
        link.record_event(1, finding())
        link.commands()
        time.sleep(0.02)
    busy_s = time.perf_counter() - begin - 10 * 0.02
    assert busy_s < 0.2, "100 steps beside a hanging monitor; a wait for it would take 0.3 s each"
    until(lambda: link.counts().pending_batches >= 2)


def test_a_step_costs_the_training_thread_at_most_5_us(monitor, link_to):
    link = link_to(monitor.url, max_steps=100_000)
    values = {f"series_{i}": float(i) for i in range(20)}
    costs = []
    for repeat in range(20):
        begin = time.perf_counter()
        for step in range(500):
            link.record_step(1, 500 * repeat + step, LONG_AGO, values)
        costs.append((time.perf_counter() - begin) / 500)
    assert min(costs) < 5e-6, "the fastest of 20 rounds: other load on the machine only adds"


def test_a_finding_overtakes_a_held_reply(monitor, link_to, until):
    link = link_to(monitor.url, hold_s=5.0, flush_s=5.0)
    link.record_event(1, AttemptStarted(step=0, attempt=1, reason="start"))
    until(lambda: monitor.batches)
    begin = time.perf_counter()
    link.record_event(1, finding())
    until(lambda: monitor.messages())
    assert time.perf_counter() - begin < 1.0, "the reply before it is held for 5 s"


def test_a_command_lets_go_of_the_held_reply(monitor, link_to, until, command):
    link = link_to(monitor.url, hold_s=5.0, flush_s=5.0)
    link.record_event(1, AttemptStarted(step=0, attempt=1, reason="start"))
    until(lambda: monitor.batches)
    for name in ("c1", "c2"):
        begin = time.perf_counter()
        monitor.order(command(name))
        taken: list[str] = []
        until(lambda taken=taken: taken.extend(c.id for c in link.commands()) or taken)
        assert taken == [name]
        assert time.perf_counter() - begin < 1.0, "the monitor would hold the reply for 5 s"
        monitor.commands.clear()
        link.record_event(1, CommandUpdate(step=0, command=name, state="succeeded"))
        until(lambda name=name: name in monitor.reported_commands())
    monitor.order(command("c3"))


def test_a_silent_run_still_asks_for_commands(monitor, link_to, until):
    link = link_to(monitor.url)
    record_steps(link, 0, 1)
    until(lambda: len(monitor.batches) >= 4)
    assert monitor.steps() == [0]
    assert {batch.attempt for batch in monitor.batches} == {1}


def test_a_batch_holds_one_attempt_and_rising_steps(monitor, link_to):
    link = link_to(monitor.url, flush_s=5.0)
    record_steps(link, 0, 8)
    record_steps(link, 5, 9, attempt=2)
    record_steps(link, 7, 9, attempt=2)
    link.close()
    stretches = [(batch.attempt, batch.columns.step) for batch in monitor.batches if batch.columns.step]
    flat = [(attempt, step) for attempt, steps in stretches for step in steps]
    assert flat == [(1, s) for s in range(8)] + [(2, s) for s in (5, 6, 7, 8, 7, 8)]


def test_nan_and_infinity_arrive_as_they_left(monitor, link_to):
    sent = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": -0.0, "e": 5e-324, "f": 2.0**53 + 2, "g": 0.1}
    link = link_to(monitor.url)
    link.record_step(1, 2**53 + 1, LONG_AGO, sent)
    link.record_step(1, 2**53 + 2, LONG_AGO, {"a": 1.0})
    link.record_event(1, Finding(step=3, guard="g", severity="error", message="m", reading={"x": math.nan}))
    link.close()
    columns = next(batch.columns for batch in monitor.batches if batch.columns.step)
    got = {name: values[0] for name, values in columns.series.items()}
    assert {name: value.hex() for name, value in got.items()} == {k: v.hex() for k, v in sent.items()}
    assert columns.step[0] == 2**53 + 1
    [event] = [event for batch in monitor.batches for event in batch.events]
    assert math.isnan(event.reading["x"])


def test_without_an_address_nothing_happens(link_to, tmp_path):
    link = link_to("")
    record_steps(link, 0, 5)
    link.record_event(1, finding())
    assert link.commands() == []
    assert link.close() == OutboxCounts()
    assert not (tmp_path / "spool").exists()


def test_the_last_event_is_delivered_by_close(monitor, link_to):
    link = link_to(monitor.url)
    record_steps(link, 0, 3)
    link.record_event(1, RunEnded(step=3, status="finished"))
    assert link.close().pending_batches == 0
    assert monitor.batches[-1].events[-1].type == "run_ended"


def test_close_keeps_its_deadline_and_says_what_is_left(monitor, link_to):
    monitor.always = lambda peer, body: time.sleep(2.0)
    link = link_to(monitor.url, answer_timeout_s=10.0)
    record_steps(link, 0, 3)
    begin = time.perf_counter()
    left = link.close(0.3)
    assert time.perf_counter() - begin < 1.5
    assert left.pending_batches >= 1


def test_what_close_left_behind_goes_first_with_the_next_start(start_monitor, free_port, link_to):
    link = link_to(f"http://127.0.0.1:{free_port}")
    record_steps(link, 0, 5)
    assert link.close(0.1).pending_batches >= 1
    monitor = start_monitor(free_port)
    link = link_to(monitor.url)
    record_steps(link, 5, 10)
    link.close()
    assert monitor.steps() == list(range(10))
    assert len({batch.session for batch in monitor.batches}) == 2


CHILD = """
import sys, time
from datetime import UTC, datetime
from pathlib import Path
from shared.events import AttemptStarted, CommandUpdate, Finding
from shared.exchange import RunSpec
from trainer.link import Link, LinkConfig
config = LinkConfig(url=sys.argv[1], flush_s=0.02, hold_s=0.0, answer_timeout_s=0.2, back_off_max_s=0.05)
link = Link(config, "radio-7", RunSpec(started_at=datetime.now(UTC)), Path(sys.argv[2]))
link.start()
for step in range(1_000_000):
    link.record_step(1, step, 0.0, {"loss": 1.0})
    if step % 50 == 0:
        link.record_event(1, Finding(step=step, guard="g", severity="error", message=str(step)))
    time.sleep(0.001)
"""


def test_a_spool_survives_sigkill(start_monitor, free_port, link_to, until, tmp_path):
    spool = tmp_path / "spool"
    url = f"http://127.0.0.1:{free_port}"
    child = subprocess.Popen([sys.executable, "-c", CHILD, url, str(spool)], cwd=Path(__file__).parents[3])
    try:
        until(lambda: sum(f.stat().st_size for f in spool.glob("*.spool")) > 5_000, within_s=20)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    monitor = start_monitor(free_port)
    left = link_to(url).close(5.0)
    assert left.pending_batches == 0
    steps = monitor.steps()
    assert steps == list(range(len(steps)))
    assert len(steps) > 50
    assert monitor.messages()[:2] == ["0", "50"]


def test_a_folder_that_cannot_be_used_costs_the_spool_and_not_the_reports(monitor, link_to, tmp_path, caplog):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    link = link_to(monitor.url, directory=in_the_way / "spool")
    record_steps(link, 0, 5)
    assert link.close().pending_batches == 0
    assert monitor.steps() == list(range(5))
    assert "batches wait in memory" in caplog.text


def test_what_makes_no_batch_is_dropped_and_counted_and_nothing_else(monitor, link_to, caplog):
    link = link_to(monitor.url)
    link.record_step(0, 1, LONG_AGO, {"loss": 1.0})
    link.record_step(1, 1, LONG_AGO, {"loss": 1.0, "my loss!": 2.0})
    left = link.close()
    assert left.dropped_steps == 1
    assert [set(batch.columns.series) for batch in monitor.batches if batch.columns.step] == [{"loss"}]
    assert "my loss!" in caplog.text


def test_memory_stays_bounded_while_the_spool_is_full_and_the_monitor_away(free_port, link_to, until):
    link = link_to(f"http://127.0.0.1:{free_port}", spool_limit_bytes=16 << 10, max_steps=100, max_events=20)
    for first in range(0, 20_000, 1_000):
        record_steps(link, first, first + 1_000)
        time.sleep(0.01)
    link.record_event(1, finding())
    until(lambda: link.counts().dropped_steps > 0)
    assert link.close(0.0).dropped_steps > 10_000


@pytest.mark.parametrize("max_events", [1, 3])
def test_a_full_queue_of_events_is_counted(link_to, free_port, max_events):
    link = link_to(f"http://127.0.0.1:{free_port}", flush_s=60, max_events=max_events)
    for _ in range(max_events + 2):
        link.record_event(1, finding(), urgent=False)
    assert link.counts().dropped_events <= 2
    link.close(0.0)


def test_the_token_is_read_again_when_the_monitor_refuses_it(monitor, link_to, until, tmp_path):
    token = tmp_path / "token"
    token.write_text("old\n")
    monitor.script.append(lambda peer, body: (token.write_text("new\n"), peer.answer(401, b"{}")))
    link = link_to(monitor.url, token_file=token)
    record_steps(link, 0, 1)
    until(lambda: monitor.steps() == [0])
    assert monitor.tokens == ["Bearer old", "Bearer new"]
    link.close()


@pytest.mark.parametrize("variable", ["TRAINHEALTH_TOKEN", "TRAINHEALTH_TOKEN_FILE"])
def test_the_token_of_the_environment_is_shown_and_stands_nowhere_else(
    monitor, link_to, until, tmp_path, monkeypatch, caplog, variable
):
    file = tmp_path / "token"
    file.write_text("th_secret\n")
    monkeypatch.setenv(variable, str(file) if variable.endswith("FILE") else "th_secret")
    link = link_to(monitor.url)
    link.record_step(1, 1, 0.0, {"loss": 1.0})
    link.hurry()
    until(lambda: monitor.steps())
    link.close()
    assert monitor.tokens[0] == "Bearer th_secret"
    assert "th_secret" not in caplog.text
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and path != file]
    assert kept
    assert all(b"th_secret" not in path.read_bytes() for path in kept)
