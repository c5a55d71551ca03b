"""A monitor that is slow, broken or hostile: the run goes on, and no batch is taken for stored by mistake."""

import json
import time
from datetime import UTC, datetime, timedelta

import pytest

from shared.base import utc_now
from shared.exchange import Batch

NOW = "2026-01-31T12:00:00Z"


def record(link, steps=5):
    for step in range(steps):
        link.record_step(1, step, 0.0, {"loss": 1.0})


def reply(body, **changes):
    truth = {"seq": json.loads(body)["seq"], "commands": [], "server_time": NOW}
    return json.dumps({**truth, **changes}).encode()


def drip(peer, body):
    """Start an answer and send a byte now and then."""
    peer.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(1_000):
        peer.wfile.write(b" ")
        time.sleep(0.05)


def drip_headers(peer, body):
    peer.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    for _ in range(1_000):
        peer.wfile.write(b"x")
        time.sleep(0.05)


LIES = {
    "no JSON": lambda peer, body: peer.answer(200, b"<html>a proxy</html>"),
    "nothing": lambda peer, body: peer.answer(200, b""),
    "another number": lambda peer, body: peer.answer(200, reply(body, seq=77)),
    "a number that is none": lambda peer, body: peer.answer(200, reply(body, seq="1")),
    "a time out of range": lambda peer, body: peer.answer(
        200, reply(body, server_time="0001-01-01T00:00:00+14:00")
    ),
    "10 MB": lambda peer, body: peer.answer(200, b" " * 10_000_000),
    "a body by drops": drip,
    "headers by drops": drip_headers,
    "deep nesting": lambda peer, body: peer.answer(200, b"[" * 100_000),
    "no HTTP": lambda peer, body: peer.wfile.write(b"hello\r\n\r\n"),
    "a redirect": lambda peer, body: peer.answer(302, b"", Location="http://127.0.0.1:1/"),
    "an error": lambda peer, body: peer.answer(500, b"[]"),
    "a bad gateway": lambda peer, body: peer.answer(502, b"\xff\xfe"),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_after_a_lie_the_batch_is_sent_again_until_it_is_stored(lie, monitor, link_to, until):
    monitor.script.append(lie)
    link = link_to(monitor.url, answer_timeout_s=0.2)
    record(link)
    until(lambda: monitor.steps() == list(range(5)))
    assert monitor.posts[0] == monitor.posts[1]
    assert link.commands() == []
    assert link.close().rejected_batches == 0


def test_an_unknown_run_is_registered_again(monitor, link_to, until):
    link = link_to(monitor.url)
    record(link, 1)
    until(lambda: monitor.steps() == [0])
    monitor.is_registered = False
    link.record_step(1, 1, 0.0, {})
    until(lambda: monitor.steps() == [0, 1])
    assert len(monitor.puts) == 2


@pytest.mark.parametrize("status", [409, 413, 415, 422])
def test_a_batch_refused_for_good_is_set_aside_and_the_next_ones_go_on(
    status, monitor, link_to, until, tmp_path, caplog
):
    monitor.script.append(lambda peer, body: peer.answer(status, b'{"detail": "loss is purple"}'))
    link = link_to(monitor.url)
    link.record_step(1, 0, 0.0, {"loss": 1.0})
    until(lambda: link.counts().rejected_batches == 1)
    link.record_step(1, 1, 0.0, {"loss": 1.0})
    until(lambda: monitor.steps() == [1])
    link.close()
    assert "loss is purple" in caplog.text
    [kept] = (tmp_path / "spool" / "rejected").iterdir()
    content = json.loads(kept.read_text())
    assert content["refused"] == f"{status} loss is purple"
    assert Batch.model_validate(content["batch"]).columns.step == [0]


def test_a_batch_too_large_goes_in_parts_and_no_number_is_left_out(monitor, link_to):
    def at_most_300_rows(peer, body):
        if len(json.loads(body)["columns"]["step"]) > 300:
            return peer.answer(413, b'{"detail": "too large"}')
        return peer.tell_the_truth(body)

    monitor.always = at_most_300_rows
    link = link_to(monitor.url, flush_s=5.0, hold_s=0.0)
    record(link, 1_000)
    left = link.close()
    assert left.rejected_batches == left.pending_batches == 0
    assert sorted(monitor.steps()) == list(range(1_000))
    assert sorted(batch.seq for batch in monitor.batches) == list(range(1, len(monitor.batches) + 1))


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_honoured(status, monitor, link_to, until):
    monitor.script.append(lambda peer, body: peer.answer(status, b"{}", Retry_After="1"))
    link = link_to(monitor.url, back_off_max_s=0.02)
    record(link)
    until(lambda: monitor.posts)
    begin = time.perf_counter()
    until(lambda: monitor.steps())
    assert time.perf_counter() - begin > 0.9


def test_garbage_among_the_commands_spoils_neither_the_others_nor_the_batch(monitor, link_to, until, command):
    good = json.loads(command("good").model_dump_json())
    garbage = [
        None,
        7,
        [],
        {"id": "x"},
        {**good, "id": "a", "kind": "format_disk"},
        {**good, "id": "b", "surprise": 1},
        {**good, "id": "c" * 100},
        {**good, "id": "d", "attempt": 0},
        {**good, "id": "e", "expires_at": "0001-01-01T00:00:00+14:00"},
        {**good, "id": "f", "expires_at": "9999-12-31T23:59:59-14:00"},
        {**good, "id": "g", "to_step": -1},
    ]
    now = utc_now().isoformat()
    monitor.script.append(
        lambda peer, b: peer.answer(200, reply(b, commands=[*garbage, good], server_time=now))
    )
    link = link_to(monitor.url)
    record(link)
    taken = []
    until(lambda: taken.extend(link.commands()) or taken)
    assert [c.id for c in taken] == ["good"]
    assert link.close().pending_batches == 0


def test_a_flood_of_commands_is_bounded(monitor, link_to, until, command):
    pattern = json.loads(command().model_dump_json())
    floods = iter(range(1_000_000))

    def flood(peer, body):
        commands = [{**pattern, "id": str(next(floods))} for _ in range(2_000)]
        peer.answer(200, reply(body, commands=commands, server_time=utc_now().isoformat()))

    monitor.script.extend([flood] * 3)
    link = link_to(monitor.url)
    record(link)
    until(lambda: not monitor.script and len(monitor.batches) > 0)
    handed_out = [len(link.commands()) for _ in range(100)]
    assert max(handed_out) == 8, "no step carries out more"
    assert sum(handed_out) == 3 * 100


def test_an_expired_command_is_never_handed_out_whatever_our_clock_says(monitor, link_to, until, command):
    """The monitor's clock is two days ahead: only its own difference counts."""
    ahead = datetime.now(UTC) + timedelta(days=2)
    expired, fresh = (
        {
            **json.loads(command(name).model_dump_json()),
            "expires_at": (ahead + timedelta(seconds=s)).isoformat(),
        }
        for name, s in (("expired", -1), ("fresh", 60))
    )
    answer = {"commands": [expired, fresh], "server_time": ahead.isoformat()}
    monitor.always = lambda peer, body: peer.answer(200, reply(body, **answer))
    link = link_to(monitor.url)
    record(link)
    taken = []
    until(lambda: len(monitor.posts) > 4)
    taken = link.commands()
    assert [c.id for c in taken] == ["fresh"]


def test_a_command_repeated_in_every_reply_is_handed_out_once(monitor, link_to, until, command):
    monitor.commands.append(command("c1"))
    link = link_to(monitor.url)
    record(link)
    taken = []
    until(lambda: taken.extend(link.commands()) or len(monitor.batches) > 5)
    assert [c.id for c in taken] == ["c1"]


def test_a_monitor_that_holds_nothing_is_not_asked_in_a_loop(monitor, link_to, until, command):
    """An open command makes the monitor answer at once each time: then the pace is flush_s."""
    monitor.commands.append(command("c1"))
    link = link_to(monitor.url, flush_s=0.2, hold_s=0.2)
    record(link)
    until(lambda: monitor.posts)
    time.sleep(0.5)
    assert len(monitor.posts) <= 5
