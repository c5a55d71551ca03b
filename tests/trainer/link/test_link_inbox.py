"""Commands: once each, in time, by the monitor's clock."""

from datetime import timedelta

import pytest

from shared.base import utc_now
from shared.exchange import Reply
from trainer.link import inbox as inbox_module
from trainer.link.inbox import Inbox, ReplyRefused


def reply(*commands, seq=1):
    return Reply(seq=seq, commands=list(commands), server_time=utc_now()).model_dump_json().encode()


def test_a_command_that_lapses_while_it_waits_is_not_handed_out(command):
    now = [0.0]
    inbox = Inbox(clock=lambda: now[0])
    assert inbox.accept(reply(command("short", valid_for_s=30), command("long", valid_for_s=300)), 1)
    now[0] = 31.0
    assert [c.id for c in inbox.take()] == ["long"]


def test_an_id_is_new_once_also_after_it_was_taken(command):
    inbox = Inbox()
    assert inbox.accept(reply(command("c1")), 1)
    assert len(inbox.take()) == 1
    assert not inbox.accept(reply(command("c1")), 1)
    assert inbox.take() == []


def test_a_flood_is_handed_out_a_few_at_a_time(command):
    inbox = Inbox()
    inbox.accept(reply(*[command(str(i)) for i in range(20)]), 1)
    assert [len(inbox.take()) for _ in range(4)] == [8, 8, 4, 0]


def test_no_more_commands_are_obeyed_than_can_be_remembered(command, monkeypatch):
    monkeypatch.setattr(inbox_module, "MAX_COMMANDS", 3)
    inbox = Inbox()
    inbox.accept(reply(*[command(str(i)) for i in range(5)]), 1)
    assert [c.id for c in inbox.take()] == ["0", "1", "2"]


def test_a_reply_to_another_batch_confirms_nothing_and_its_commands_wait(command):
    inbox = Inbox()
    with pytest.raises(ReplyRefused, match="confirms batch 2 where 1 was sent"):
        inbox.accept(reply(command(), seq=2), 1)
    assert inbox.take() == []


def test_a_withdrawal_is_handed_out_once_and_before_the_commands(command):
    inbox = Inbox()
    body = Reply(seq=1, commands=[command("c1")], withdrawn=["c1", "c2"], server_time=utc_now())
    assert inbox.accept(body.model_dump_json().encode(), 1)
    assert [(type(one).__name__, one.id) for one in inbox.take()] == [
        ("Withdrawal", "c1"),
        ("Withdrawal", "c2"),
        ("Command", "c1"),
    ]
    assert not inbox.accept(body.model_dump_json().encode(), 1)
    assert inbox.take() == []


@pytest.mark.parametrize("lie", ["[1, null, {}]", '["", "' + "x" * 65 + '"]'])
def test_a_withdrawal_that_makes_no_sense_is_ignored(lie):
    inbox = Inbox()
    assert not inbox.accept(reply().replace(b'"withdrawn":[]', b'"withdrawn":' + lie.encode()), 1)
    assert inbox.take() == []


def test_a_newer_monitor_may_say_more(command):
    body = reply(command()).replace(b'"seq":1', b'"seq":1,"news":{"a":1}')
    assert Inbox().accept(body, 1)


def test_validity_counts_from_the_moment_of_the_reply(command):
    now = [100.0]
    inbox = Inbox(clock=lambda: now[0])
    one = command("c1", valid_for_s=10)
    inbox.accept(
        Reply(seq=1, commands=[one], server_time=one.expires_at - timedelta(seconds=5))
        .model_dump_json()
        .encode(),
        1,
    )
    now[0] = 104.9
    assert [c.id for c in inbox.take()] == ["c1"]
