"""Workers that repeat a batch are found out, odd items are told, and a map must belong to its condition."""

import logging
import os
import re
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from trainer.data.batches import LoadingConfig
from trainer.data.items import Item
from trainer.data.loading import Loader
from trainer.data.oddity import Oddity
from trainer.data.pairing import Pairing
from trainer.data.radiomaps import RadioMaps, RadioMapsConfig

CONFIG = LoadingConfig(batch_size=2, num_workers=1)


class Numbers:
    """An item says its own number and what was drawn for it."""

    def __init__(self, length: int = 10) -> None:
        self.length, self.fingerprint = length, f"numbers-{length}"

    def __len__(self) -> int:
        return self.length

    def example(self, index: int, rng: np.random.Generator) -> Item:
        image = torch.tensor([[[float(index), rng.random()]]])
        return Item(image=image, cond=image.clone(), id=str(index))


@pytest.fixture
def loader() -> Iterator[Loader]:
    built = Loader(Numbers(), CONFIG)
    yield built
    built.close()


def batches(loader: Loader, count: int) -> list[list[float]]:
    return [loader.next_batch()["image"].flatten().tolist() for _ in range(count)]


def repeat(loader: Any, times: int) -> None:
    """The workers serve each batch so often from now on, until they are started anew."""
    stream = loader._stream

    def repeating() -> Iterator[Any]:
        for loaded in stream:
            for _ in range(times):
                yield loaded

    loader._stream = repeating()


@pytest.mark.parametrize("times", [2, 1_000])
def test_workers_that_repeat_a_batch_are_started_anew_and_nothing_comes_twice(
    loader: Loader, times: int
) -> None:
    expected = batches(Loader(Numbers(), LoadingConfig(batch_size=2)), 9)
    assert batches(loader, 2) == expected[:2]
    repeat(loader, times)
    assert batches(loader, 7) == expected[2:]
    (told,) = loader.take_remarks()
    assert told.words.startswith("batch 3 came as a repetition of an earlier one; the workers were started")
    assert loader.take_remarks() == []


def test_workers_that_are_no_better_when_started_anew_are_given_up(loader: Loader) -> None:
    expected = batches(Loader(Numbers(), LoadingConfig(batch_size=2)), 12)
    found = []
    for _ in range(4):
        found += batches(loader, 1)
        if loader._stream is not None:
            repeat(loader, 5)
        found += batches(loader, 2)
    assert found == expected[: len(found)]
    assert "this process loads by itself" in loader.take_remarks()[-1].words


@pytest.mark.parametrize("ready", [False, True])
def test_a_worker_that_is_killed_costs_no_batch_and_no_step(loader: Any, ready: bool) -> None:
    expected, before = (
        batches(Loader(Numbers(), LoadingConfig(batch_size=2)), 9),
        signal.getsignal(signal.SIGCHLD),
    )
    assert batches(loader, 2) == expected[:2]
    (worker,) = loader._stream._workers
    while (
        ready and loader._stream._data_queue.empty()
    ):  # a batch that was sent, and can't be fetched any more
        time.sleep(0.01)
    os.kill(worker.pid, signal.SIGKILL)
    assert batches(loader, 7) == expected[2:]  # some lay ready; none is raised out of step
    (told,) = loader.take_remarks()
    assert re.match(
        r"a data worker died before batch \d; a new one loaded it, .* nothing is missing", told.words
    )
    assert signal.getsignal(signal.SIGCHLD) is before


def test_a_data_set_of_one_item_repeats_itself_by_right() -> None:
    class Same(Numbers):
        def example(self, index: int, rng: np.random.Generator) -> Item:
            return super().example(0, np.random.default_rng(0))

    loader = Loader(Same(1), CONFIG)
    assert len(batches(loader, 6)) == 6
    assert loader.take_remarks() == []
    loader.close()


def test_batches_come_again_by_right_after_going_back(loader: Loader) -> None:
    saved = loader.state_dict()
    first = batches(loader, 4)
    loader.load_state_dict(saved)
    assert batches(loader, 4) == first
    assert loader.take_remarks() == []


def test_odd_items_are_trained_on_and_told_ever_more_rarely() -> None:
    loader = Loader(Numbers(), LoadingConfig(batch_size=2), notice=lambda item: "it is dull")
    batches(loader, 10)
    assert [(remark.words, remark.number) for remark in loader.take_remarks()] == [
        ("it is dull", number) for number in (1, 2, 4, 8, 16)
    ]


def test_a_map_of_one_value_is_odd() -> None:
    item = Item(image=torch.full((1, 4, 4), -1.0), cond=torch.zeros(3, 4, 4), id="dark")
    assert Oddity()(item) == "its map is -1 throughout"
    item["image"][0, 2, 2] = -0.99
    assert Oddity()(item) is None


@pytest.fixture(scope="module", params=[32, 64])
def maps(request: pytest.FixtureRequest) -> RadioMaps:
    return RadioMaps(RadioMapsConfig(image_size=request.param), "train")


def test_a_condition_that_says_nothing_is_odd_and_one_as_the_data_have_it_is_not(maps: RadioMaps) -> None:
    oddity, rng = Oddity(maps.variant.channels, maps.spread()), np.random.default_rng(0)
    assert not any(oddity(maps.example(index, rng)) for index in range(len(maps)))
    item = maps[0]
    item["cond"][1].fill_(-1)
    assert oddity(item) == "its condition says nothing of antenna: one value throughout"
    item["cond"].fill_(-1)
    assert oddity(item) == "its condition says nothing of antenna and buildings: one value throughout"


def test_a_plane_that_is_empty_in_some_of_the_data_is_odd_in_none(maps: RadioMaps) -> None:
    class SomeWithoutHouses(RadioMaps):
        def __init__(self) -> None:
            self.__dict__.update(maps.__dict__)

        def __getitem__(self, index: int) -> Item:
            item = super().__getitem__(index)
            item["cond"][[0, 2]] *= index % 2
            return item

    some = SomeWithoutHouses()
    assert Oddity(some.variant.channels, some.spread())(some[0]) is None


def test_every_map_belongs_to_its_own_condition_however_it_is_turned(maps: RadioMaps) -> None:
    pairing = Pairing(maps.variant.channels, maps.spread())
    assert pairing.holds
    rng = np.random.default_rng(0)
    assert not any(pairing(maps.example(index, rng)) for index in range(len(maps)))


def test_no_map_belongs_to_the_condition_of_another_place(maps: RadioMaps) -> None:
    pairing = Pairing(maps.variant.channels, maps.spread())
    for index in range(len(maps)):
        for other in range(len(maps)):
            if maps.ids[index].split("_")[0] == maps.ids[other].split("_")[0]:
                continue
            item = Item(image=maps[index]["image"], cond=maps[other]["cond"], id="a mistake")
            assert "its condition is another map's" in (pairing(item) or "")


def test_data_that_are_lit_inside_buildings_are_left_alone(
    maps: RadioMaps, caplog: pytest.LogCaptureFixture
) -> None:
    class Bright(RadioMaps):
        def __init__(self) -> None:
            self.__dict__.update(maps.__dict__)

        def __getitem__(self, index: int) -> Item:
            item = super().__getitem__(index)
            item["image"].fill_(0.5)
            return item

    with caplog.at_level(logging.INFO, "trainer.data.pairing"):
        pairing = Pairing(maps.variant.channels, Bright().spread())
    assert not pairing.holds
    assert "lit inside buildings" in caplog.text
    assert pairing(Bright()[0]) is None


def test_a_condition_without_buildings_says_nothing(maps: RadioMaps) -> None:
    assert not Pairing(("antenna",), maps.spread()).holds


def test_a_run_asks_its_maps_once_and_refuses_or_tells_what_is_not_usual(
    maps: RadioMaps, lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bright_or_silent(index: int, rng: np.random.Generator) -> Item:
        item = maps[index]
        if index % 2:
            item["image"][0].fill_(0.5)[0, 0] = 0
        else:
            item["cond"][1].fill_(-1)
        return item

    asked, usual = [], maps.spread()
    monkeypatch.setattr(maps, "spread", lambda: asked.append(1) or usual)
    monkeypatch.setattr(maps, "example", bright_or_silent)
    loader = lab.loop(source=maps).state.loader
    assert asked == [1]
    for _ in range(4):
        loader.next_batch()
    assert {"another map's" in one.reason for one in loader.refused} == {True}
    assert "says nothing of antenna" in loader.take_remarks()[0].words


def test_a_run_tells_what_was_odd_and_trains_on(lab: Any) -> None:
    class Dark(lab.Pictures):
        def __getitem__(self, index: int) -> Item:
            item = super().__getitem__(index)
            return Item(**{**item, "image": torch.full_like(item["image"], -1)}) if index == 5 else item

    loop = lab.run(steps=20, source=Dark())
    findings = loop.reporter.record.findings
    assert {one.guard for one in findings} == {"data"}
    assert findings[0].message.startswith("sample picture_5 is odd, and trained on: its map is")
    assert findings[0].reading["count"] == 1
