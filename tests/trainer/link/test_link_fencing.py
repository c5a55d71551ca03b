"""A name that belongs to another training: the monitor refuses, and the training goes on."""

import logging
from datetime import UTC, datetime

from shared.exchange import RunSpec
from trainer.link import Link
from trainer.link.delivery import deliver
from trainer.record import RunRecord


def test_a_training_under_a_taken_name_goes_on_says_it_once_and_loses_nothing(
    monitor, quick, until, tmp_path, caplog
):
    taken = b'{"detail": "run \'radio-7\' belongs to another training: give this one a name of its own"}'
    refused = []

    def refuse(peer, body):
        refused.append(body)
        return peer.answer(409, taken)

    monitor.on_register = refuse
    spec = RunSpec(started_at=datetime.now(UTC), identity="77aa01bc")
    config = quick(monitor.url, flush_s=0.05)
    link = Link(config, "radio-7", spec, tmp_path / "spool")
    with caplog.at_level(logging.WARNING, logger="trainer.link"):
        link.start()
        for step in range(100):
            link.record_step(1, step, 1.7e9 + step, {"loss": 1.0})
            if step == 50:
                until(lambda: refused)
        left = link.close(2.0)
    assert b'"identity":"77aa01bc"' in refused[0]
    assert (left.rejected_batches, left.dropped_steps) == (0, 0)
    assert left.pending_batches >= 1
    assert monitor.batches == []
    said = [line for line in caplog.messages if "a name of its own" in line]
    assert len(said) == 1
    assert "Training goes on without it; its reports wait in" in said[0]
    monitor.on_register = None  # somebody has given the name back
    assert deliver(tmp_path / "spool", config).pending_batches == 0
    assert sorted(monitor.steps()) == list(range(100))


def test_a_folder_keeps_its_identity_over_restarts_and_copies_and_a_new_folder_has_its_own(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    path = tmp_path / "a/record.json"
    first = RunRecord.take_up(path)
    assert first.identity is not None
    assert RunRecord.load(path).identity == first.identity  # on disk before anybody is told
    assert RunRecord.take_up(path).identity == first.identity
    assert RunRecord.take_up(tmp_path / "b/record.json").identity != first.identity
    (tmp_path / "b/record.json").write_bytes(path.read_bytes())
    assert RunRecord.take_up(tmp_path / "b/record.json").identity == first.identity


def test_an_older_record_gets_an_identity_and_keeps_the_rest(tmp_path):
    path = tmp_path / "record.json"
    path.write_text('{"attempt": 4, "commands_seen": ["c1"]}')
    record = RunRecord.take_up(path)
    assert record.identity is not None
    assert (RunRecord.load(path).attempt, RunRecord.load(path).commands_seen) == (4, ["c1"])


def test_a_folder_that_cannot_be_written_has_no_identity(tmp_path):
    """One that is not kept would be another after a restart, and be refused."""
    (tmp_path / "file").touch()
    assert RunRecord.take_up(tmp_path / "file/record.json").identity is None


def test_the_halves_of_what_an_earlier_process_left_are_parts_of_its_session(
    start_monitor, free_port, quick, tmp_path
):
    config = quick(f"http://127.0.0.1:{free_port}", flush_s=5.0)
    spec = RunSpec(started_at=datetime.now(UTC))
    first = Link(config, "radio-7", spec, tmp_path / "spool")
    first.start()
    for step in range(1_000):
        first.record_step(1, step, 1.7e9 + step, {"loss": 1.0})
    first.close(0.1)
    monitor = start_monitor(free_port)

    def at_most_300_rows(peer, body):
        if body.count(b"17000") > 300:
            return peer.answer(413, b'{"detail": "too large"}')
        return peer.tell_the_truth(body)

    monitor.always = at_most_300_rows
    second = Link(config, "radio-7", spec, tmp_path / "spool")
    second.start()
    second.record_step(2, 1_000, 1.7e9, {"loss": 1.0})
    assert second.close().pending_batches == 0
    assert sorted(monitor.steps()) == list(range(1_001))
    owners = {(batch.attempt, batch.session.partition("/")[0]) for batch in monitor.batches}
    assert len(owners) == 2
    assert len({batch.session for batch in monitor.batches}) > 2
