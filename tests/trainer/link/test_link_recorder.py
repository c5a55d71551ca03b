"""The bounded queues in memory and how they become batches."""

from shared.events import Finding
from shared.exchange import OutboxCounts
from trainer.link.outbox import Outbox
from trainer.link.packer import Packer
from trainer.link.recorder import EVENTS_PER_BATCH, ROWS_PER_BATCH, Recorder


def finding(step=0):
    return Finding(step=step, guard="g", severity="error", message="m")


def test_no_piece_is_longer_than_a_batch_may_be():
    recorder = Recorder(10_000, 2_000)
    for step in range(ROWS_PER_BATCH + 1):
        recorder.add_step(1, step, 0.0, {})
    for step in range(EVENTS_PER_BATCH + 1):
        recorder.add_event(1, finding(step))
    pieces = recorder.collect()
    assert [len(piece.rows) for piece in pieces] == [ROWS_PER_BATCH, 1]
    assert [len(piece.events) for piece in pieces] == [EVENTS_PER_BATCH, 1]
    assert recorder.collect() == []


def test_a_full_queue_of_steps_leaves_the_events_alone():
    recorder = Recorder(max_steps=10, max_events=10)
    for step in range(25):
        recorder.add_step(1, step, 0.0, {})
    recorder.add_event(1, finding())
    assert (recorder.dropped_steps, recorder.dropped_events) == (15, 0)
    [piece] = recorder.collect()
    assert [row.step for row in piece.rows] == list(range(10))
    assert len(piece.events) == 1


def test_findings_outlive_steps(tmp_path):
    """The spool is full and the monitor away: steps go and are counted, the finding waits on disk."""
    recorder, outbox = Recorder(max_steps=100, max_events=100), Outbox(tmp_path, 16_000)
    outbox.open()
    packer = Packer(recorder, outbox)
    for step in range(10_000):
        recorder.add_step(1, step, 0.0, {"loss": 1.0})
        if step == 9_000:
            recorder.add_event(1, finding(step))
        if step % 10 == 0:
            packer.pack(recorder.collect(with_steps=outbox.has_room(for_steps=True)), OutboxCounts())
    recorder.abandon()
    outbox.close()
    spooled = b"".join(file.read_bytes() for file in tmp_path.glob("*.spool"))
    assert spooled.count(b'"finding"') == 1
    assert recorder.dropped_events == 0
    assert recorder.dropped_steps > 5_000
    assert len(spooled) < 16_000 + 2_000


def test_the_mapping_may_be_used_again_by_the_caller():
    recorder = Recorder(10, 10)
    values = {"loss": 1.0}
    recorder.add_step(1, 0, 0.0, values)
    values["loss"] = 2.0
    [piece] = recorder.collect()
    assert piece.rows[0].values == {"loss": 1.0}


def test_a_series_has_none_where_a_step_has_no_value(tmp_path):
    recorder, outbox = Recorder(10, 10), Outbox(tmp_path, 1 << 20)
    recorder.add_step(1, 0, 0.0, {"a": 1.0})
    recorder.add_step(1, 1, 0.0, {"b": 2.0})
    Packer(recorder, outbox).pack(recorder.collect(), OutboxCounts())
    assert b'"series":{"a":[1.0,null],"b":[null,2.0]}' in outbox.take().body
    outbox.close()
