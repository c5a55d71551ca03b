"""The ring keeps a way back open: what is sealed, what is good, what is loaded, what goes."""

import random
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trainer.checkpoint import (
    CheckpointRing,
    CheckpointWriteFailed,
    NoValidCheckpoint,
    Record,
    RingConfig,
    SaveRefused,
    State,
    Stored,
    list_records,
)
from trainer.checkpoint import ring as ring_module
from trainer.checkpoint.retention import surplus

CONFIG = RingConfig(promote_after=50)


def state_at(step: int) -> dict[str, dict[str, Tensor]]:
    return {"model": {"w": torch.full((32,), float(step))}}


def save(ring: CheckpointRing, step: int, attempt: int = 1) -> Record:
    return ring.save(state_at(step), {"step": step}, step=step, attempt=attempt, probe_loss=step / 10)


def train(ring: CheckpointRing, begin: int, end: int, every: int, unhealthy: Iterable[int] = ()) -> None:
    """Apply steps ``begin + 1 .. end`` and save at each multiple of ``every``."""
    for step in range(begin + 1, end + 1):
        if step % every == 0:
            save(ring, step)
        ring.healthy(step, open_findings=step in unhealthy)


def states(ring: CheckpointRing) -> dict[int, str]:
    return {record.step: record.state.value for record in ring.records()}


def damage(record: Record) -> None:
    path = record.path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)


def test_a_saved_checkpoint_is_sealed_and_told_of(tmp_path: Path) -> None:
    told: list[Record] = []
    record = save(CheckpointRing(tmp_path, CONFIG, told.append), 150, attempt=3)
    assert told == [record]
    assert (record.name, record.state, record.probe_loss) == ("step-00000150-attempt-3", State.SEALED, 15.0)
    assert record.path == tmp_path / record.name
    assert record.size_bytes == sum(
        (record.path / file).stat().st_size for file in ("model.safetensors", "state.json")
    )
    assert record.seconds > 0


@pytest.mark.parametrize(
    ("parts", "probe_loss", "check"),
    [
        ({"model": {"w": torch.tensor([1.0, float("nan")])}}, 0.5, "finite"),
        ({"ema": {"w": torch.tensor([1.0, float("inf")]).half()}}, 0.5, "finite"),
        ({"optimizer": {"0.exp_avg_sq": torch.tensor([-1.0])}}, 0.5, "second_moments"),
        ({"model": {"w": torch.ones(1)}}, float("nan"), "probe"),
    ],
)
def test_a_bad_state_is_refused_before_anything_is_written(
    tmp_path: Path, parts: dict[str, dict[str, Tensor]], probe_loss: float, check: str
) -> None:
    told: list[Record] = []
    ring = CheckpointRing(tmp_path, CONFIG, told.append)
    good = save(ring, 10)
    with pytest.raises(SaveRefused) as caught:
        ring.save(parts, {}, step=20, attempt=1, probe_loss=probe_loss)
    assert caught.value.check == check
    assert [(one.state, one.failed_check) for one in told[1:]] == [(State.BAD, check)]
    assert ring.records() == (good,)
    assert [path.name for path in tmp_path.iterdir()] == [good.name]


def test_fifty_healthy_steps_make_a_checkpoint_good(tmp_path: Path) -> None:
    ring = CheckpointRing(tmp_path, CONFIG)
    save(ring, 100)
    ring.healthy(149, open_findings=False)
    assert states(ring) == {100: "sealed"}
    ring.healthy(150, open_findings=False)
    assert states(ring) == {100: "good"}


def test_an_open_finding_makes_the_fifty_steps_begin_again(tmp_path: Path) -> None:
    ring = CheckpointRing(tmp_path, CONFIG)
    save(ring, 100)
    ring.healthy(140, open_findings=True)
    ring.healthy(189, open_findings=False)
    assert states(ring) == {100: "sealed"}
    ring.healthy(190, open_findings=False)
    assert states(ring) == {100: "good"}


def test_after_a_rollback_old_trouble_ahead_does_not_delay_promotion(tmp_path: Path) -> None:
    ring = CheckpointRing(tmp_path, CONFIG)
    save(ring, 100)
    ring.healthy(140, open_findings=True)
    ring.invalidate_after(100, attempt=1)
    ring.healthy(150, open_findings=False)
    assert states(ring) == {100: "good"}


@pytest.mark.parametrize("every", [1, 5, 10, 20, 30])
def test_some_checkpoint_becomes_good_however_often_one_saves(tmp_path: Path, every: int) -> None:
    ring = CheckpointRing(tmp_path, RingConfig(promote_after=20))
    train(ring, 0, 50, every)
    assert "good" in states(ring).values()


def test_retention_keeps_the_last_good_and_sealed_ones(tmp_path: Path) -> None:
    told: list[tuple[int, str]] = []
    ring = CheckpointRing(tmp_path, CONFIG, lambda record: told.append((record.step, record.state.value)))
    train(ring, 0, 250, every=25)
    assert states(ring) == {250: "sealed", 225: "sealed", 200: "good", 175: "good", 150: "good"}
    assert {path.name for path in tmp_path.iterdir()} == {record.name for record in ring.records()}
    assert [step for step, state in told if state == "deleted"] == [25, 50, 75, 100, 125]


def test_the_newest_good_one_stays_while_nothing_new_gets_good(tmp_path: Path) -> None:
    ring = CheckpointRing(tmp_path, CONFIG)
    train(ring, 0, 600, every=25, unhealthy=range(80, 601))
    assert states(ring)[25] == "good"
    assert len(ring.records()) == 1 + CONFIG.keep_sealed + 1


def test_no_sequence_of_states_lets_the_newest_good_one_go() -> None:
    dice = random.Random(3)
    for _ in range(300):
        records = [
            Record(name=str(step), step=step, attempt=1, state=dice.choice(list(State)[:3]))
            for step in range(dice.randrange(12), 0, -1)
        ]
        gone = surplus(records, CONFIG)
        good = [one for one in records if one.state is State.GOOD]
        assert not set(map(id, good[: CONFIG.keep_good])) & set(map(id, gone))
        left = [one.state for one in records if one not in gone]
        assert left.count(State.GOOD) <= CONFIG.keep_good
        assert left.count(State.SEALED) <= CONFIG.keep_sealed + 1
        assert left.count(State.BAD) <= CONFIG.keep_bad


def test_a_good_checkpoint_is_loaded_before_a_newer_sealed_one(tmp_path: Path) -> None:
    ring = CheckpointRing(tmp_path, CONFIG)
    train(ring, 0, 100, every=25)
    loaded = ring.load_newest()
    assert (loaded.record.step, loaded.record.state) == (50, State.GOOD)
    assert torch.equal(loaded.stored.parts["model"]["w"], state_at(50)["model"]["w"])
    assert loaded.stored.manifest.probe_loss == 5.0


def test_a_damaged_one_is_marked_and_the_next_older_is_loaded(tmp_path: Path) -> None:
    told: list[Record] = []
    ring = CheckpointRing(tmp_path, CONFIG, told.append)
    train(ring, 0, 100, every=25)
    newest_good = next(record for record in ring.records() if record.state is State.GOOD)
    damage(newest_good)
    assert ring.load_newest().record.step == 25
    assert (told[-1].step, told[-1].state, told[-1].failed_check) == (50, State.BAD, "tensor_hashes")
    assert told[-1].found == "1 tensor with other bytes than were written: model/w"


def test_when_all_good_ones_are_damaged_a_sealed_one_is_loaded(tmp_path: Path) -> None:
    ring = CheckpointRing(tmp_path, CONFIG)
    train(ring, 0, 100, every=25)
    for record in ring.records():
        if record.state is State.GOOD:
            damage(record)
    assert ring.load_newest().record.step == 100


def test_a_refused_checkpoint_is_bad_once_another_is_accepted(tmp_path: Path) -> None:
    ring = CheckpointRing(tmp_path, CONFIG)
    train(ring, 0, 100, every=25)

    def probe(stored: Stored) -> str | None:
        return "probe loss 9.0 where 5.0 was recorded" if stored.manifest.step == 50 else None

    assert ring.load_newest(accept=probe).record.step == 25
    refused = next(record for record in ring.records() if record.step == 50)
    assert (refused.state, refused.failed_check) == (State.BAD, "accept")
    assert refused.found == "probe loss 9.0 where 5.0 was recorded"


def test_a_program_that_refuses_all_does_not_spoil_the_ring(tmp_path: Path) -> None:
    ring = CheckpointRing(tmp_path, CONFIG)
    train(ring, 0, 100, every=25)
    before = ring.records()
    with pytest.raises(NoValidCheckpoint, match="step-00000050-attempt-1 fails accept: scale") as caught:
        ring.load_newest(accept=lambda stored: "scale_factor 0.3 for 0.18215")
    assert [one.path.name for one in caught.value.tried] == [
        f"step-{step:08d}-attempt-1" for step in (50, 25, 100, 75)
    ]
    assert ring.records() == before
    assert ring.load_newest().record.step == 50


def test_only_older_ones_than_the_onset_are_loaded_when_asked(tmp_path: Path) -> None:
    ring = CheckpointRing(tmp_path, CONFIG)
    train(ring, 0, 100, every=25)
    assert ring.load_newest(before_step=50).record.step == 25
    with pytest.raises(NoValidCheckpoint, match="there is none that fits"):
        ring.load_newest(before_step=25)


def test_a_renamed_checkpoint_is_not_taken_for_another_step(tmp_path: Path) -> None:
    ring = CheckpointRing(tmp_path, CONFIG)
    save(ring, 10)
    record = save(ring, 20)
    for file in ("model.safetensors", "state.json", "manifest.json"):
        (record.path / file).write_bytes((ring.records()[1].path / file).read_bytes())
    assert ring.load_newest().record.step == 10
    assert ring.records()[0].failed_check == "name"


def test_what_lies_past_a_rollback_is_neither_promoted_nor_loaded(tmp_path: Path) -> None:
    ring = CheckpointRing(tmp_path, RingConfig(keep_bad=5))
    train(ring, 0, 100, every=25)
    ring.invalidate_after(50, attempt=1)
    save(ring, 60, attempt=2)
    ring.healthy(200, open_findings=False)
    assert states(ring) == {60: "good", 100: "bad", 75: "bad", 50: "good", 25: "good"}
    assert {one.failed_check for one in ring.records() if one.state is State.BAD} == {"abandoned"}
    assert ring.load_newest().record.name == "step-00000060-attempt-2"


def test_the_steps_at_hand_are_those_that_could_be_loaded(tmp_path: Path) -> None:
    ring = CheckpointRing(tmp_path, CONFIG)
    train(ring, 0, 100, every=25)
    ring.mark_bad("step-00000075-attempt-1", "probe", "loss 3 for 1")
    assert ring.steps() == (100, 50, 25)


def test_newest_means_the_later_attempt_not_the_higher_step(tmp_path: Path) -> None:
    ring = CheckpointRing(tmp_path, CONFIG)
    save(ring, 100)
    save(ring, 60, attempt=2)
    assert ring.load_newest().record.step == 60


def test_a_new_process_sees_the_same_ring(tmp_path: Path) -> None:
    ring = CheckpointRing(tmp_path, CONFIG)
    train(ring, 0, 100, every=25)
    ring.mark_bad("step-00000075-attempt-1", "probe", "loss 3 for 1")
    assert CheckpointRing(tmp_path, CONFIG).records() == ring.records()
    assert list_records(tmp_path) == ring.records()


def test_to_look_on_removes_nothing_and_to_start_removes_leftovers(tmp_path: Path) -> None:
    record = save(CheckpointRing(tmp_path, CONFIG), 10)
    leftovers = [tmp_path / ".step-00000020-attempt-1.tmp-99-abcd", record.path / ".status.json.tmp-99-ef01"]
    leftovers[0].mkdir()
    (leftovers[0] / "model.safetensors").write_bytes(b"half")
    leftovers[1].write_bytes(b"half")
    assert list_records(tmp_path) == (record,)
    assert all(path.exists() for path in leftovers)
    ring = CheckpointRing(tmp_path, CONFIG)
    assert not any(path.exists() for path in leftovers)
    assert save(ring, 20).state is State.SEALED


def test_a_leftover_does_not_block_the_next_save(tmp_path: Path) -> None:
    ring = CheckpointRing(tmp_path, CONFIG)
    (tmp_path / ".step-00000020-attempt-1.tmp-99-abcd").mkdir()
    assert save(ring, 20).state is State.SEALED


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-9])])
def test_a_checkpoint_whose_status_is_lost_is_not_trusted(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    ring = CheckpointRing(tmp_path, CONFIG)
    save(ring, 10)
    harm(save(ring, 20).path / "status.json")
    again = CheckpointRing(tmp_path, CONFIG)
    assert (again.records()[0].state, again.records()[0].failed_check) == (State.BAD, "status")
    assert again.load_newest().record.step == 10


def test_no_flipped_bit_in_a_status_is_believed(
    tmp_path: Path, flip_bit: Callable[[Path, int], None]
) -> None:
    path = save(CheckpointRing(tmp_path, CONFIG), 10).path / "status.json"
    for bit in random.Random(0).sample(range(path.stat().st_size * 8), 100):
        flip_bit(path, bit)
        assert list_records(tmp_path)[0].failed_check == "status"
        flip_bit(path, bit)


def test_the_same_step_is_not_saved_twice_but_a_bad_one_is_replaced(tmp_path: Path) -> None:
    told: list[str] = []
    ring = CheckpointRing(tmp_path, CONFIG, lambda record: told.append(record.state.value))
    first = save(ring, 10)
    assert save(ring, 10) == first
    ring.mark_bad(first.name, "probe", "no")
    assert save(ring, 10).state is State.SEALED
    assert told == ["sealed", "bad", "deleted", "sealed"]


def test_a_failed_save_leaves_the_ring_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = CheckpointRing(tmp_path, CONFIG)
    save(ring, 10)
    before = ring.records()

    def full(path: Path, pieces: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ring_module, "write_file", full)
        with pytest.raises(CheckpointWriteFailed, match="ENOSPC"):
            save(ring, 20)
    assert ring.records() == before == list_records(tmp_path)
    assert save(ring, 20).state is State.SEALED


def test_on_a_full_disk_nothing_is_good_and_what_is_bad_stays_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = CheckpointRing(tmp_path, CONFIG)
    save(ring, 10)
    save(ring, 20)

    def full(path: Path, content: bytes) -> None:
        raise CheckpointWriteFailed(path, "No space left on device (ENOSPC)")

    with monkeypatch.context() as patch:
        patch.setattr(ring_module, "replace_file", full)
        ring.mark_bad("step-00000020-attempt-1", "probe", "no")
        ring.healthy(60, open_findings=False)
        assert states(ring) == {20: "bad", 10: "sealed"}
    ring.healthy(61, open_findings=False)
    assert states(ring) == {20: "bad", 10: "good"}


def test_an_unknown_name_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no checkpoint 'step-1'"):
        CheckpointRing(tmp_path, CONFIG).mark_bad("step-1", "probe", "no")


def test_one_good_checkpoint_only_is_refused_by_the_config() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        RingConfig(keep_good=1)
