"""The spool on disk: order, restarts, damage, a full disk."""

import resource
from contextlib import contextmanager

import pytest

from trainer.link import segment
from trainer.link.outbox import MAX_REJECTED_FILES, Outbox, SpoolError
from trainer.link.segment import Record


def record(seq, body=b'{"a": 1}'):
    return Record(seq, 0.0, body)


@pytest.fixture
def opened():
    outboxes = []

    def open_one(directory, limit_bytes=1 << 20):
        outboxes.append(Outbox(directory, limit_bytes))
        outboxes[-1].open()
        return outboxes[-1]

    yield open_one
    for outbox in outboxes:
        outbox.close()


def drained(outbox):
    seqs = []
    while (taken := outbox.take()) is not None:
        seqs.append(taken.seq)
        outbox.settle(taken)
    return seqs


def left_behind(directory):
    """The spool file of a process that delivered none of its five batches."""
    outbox = Outbox(directory, 1 << 20)
    for seq in range(1, 6):
        outbox.append(record(seq), has_events=False)
    outbox.close()
    [file] = directory.glob("*.spool")
    return file


@contextmanager
def disk_with_room_for(file_bytes):
    """No file grows beyond this: a write that would is cut short, and the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_batches_come_back_as_they_were_and_in_order(opened, tmp_path):
    outbox = opened(tmp_path)
    sent = [Record(seq, seq / 8, b'{"text": "\\n \xc3\xa4"}') for seq in range(1, 4)]
    for one in sent:
        outbox.append(one, has_events=True)
    outbox.sync()
    assert outbox.pending == 3
    taken = [outbox.take() for _ in sent]
    assert [(t.seq, t.hold_s, t.body) for t in taken] == [(s.seq, s.hold_s, s.body) for s in sent]
    assert outbox.take() is None


def test_what_was_delivered_gives_its_disk_back(opened, tmp_path):
    outbox = opened(tmp_path)
    for seq in range(1, 200):
        outbox.append(record(seq, b"x" * 100_000), has_events=False)
    assert outbox.size_bytes > 19_000_000
    assert drained(outbox) == list(range(1, 200))
    assert outbox.size_bytes == outbox.pending == 0
    outbox.close()
    assert list(tmp_path.glob("*.spool")) == []


def test_a_batch_taken_and_not_settled_comes_again_after_a_restart(opened, tmp_path):
    first = opened(tmp_path)
    for seq in (1, 2, 3):
        first.append(record(seq), has_events=False)
    held, other = first.take(), first.take()
    first.settle(other)
    first.close()
    assert held.seq == 1
    assert drained(opened(tmp_path)) == [1, 2, 3]


def test_old_batches_go_before_new_ones(opened, tmp_path):
    left_behind(tmp_path)
    outbox = opened(tmp_path)
    outbox.append(record(99), has_events=False)
    assert outbox.pending == 6
    assert drained(outbox) == [1, 2, 3, 4, 5, 99]


@pytest.mark.parametrize("torn_bytes", [1, 5, 15])
def test_a_torn_tail_costs_only_the_last_batch(opened, tmp_path, torn_bytes):
    file = left_behind(tmp_path)
    file.write_bytes(file.read_bytes()[:-torn_bytes])
    outbox = opened(tmp_path)
    outbox.append(record(6), has_events=False)
    whole = [1, 2, 3, 4, 5, 6] if torn_bytes == 1 else [1, 2, 3, 4, 6]
    assert drained(outbox) == whole
    assert outbox.rejected == 6 - len(whole)
    assert outbox.pending == 0


def test_a_damaged_batch_is_set_aside_and_counted(opened, tmp_path):
    file = left_behind(tmp_path)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    outbox = opened(tmp_path)
    assert drained(outbox) == [1, 2, 4, 5]
    assert (outbox.rejected, outbox.pending) == (1, 0)
    assert len(list((tmp_path / "rejected").iterdir())) == 1


def test_no_damage_to_a_single_byte_costs_more_than_two_batches(opened, tmp_path):
    file = left_behind(tmp_path / "a")
    whole = file.read_bytes()
    for position in range(len(whole)):
        content = bytearray(whole)
        content[position] ^= 0x5A
        directory = tmp_path / f"b{position}"
        directory.mkdir()
        (directory / file.name).write_bytes(content)
        outbox = opened(directory)
        got = drained(outbox)
        outbox.close()
        assert len(got) >= 3
        assert set(got) <= {1, 2, 3, 4, 5}


def test_a_full_disk_keeps_batches_in_memory_and_says_so_once(opened, tmp_path, caplog):
    outbox = opened(tmp_path)
    outbox.append(record(1, b"x" * 1_000), has_events=False)
    with disk_with_room_for(1_500):
        for seq in (2, 3):
            outbox.append(record(seq, b"y" * 1_000), has_events=False)
            assert not outbox.has_room(for_steps=True)
        assert outbox.pending == 3
    assert caplog.text.count("batches wait in memory") == 1
    assert outbox.has_room(for_steps=True), "the disk has room again, and the batches are on it"
    outbox.close()
    assert drained(opened(tmp_path)) == [1, 2, 3]


def test_a_full_disk_and_a_monitor_that_takes_batches_lose_nothing(opened, tmp_path):
    outbox = opened(tmp_path)
    with disk_with_room_for(10):
        outbox.append(record(1), has_events=True)
        outbox.sync()
        assert drained(outbox) == [1]
        assert outbox.pending == 0
    assert list(tmp_path.glob("*.spool")) == []


def test_a_folder_removed_while_running_is_made_again(opened, tmp_path):
    directory = tmp_path / "spool"
    outbox = opened(directory)
    outbox.append(record(1), has_events=False)
    for file in directory.iterdir():
        file.unlink()
    directory.rmdir()
    assert outbox.take() is None
    outbox.append(record(2), has_events=False)
    outbox.append(record(3), has_events=False)
    assert drained(outbox) == [2, 3]
    assert (outbox.pending, outbox.rejected) == (0, 1)


def test_steps_lose_their_room_before_events_do(opened, tmp_path):
    outbox = opened(tmp_path, limit_bytes=16_000)
    outbox.append(record(1, b"x" * 15_000), has_events=False)
    assert not outbox.has_room(for_steps=True)
    assert outbox.has_room(for_steps=False)
    outbox.append(record(2, b"x" * 1_000), has_events=True)
    assert not outbox.has_room(for_steps=False)


def test_rejected_batches_do_not_fill_the_disk(opened, tmp_path):
    outbox = opened(tmp_path)
    for seq in range(1, MAX_REJECTED_FILES + 20):
        outbox.append(record(seq), has_events=False)
        outbox.reject(outbox.take(), "422 no")
    assert outbox.rejected == MAX_REJECTED_FILES + 19
    assert len(list((tmp_path / "rejected").iterdir())) == MAX_REJECTED_FILES


def test_a_folder_that_is_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        Outbox(tmp_path / "file", 1_000).open()


def test_events_are_synced_and_steps_are_not(opened, tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(segment.os, "fsync", synced.append)
    outbox = opened(tmp_path)
    outbox.append(record(1), has_events=False)
    outbox.sync()
    assert not synced
    outbox.append(record(2), has_events=True)
    outbox.sync()
    assert len(synced) == 2, "the file and its folder"
    outbox.sync()
    assert len(synced) == 2


def test_spool_error_names_the_folder_and_a_remedy(tmp_path):
    error = SpoolError(tmp_path, "another process uses this spool", "End it.")
    assert str(tmp_path) in str(error)
    assert "End it." in str(error)
