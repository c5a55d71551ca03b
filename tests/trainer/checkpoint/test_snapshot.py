"""Snapshots are copies: of the state when taken, and of themselves when handed out."""

import copy

import pytest
import torch
from torch import Tensor, nn

from trainer.checkpoint import SnapshotRing, stage

State = dict[str, dict[str, Tensor]]


def taken_at(ring: SnapshotRing, *steps: int) -> None:
    for step in steps:
        ring.take(
            step=step, attempt=1, parts={"model": {"w": torch.full((3,), float(step))}}, facts={"step": step}
        )


def pointers(ring: SnapshotRing) -> set[int]:
    return {
        tensor.data_ptr()
        for slot in ring._slots
        for tensors in slot.parts.values()
        for tensor in tensors.values()
    }


def test_staged_tensors_do_not_follow_training(parts: State) -> None:
    staged = stage(parts)
    before = parts["model"]["weight"].clone()
    parts["model"]["weight"].add_(1)
    assert torch.equal(staged["model"]["weight"], before)
    assert torch.equal(staged["model"]["transposed"], before.t())
    assert all(tensor.is_contiguous() for tensors in staged.values() for tensor in tensors.values())


def test_staging_a_parameter_gives_a_plain_tensor() -> None:
    staged = stage({"model": dict(nn.Linear(2, 2).named_parameters())})
    assert not staged["model"]["weight"].requires_grad


def test_the_last_two_are_kept_newest_first() -> None:
    ring = SnapshotRing(slots=2)
    assert ring.newest() is None
    taken_at(ring, 10, 20, 30)
    assert ring.steps() == (30, 20)
    newest, older = ring.newest(), ring.newest(before_step=30)
    assert newest is not None
    assert older is not None
    assert (newest.step, newest.parts["model"]["w"][0], newest.facts) == (30, 30.0, {"step": 30})
    assert (older.step, older.parts["model"]["w"][0]) == (20, 20.0)
    assert ring.newest(before_step=20) is None


def test_slots_use_their_memory_again() -> None:
    ring = SnapshotRing(slots=2)
    taken_at(ring, 10, 20)
    before = pointers(ring)
    taken_at(ring, 30, 40, 50)
    assert pointers(ring) == before


def test_a_state_of_another_shape_gets_new_memory() -> None:
    ring = SnapshotRing(slots=1)
    taken_at(ring, 10)
    ring.take(step=20, attempt=1, parts={"model": {"w": torch.ones(5)}}, facts={})
    newest = ring.newest()
    assert newest is not None
    assert torch.equal(newest.parts["model"]["w"], torch.ones(5))


def test_snapshots_past_a_rollback_are_forgotten() -> None:
    ring = SnapshotRing(slots=3)
    taken_at(ring, 10, 20, 30)
    ring.drop_after(20)
    assert ring.steps() == (20, 10)


def test_a_protected_snapshot_stays_until_its_time_is_over() -> None:
    ring = SnapshotRing()
    taken_at(ring, 10, 20)
    ring.protect(20, until=60)
    taken_at(ring, 30, 40, 50)
    assert ring.steps() == (50, 20)
    taken_at(ring, 60, 70)
    assert ring.steps() == (70, 60)


def test_a_protected_snapshot_that_a_rollback_dropped_protects_nothing() -> None:
    ring = SnapshotRing()
    taken_at(ring, 10, 20)
    ring.protect(20, until=1_000)
    ring.drop_after(10)
    taken_at(ring, 15, 25, 35)
    assert ring.steps() == (35, 25)


def test_taking_the_same_step_again_does_not_cost_the_older_one() -> None:
    ring = SnapshotRing(slots=2)
    taken_at(ring, 10, 20, 20)
    assert ring.steps() == (20, 10)


def test_an_optimizer_that_loaded_a_snapshot_does_not_change_it() -> None:
    model = nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)

    def step() -> None:
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()

    step()
    ring = SnapshotRing(slots=1)
    state = {
        f"{i}.{name}": value
        for i, one in optimizer.state_dict()["state"].items()
        for name, value in one.items()
    }
    ring.take(step=1, attempt=1, parts={"optimizer": state}, facts={})
    first = ring.newest()
    assert first is not None
    expected = copy.deepcopy(first.parts)
    loaded = optimizer.state_dict()
    for name, value in first.parts["optimizer"].items():
        index, key = name.split(".")
        loaded["state"][int(index)][key] = value
    optimizer.load_state_dict(loaded)
    step()
    again = ring.newest()
    assert again is not None
    assert all(
        torch.equal(value, expected["optimizer"][name]) for name, value in again.parts["optimizer"].items()
    )


def test_facts_are_copied_when_taken_and_when_handed_out() -> None:
    ring, window = SnapshotRing(), [1.0]
    ring.take(step=1, attempt=1, parts={}, facts={"window": window})
    window.append(2.0)
    for _ in range(2):
        newest = ring.newest()
        assert newest is not None
        assert newest.facts == {"window": [1.0]}
        newest.facts["window"].append(3.0)


def test_a_copy_that_fails_half_way_is_not_found() -> None:
    ring = SnapshotRing(slots=1)
    taken_at(ring, 10)
    broken = torch.ones(3, device="meta")
    with pytest.raises(NotImplementedError):
        ring.take(step=20, attempt=1, parts={"model": {"w": broken}}, facts={})
    assert ring.steps() == ()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_device_state_lands_in_pinned_memory() -> None:
    weight = torch.randn(1000, device="cuda")
    staged = stage({"model": {"w": weight}})["model"]["w"]
    assert staged.is_pinned()
    assert torch.equal(staged, weight.cpu())


def test_a_ring_without_slots_is_refused() -> None:
    with pytest.raises(ValueError, match="slots is 0"):
        SnapshotRing(slots=0)
