"""Decoded maps are kept, mapped or decoded again; what is handed out is the same, bit for bit."""

import json
import logging
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trainer.data import stacks
from trainer.data.batches import LoadingConfig
from trainer.data.errors import BadFile, DataError
from trainer.data.items import Batch
from trainer.data.loading import Loader
from trainer.data.radiomaps import EMBEDDED, RadioMaps, RadioMapsConfig

CACHES = ["none", "memory", "disk"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three embedded windows, six maps, that a test may damage."""
    folder = tmp_path / "maps"
    for name in ("gain/RT", "png/buildings_complete", "png/antennas"):
        (folder / name).mkdir(parents=True)
        for number in (0, 1, 2):
            for file in (EMBEDDED / name).glob(f"{number}[._]*"):
                shutil.copy(file, folder / name / file.name)
    (folder / "maps.json").write_text(json.dumps({"maps": [{"map": n, "split": "train"} for n in range(3)]}))
    return folder


def config(root: Path, cache: str = "disk", **changes: object) -> RadioMapsConfig:
    values = {"root": str(root), "cache": cache, "cache_folder": root.parent / "cache", "image_size": 64}
    return RadioMapsConfig.model_validate({**values, **changes})


def taken(root: Path, cache: str, num_workers: int, *, from_batch: int = 0) -> tuple[list[Batch], dict]:
    loader = Loader(
        RadioMaps(config(root, cache), "train"), LoadingConfig(batch_size=4, num_workers=num_workers)
    )
    loader.load_state_dict({**loader.state_dict(), "next_batch": from_batch})
    batches = [loader.next_batch() for _ in range(4)]
    loader.close()
    return batches, loader.state_dict()


def same(one: list[Batch], other: list[Batch]) -> bool:
    return all(
        a["ids"] == b["ids"] and torch.equal(a["image"], b["image"]) and torch.equal(a["cond"], b["cond"])
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("cache", CACHES)
def test_order_and_position_are_the_same_with_every_setting(root: Path, cache: str, num_workers: int) -> None:
    expected, position = taken(root, "memory", 0)
    found, found_position = taken(root, cache, num_workers)
    assert same(found, expected)
    assert found_position == position  # so a run may be resumed with another setting
    later, _ = taken(root, cache, num_workers, from_batch=2)
    assert same(later[:2], expected[2:])


@pytest.mark.parametrize("cache", CACHES)
def test_every_kind_of_channel_can_be_kept(root: Path, cache: str) -> None:
    """Also a variant without antennas, whose stack has no rows."""
    (root / "gain/DPM").symlink_to("RT")
    changes = {"variant": "MASK", "split_rule": "listed", "num_transmitters": 2}
    kept, plain = (RadioMaps(config(root, name, **changes), "train") for name in (cache, "memory"))
    assert kept.fingerprint == plain.fingerprint
    assert torch.equal(kept[5]["cond"], plain[5]["cond"])


def test_a_second_start_decodes_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = RadioMaps(config(root), "train")
    monkeypatch.setattr(stacks, "read_gray", pytest.fail)
    monkeypatch.setattr(stacks, "read_antenna", pytest.fail)
    second = RadioMaps(config(root), "train")
    assert torch.equal(first[3]["cond"], second[3]["cond"])


def test_a_changed_file_is_decoded_again(root: Path) -> None:
    before = RadioMaps(config(root), "train")
    shutil.copy(root / "gain/RT/2_0.png", root / "gain/RT/0_0.png")
    after = RadioMaps(config(root), "train")
    assert after.fingerprint == RadioMaps(config(root, "memory"), "train").fingerprint != before.fingerprint


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a flipped bit": flip_a_bit,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "without its digest": lambda path: path.write_bytes(path.read_bytes()[:-16]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not an array, but a page that somebody has saved here"),
    "another array": lambda path: shutil.copy(next(path.parent.glob("png-antennas-*.npy")), path),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_file_is_made_again(
    root: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = RadioMaps(config(root), "train").fingerprint
    file = next((root.parent / "cache").glob("gain-RT-*.npy"))
    DAMAGES[damage](file)
    with caplog.at_level(logging.WARNING):
        assert RadioMaps(config(root), "train").fingerprint == before
    assert f"the cache file {file} is made again" in caplog.text
    caplog.clear()
    RadioMaps(config(root), "train")
    assert not caplog.text


def make_and_die(root: Path, rows: int) -> None:
    decoded = iter(range(rows))
    whole = stacks.area_mean

    def dying(*arguments: object) -> object:
        if next(decoded, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*arguments)  # type: ignore[arg-type]

    stacks.area_mean = dying  # type: ignore[assignment]
    RadioMaps(config(root), "train")


@pytest.mark.parametrize("rows", [0, 3, 7])
def test_a_kill_while_it_is_made_leaves_nothing_that_is_taken_for_whole(root: Path, rows: int) -> None:
    process = multiprocessing.get_context("fork").Process(target=make_and_die, args=(root, rows))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    maps = RadioMaps(config(root), "train")
    assert maps.fingerprint == RadioMaps(config(root, "memory"), "train").fingerprint
    kinds = sorted(file.suffix for file in (root.parent / "cache").iterdir())
    assert kinds == ["", ".npy", ".npy", ".npy"]  # the lock, and nothing half written


def make_and_count(root: Path, log_file: str) -> None:
    whole = stacks.read_gray

    def counted(path: Path) -> object:
        with open(log_file, "a") as log:
            log.write(f"{path}\n")
        return whole(path)

    stacks.read_gray = counted  # type: ignore[assignment]
    assert len(RadioMaps(config(root), "train")) == 6


def test_several_processes_at_once_decode_each_file_once(root: Path) -> None:
    context, log_file = multiprocessing.get_context("fork"), root.parent / "decoded.txt"
    processes = [context.Process(target=make_and_count, args=(root, str(log_file))) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    lines = log_file.read_text().splitlines()
    assert len(lines) == len(set(lines)) == 6 + 3  # gains and buildings


@pytest.mark.parametrize("cache", CACHES)
def test_a_bad_file_is_refused_at_start_with_every_setting(root: Path, cache: str) -> None:
    (root / "png/antennas/1_1.png").unlink()
    with pytest.raises(BadFile, match="no such file") as caught:
        RadioMaps(config(root, cache), "train")
    assert caught.value.path == root / "png/antennas/1_1.png"
    assert not list(root.parent.glob("cache/*.part"))


def test_a_cache_that_can_not_be_written_is_refused_with_what_would_do(root: Path) -> None:
    (root.parent / "cache").write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r'choose another folder, or data\.cache = "memory"'):
        RadioMaps(config(root), "train")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_file_that_is_lost_on_the_way_is_named(root: Path, num_workers: int) -> None:
    maps = RadioMaps(config(root, "none"), "train")
    (root / "gain/RT/0_0.png").unlink()
    loader = Loader(maps, LoadingConfig(batch_size=6, num_workers=num_workers))
    with pytest.raises(DataError, match=r"0_0\.png: there is no such file.*whole when the run began"):
        loader.next_batch()
    loader.close()
