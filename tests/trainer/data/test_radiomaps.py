"""The loader reads RadioMapSeer's layout, and refuses what it can't use with the file and the reason."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from trainer.data.baselines import mean_map
from trainer.data.errors import BadFile
from trainer.data.radiomaps import EMBEDDED, RadioMaps, RadioMapsConfig

SIDE = 256
SMALL = RadioMapsConfig(image_size=64)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Three embedded maps, one a split, that a test may damage."""
    for folder in ("gain/RT", "png/buildings_complete", "png/antennas"):
        (tmp_path / folder).mkdir(parents=True)
        for number in (0, 1, 2):
            for file in (EMBEDDED / folder).glob(f"{number}[._]*"):
                shutil.copy(file, tmp_path / folder / file.name)
    maps = [{"map": number, "split": split} for number, split in enumerate(("test", "train", "val"))]
    (tmp_path / "maps.json").write_text(json.dumps({"maps": maps}))
    return tmp_path


def gray(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def at(root: Path) -> RadioMapsConfig:
    return RadioMapsConfig(root=str(root), image_size=64)


def test_the_embedded_set_has_the_splits_that_its_readme_tells() -> None:
    sizes = {split: len(RadioMaps(SMALL, split)) for split in ("train", "val", "test")}
    assert sizes == {"train": 40, "val": 12, "test": 12}


def test_splits_share_no_map() -> None:
    maps = [
        {name.split("_")[0] for name in RadioMaps(SMALL, split).ids} for split in ("train", "val", "test")
    ]
    assert sum(map(len, maps)) == len(set.union(*maps)) == 32


def test_an_item_at_full_size_is_its_files_on_the_scale_from_minus_1_to_1() -> None:
    item = RadioMaps(RadioMapsConfig(), "test")[1]
    assert item["id"] == "0_1"
    files = ("gain/RT/0_1", "png/buildings_complete/0", "png/antennas/0_1", "png/buildings_complete/0")
    expected = np.stack([gray(EMBEDDED / f"{file}.png") for file in files]) / 255 * 2 - 1
    found = torch.cat([item["image"], item["cond"]])
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_the_antenna_stands_where_the_data_set_s_own_list_says() -> None:
    item = RadioMaps(RadioMapsConfig(), "test")[0]
    column, row = json.loads((EMBEDDED / "antenna" / "0.json").read_text())[0]
    assert (item["cond"][1] > -1).nonzero().tolist() == [[row, column]]


def test_reduction_averages_gains_and_keeps_one_full_antenna_pixel() -> None:
    full, small = RadioMaps(RadioMapsConfig(), "val")[0], RadioMaps(SMALL, "val")[0]
    averaged = torch.nn.functional.avg_pool2d(full["image"], 4)
    torch.testing.assert_close(small["image"], averaged, rtol=0, atol=1.01 / 255)  # half a level of 2 / 255
    peak = torch.nn.functional.max_pool2d(full["cond"][1:2], 4)
    assert torch.equal(small["cond"][1:2], peak)


@pytest.mark.parametrize("size", [0, 3, 96, 512])
def test_a_size_that_does_not_divide_the_maps_is_refused(size: int) -> None:
    with pytest.raises(ValidationError):
        RadioMapsConfig(image_size=size)


def test_an_unknown_variant_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValidationError, match=r"'IRT5'.*RT, radio, IRT4"):
        RadioMapsConfig(variant="IRT5")


def test_training_items_are_turned_as_one_and_by_nothing_but_the_generator() -> None:
    maps = RadioMaps(SMALL, "train")
    plain = torch.cat([maps[0]["image"], maps[0]["cond"]])
    ways = [torch.rot90(base, k, (1, 2)) for base in (plain, plain.flip(2)) for k in range(4)]
    seen = set()
    for seed in range(60):
        item, again = (maps.example(0, np.random.default_rng(seed)) for _ in range(2))
        found = torch.cat([item["image"], item["cond"]])
        assert torch.equal(item["cond"], again["cond"])
        seen.add(next(way for way, turned in enumerate(ways) if torch.equal(found, turned)))
    assert seen == set(range(8))


@pytest.mark.parametrize(("split", "augment"), [("test", True), ("train", False)])
def test_other_items_are_never_turned(split: str, augment: bool) -> None:
    maps = RadioMaps(SMALL.model_copy(update={"augment": augment}), split)
    for seed in range(10):
        assert torch.equal(maps.example(0, np.random.default_rng(seed))["cond"], maps[0]["cond"])


def test_the_fingerprint_tells_data_apart(copy: Path) -> None:
    before = RadioMaps(at(copy), "train").fingerprint
    assert RadioMaps(at(copy), "train").fingerprint == before
    assert RadioMaps(at(copy), "val").fingerprint != before
    file = copy / "gain/RT/1_0.png"
    image = gray(file).copy()
    image[:4, :4] ^= 255
    Image.fromarray(image).save(file)
    assert RadioMaps(at(copy), "train").fingerprint != before


def test_the_mean_map_is_the_mean_of_the_files() -> None:
    maps = RadioMaps(RadioMapsConfig(), "val")
    files = [gray(EMBEDDED / "gain" / "RT" / f"{name}.png") / 255 for name in maps.ids]
    np.testing.assert_allclose(mean_map(maps)[0].numpy(), np.mean(files, axis=0), atol=1e-6)


def replace(image: Image.Image) -> Callable[[Path], None]:
    return lambda path: image.save(path)


def dots(*cells: tuple[int, int]) -> Image.Image:
    image = np.zeros((SIDE, SIDE), dtype=np.uint8)
    for cell in cells:
        image[cell] = 255
    return Image.fromarray(image)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def cut_the_last_chunk(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-12])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


BAD_FILES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing gain": ("gain/RT/1_1.png", Path.unlink, "no such file"),
    "missing buildings": ("png/buildings_complete/1.png", Path.unlink, "no such file"),
    "missing antenna": ("png/antennas/1_0.png", Path.unlink, "no such file"),
    "missing list of maps": ("maps.json", Path.unlink, "no such file"),
    "empty file": ("gain/RT/1_0.png", lambda path: path.write_bytes(b""), "not a whole PNG"),
    "text": ("gain/RT/1_0.png", lambda path: path.write_text("<html>"), "not a whole PNG"),
    "truncated": ("gain/RT/1_0.png", cut, "not a whole PNG"),
    "without its end": ("gain/RT/1_0.png", cut_the_last_chunk, "not a whole PNG"),
    "a flipped bit": ("gain/RT/1_0.png", flip_a_bit, "not a whole PNG"),
    "16 bit": ("gain/RT/1_0.png", replace(Image.new("I;16", (SIDE, SIDE))), "8-bit gray"),
    "colour": ("png/buildings_complete/1.png", replace(Image.new("RGB", (SIDE, SIDE))), "8-bit gray"),
    "palette": ("gain/RT/1_0.png", replace(Image.new("P", (SIDE, SIDE))), "8-bit gray"),
    "wrong size": ("gain/RT/1_0.png", replace(Image.new("L", (SIDE, 255))), "256 x 255 pixels"),
    "no antenna": ("png/antennas/1_0.png", replace(dots()), "marks 0 antennas"),
    "two antennas": ("png/antennas/1_0.png", replace(dots((1, 2), (3, 4))), "marks 2 antennas"),
    "list that is not JSON": ("maps.json", lambda path: path.write_text("{"), "not a list of maps"),
    "unknown split": (
        "maps.json",
        lambda path: path.write_text('{"maps": [{"map": 1, "split": "dev"}]}'),
        "maps.0.split",
    ),
    "empty split": (
        "maps.json",
        lambda path: path.write_text('{"maps": [{"map": 1, "split": "val"}]}'),
        "no map of the split 'train'",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_data_is_refused_at_start_with_file_and_reason(copy: Path, case: str) -> None:
    name, damage, reason = BAD_FILES[case]
    RadioMaps(at(copy), "train")
    damage(copy / name)
    with pytest.raises(BadFile, match=reason) as caught:
        RadioMaps(at(copy), "train")
    assert caught.value.path == copy / name
    assert "\n" not in str(caught.value)


def test_a_root_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="no such folder"):
        RadioMaps(at(tmp_path / "nowhere"), "train")


def test_a_variant_that_the_folder_does_not_hold_is_refused_with_the_first_missing_file() -> None:
    with pytest.raises(BadFile, match=r"gain/DPM/159_0\.png"):
        RadioMaps(RadioMapsConfig(variant="radio"), "train")
