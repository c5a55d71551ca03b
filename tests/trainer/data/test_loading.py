"""Batches are a function of seed and position, and a saved position brings back exactly the same ones."""

import json
import os
import signal
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.data.batches import LoadingConfig
from trainer.data.errors import DataError, PositionMismatch
from trainer.data.items import Batch, Item
from trainer.data.loading import Loader


class Numbers:
    """A data set whose item says its own number and what was drawn for it."""

    def __init__(self, length: int = 10, fingerprint: str = "numbers") -> None:
        self.length, self.fingerprint = length, fingerprint
        self.loads = 0

    def __len__(self) -> int:
        return self.length

    def example(self, index: int, rng: np.random.Generator) -> Item:
        self.loads += 1
        image = torch.full((1, 2, 2), float(index))
        return Item(image=image, cond=torch.full((3, 2, 2), rng.random()), id=str(index))


@pytest.fixture
def loader(request: pytest.FixtureRequest) -> Iterator[Loader]:
    """With as many workers as the test's parameter says."""
    built = Loader(Numbers(), LoadingConfig(batch_size=4, seed=3, num_workers=request.param))
    yield built
    built.close()


workers = pytest.mark.parametrize("loader", [0, 2], indirect=True, ids=["in process", "two workers"])


def taken(loader: Loader, num_batches: int) -> list[Batch]:
    return [loader.next_batch() for _ in range(num_batches)]


def same(one: list[Batch], other: list[Batch]) -> bool:
    return all(
        a["ids"] == b["ids"] and torch.equal(a["image"], b["image"]) and torch.equal(a["cond"], b["cond"])
        for a, b in zip(one, other, strict=True)
    )


@workers
def test_each_epoch_holds_every_item_once_in_an_order_of_its_own(loader: Loader) -> None:
    ids = list(chain.from_iterable(batch["ids"] for batch in taken(loader, 5)))
    first, second = ids[:10], ids[10:]
    assert sorted(first) == sorted(second) == [str(number) for number in range(10)]
    assert first != second


@workers
def test_a_batch_holds_tensors_that_match_its_ids(loader: Loader) -> None:
    batch = loader.next_batch()
    assert batch["image"].shape == (4, 1, 2, 2)
    assert batch["cond"].shape == (4, 3, 2, 2)
    assert [str(int(image[0, 0, 0])) for image in batch["image"]] == batch["ids"]


@workers
def test_a_saved_position_brings_back_the_same_batches_also_backwards(loader: Loader) -> None:
    taken(loader, 2)
    saved = json.loads(json.dumps(loader.state_dict()))
    expected = taken(loader, 6)
    loader.load_state_dict(saved)
    assert same(taken(loader, 6), expected)
    fresh = Loader(Numbers(), loader.config)
    fresh.load_state_dict(saved)
    assert same(taken(fresh, 6), expected)
    fresh.close()


@workers
def test_skipping_gives_what_loading_and_dropping_would(loader: Loader) -> None:
    expected = taken(loader, 7)[5:]
    loader.load_state_dict({**loader.state_dict(), "next_batch": 1})
    loader.next_batch()
    loader.skip(3)
    assert same(taken(loader, 2), expected)


@workers
def test_loading_touches_no_global_generator(loader: Loader) -> None:
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1]
    first = taken(loader, 3)
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)
    torch.manual_seed(99)
    loader.load_state_dict({**loader.state_dict(), "next_batch": 0})
    assert same(taken(loader, 3), first)


def test_workers_change_nothing() -> None:
    loaders = [Loader(Numbers(), LoadingConfig(batch_size=3, num_workers=n)) for n in (0, 2)]
    alone, helped = (taken(loader, 8) for loader in loaders)
    loaders[1].close()
    assert same(alone, helped)


def test_an_item_is_drawn_anew_in_each_epoch() -> None:
    batches = taken(Loader(Numbers(4), LoadingConfig(batch_size=4)), 2)
    first, second = (
        {i: float(c[0, 0, 0]) for i, c in zip(b["ids"], b["cond"], strict=True)} for b in batches
    )
    assert all(first[name] != second[name] for name in first)


def test_seeds_give_different_orders() -> None:
    one, other = (Loader(Numbers(), LoadingConfig(batch_size=10, seed=seed)) for seed in (0, 1))
    assert one.next_batch()["ids"] != other.next_batch()["ids"]


def test_skipping_loads_nothing() -> None:
    numbers = Numbers()
    Loader(numbers, LoadingConfig()).skip(1000)
    assert numbers.loads == 0


def test_prefetched_batches_do_not_count_as_handed_out() -> None:
    loader = Loader(Numbers(), LoadingConfig(num_workers=2))
    loader.next_batch()
    assert loader.state_dict()["next_batch"] == 1
    loader.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "others"}, "data set others, this run has numbers"),
        ({"seed": 4}, "seed 4, this run has 0"),
        ({"batch_size": 9}, "batch size 9, this run has 8"),
        ({"next_batch": -1}, "not a loading position"),
        ({"next_batch": "soon"}, "not a loading position"),
        ({"offset": 1}, "not a loading position"),
    ],
)
def test_a_foreign_position_is_refused_and_changes_nothing(change: dict[str, object], message: str) -> None:
    loader = Loader(Numbers(), LoadingConfig())
    loader.skip(5)
    before = loader.state_dict()
    with pytest.raises(PositionMismatch, match=message):
        loader.load_state_dict({**before, "next_batch": 2, **change})
    assert loader.state_dict() == before


def no_sevens(item: Item) -> str | None:
    return "it is a seven" if item["id"] == "7" else None


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_refused_item_is_replaced_and_reported_once(num_workers: int) -> None:
    loader = Loader(Numbers(), LoadingConfig(batch_size=5, num_workers=num_workers), no_sevens)
    batches = taken(loader, 6)
    loader.close()
    assert all(len(batch["ids"]) == 5 and "7" not in batch["ids"] for batch in batches)
    assert loader.refused == [("7", "it is a seven")]


def test_a_refused_item_leaves_the_other_batches_as_they_were() -> None:
    config = LoadingConfig(batch_size=5)
    plain, checked = taken(Loader(Numbers(), config), 6), taken(Loader(Numbers(), config, no_sevens), 6)
    changed = [a["ids"] != b["ids"] for a, b in zip(plain, checked, strict=True)]
    assert changed == ["7" in batch["ids"] for batch in plain]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_when_every_item_is_refused_the_loader_says_why(num_workers: int) -> None:
    loader = Loader(Numbers(), LoadingConfig(num_workers=num_workers), lambda _: "too dark")
    with pytest.raises(DataError, match=r"100 items were refused.*too dark"):
        loader.next_batch()
    loader.close()


@workers
def test_a_quarantined_item_never_comes_and_the_batch_is_filled(loader: Loader) -> None:
    taken(loader, 1)
    loader.quarantine(["3", "7"])
    batches = taken(loader, 9)
    assert all(len(batch["ids"]) == 4 for batch in batches)
    assert not {"3", "7"} & set(chain.from_iterable(batch["ids"] for batch in batches))
    assert loader.refused == [], "it was told of when it was set aside"
    again = Loader(Numbers(), loader.config)
    again.quarantine(["7", "3"])
    again.skip(1)
    assert same(taken(again, 9), batches), "and what comes is a function of position and quarantine"
    again.close()


def test_a_quarantine_of_everything_is_an_error() -> None:
    loader = Loader(Numbers(), LoadingConfig(batch_size=4))
    loader.quarantine(map(str, range(10)))
    with pytest.raises(DataError, match="because: it is in quarantine"):
        loader.next_batch()


class Deadly(Numbers):
    """Item 7 kills the worker that loads it, and would kill this process; with ``once``, the first alone."""

    def __init__(self, once: Path | None = None) -> None:
        super().__init__(40)
        self.parent, self.once = os.getpid(), once

    def example(self, index: int, rng: np.random.Generator) -> Item:
        if index == 7 and (self.once is None or not self.once.exists()):
            if self.once is not None:
                self.once.touch()
            assert os.getpid() != self.parent, "it came to the trainer's own process"
            os.kill(os.getpid(), signal.SIGKILL)
        return super().example(index, rng)


def test_an_item_that_kills_its_worker_ends_in_an_error_that_names_its_batch() -> None:
    order = [batch["ids"] for batch in taken(Loader(Numbers(40), LoadingConfig(batch_size=4)), 10)]
    number = next(number for number, ids in enumerate(order) if "7" in ids)
    loader = Loader(Deadly(), LoadingConfig(batch_size=4, num_workers=2))
    with pytest.raises(DataError, match=rf"died at batch {number}, .*item 7\b.*find the file"):
        taken(loader, 10)
    assert loader.state_dict()["next_batch"] == number
    loader.close()


def test_a_worker_that_dies_once_costs_no_batch(tmp_path: Path) -> None:
    loader = Loader(Deadly(tmp_path / "died"), LoadingConfig(batch_size=4, num_workers=1))
    batches = taken(loader, 10)
    loader.close()
    assert (tmp_path / "died").exists()
    assert same(batches, taken(Loader(Numbers(40), LoadingConfig(batch_size=4)), 10))
    (remark,) = loader.take_remarks()
    assert "a data worker died before batch" in remark.words
