"""Sparse measurements: where they are taken, and that nothing but item and seed decides about it."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.data.baselines import PathLoss
from trainer.data.gray import read_gray
from trainer.data.radiomaps import EMBEDDED, RadioMaps, RadioMapsConfig
from trainer.data.sparse import Sampling, places_of
from trainer.data.variants import VARIANTS

SPARSE = ["MASK", "MASK_R", "VERTEX", "VERTEX_R", "RANDOM"]


def touched(indoors: np.ndarray, row: int, column: int) -> tuple[bool, bool]:
    """Whether a building lies beside a pixel, and whether one lies across its corner: pixel by pixel."""
    beside = across = False
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            r, c = row + down, column + right
            if 0 <= r < len(indoors) and 0 <= c < len(indoors) and indoors[r, c]:
                beside |= abs(down) + abs(right) == 1
                across |= abs(down) + abs(right) == 2
    return beside, across


def slow_places(indoors: np.ndarray, at: str) -> np.ndarray:
    """Edges and corners, by looking at one pixel after the other."""
    mask = np.zeros_like(indoors)
    for row, column in np.argwhere(~indoors):
        beside, across = touched(indoors, row, column)
        mask[row, column] = beside if at == "edges" else across and not beside
    return mask


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three embedded windows under RadioMapSeer's names, with a list of maps."""
    folder = tmp_path_factory.mktemp("maps")
    (folder / "gain").mkdir()
    (folder / "gain/DPM").symlink_to(EMBEDDED / "gain/RT")
    (folder / "png").symlink_to(EMBEDDED / "png")
    maps = [{"map": number, "split": "train"} for number in (0, 1, 2)]
    maps += [{"map": number, "split": "test"} for number in (2, 0)]
    (folder / "maps.json").write_text(json.dumps({"maps": maps}))
    return folder


def config(root: Path, variant: str, **changes: object) -> RadioMapsConfig:
    values = {"root": str(root), "variant": variant, "split_rule": "listed", "num_transmitters": 2}
    return RadioMapsConfig.model_validate({**values, "image_size": 64, **changes})


def levels(plane: torch.Tensor) -> np.ndarray:
    """A channel's gray levels, from the scale of these variants."""
    return np.rint((plane.numpy() + 1) / 2 * 256).astype(np.uint8)


@pytest.mark.parametrize("at", ["edges", "corners"])
def test_edges_and_corners_are_what_a_look_at_each_pixel_says(at: str) -> None:
    rng = np.random.default_rng(0)
    for density in (0.0, 0.1, 0.5, 1.0):
        buildings = (rng.random((17, 17)) < density).astype(np.uint8) * 255
        found = places_of(buildings, Sampling(at), 1, rng)  # type: ignore[arg-type]
        np.testing.assert_array_equal(found, slow_places(buildings > 0, at))


def test_a_block_has_four_sides_and_four_corners() -> None:
    buildings = np.zeros((9, 9), dtype=np.uint8)
    buildings[3:6, 2:7] = 255
    rng = np.random.default_rng(0)
    corners = places_of(buildings, Sampling("corners"), 1, rng)
    assert np.argwhere(corners).tolist() == [[2, 1], [2, 7], [6, 1], [6, 7]]
    assert places_of(buildings, Sampling("edges"), 1, rng).sum() == 2 * (3 + 5)


@pytest.mark.parametrize("variant", SPARSE)
def test_the_condition_is_buildings_and_the_gain_where_it_was_measured(root: Path, variant: str) -> None:
    item = RadioMaps(config(root, variant, image_size=256), "train")[3]
    assert item["id"] == "1_1"
    files = ("gain/DPM/1_1", "png/buildings_complete/1")
    gain, buildings = (read_gray(root / f"{file}.png") for file in files)
    np.testing.assert_allclose(item["image"][0], gain / 256 * 2 - 1, atol=1e-6)
    np.testing.assert_allclose(item["cond"][0], buildings / 256 * 2 - 1, atol=1e-6)
    assert torch.equal(item["cond"][1], item["cond"][2])
    samples = levels(item["cond"][1])
    places = samples > 0
    np.testing.assert_array_equal(samples[places], gain[places])
    assert not (places & (buildings > 0)).any()


@pytest.mark.parametrize(("variant", "at"), [("MASK", "edges"), ("VERTEX", "corners")])
def test_measured_at_every_edge_or_corner_and_scattered_as_often(root: Path, variant: str, at: str) -> None:
    chosen, scattered = (RadioMaps(config(root, name), "train") for name in (variant, f"{variant}_R"))
    for index in range(len(chosen)):
        gain = levels(chosen[index]["image"][0])
        indoors = levels(chosen[index]["cond"][0]) > 0
        expected = np.where(slow_places(indoors, at), gain, 0)
        np.testing.assert_array_equal(levels(chosen[index]["cond"][1]), expected)
        sampling = VARIANTS[f"{variant}_R"].sampling
        assert sampling is not None
        random = places_of(indoors.astype(np.uint8), sampling, 1, np.random.default_rng(index))
        assert random.sum() == slow_places(indoors, at).sum()
        assert not torch.equal(scattered[index]["cond"][1], chosen[index]["cond"][1])


@pytest.mark.parametrize(("number", "expected"), [(1, 1), (300, 300), (10**6, 4096)])
def test_random_places_are_as_many_as_asked_for_or_as_there_are(number: int, expected: int) -> None:
    outdoors = np.zeros((64, 64), dtype=np.uint8)
    places = places_of(outdoors, Sampling("anywhere"), number, np.random.default_rng(0))
    assert places.sum() == expected


def test_random_places_are_drawn_evenly_over_the_outdoors() -> None:
    buildings = np.zeros((16, 16), dtype=np.uint8)
    buildings[:8] = 255
    counts = sum(
        places_of(buildings, Sampling("anywhere"), 16, np.random.default_rng(seed)).astype(int)
        for seed in range(800)
    )
    assert not counts[:8].any()
    assert counts[8:].mean() == 100
    assert abs(counts[8:] - 100).max() < 45  # binomial, deviation 9.4: 128 places stay within 4.8 of them


@pytest.mark.parametrize("variant", SPARSE)
def test_a_map_is_measured_at_the_same_places_whenever_it_is_asked_for(root: Path, variant: str) -> None:
    train, test = (RadioMaps(config(root, variant), split) for split in ("train", "test"))
    assert torch.equal(train[0]["cond"], train[0]["cond"])
    assert train.ids[4] == test.ids[0] == "2_0"
    assert torch.equal(train[4]["cond"], test[0]["cond"])
    one = RadioMaps(config(root, variant, num_transmitters=1), "train")
    assert torch.equal(one[2]["cond"], train[4]["cond"])


def test_another_seed_or_number_measures_elsewhere_and_is_other_data(root: Path) -> None:
    changes = ({}, {"sample_seed": 1}, {"num_samples": 299})
    several = [RadioMaps(config(root, "RANDOM", **change), "train") for change in changes]
    assert len({maps.fingerprint for maps in several}) == 3
    assert not torch.equal(several[0][0]["cond"], several[1][0]["cond"])


def test_variants_with_other_places_are_other_data(root: Path) -> None:
    assert len({RadioMaps(config(root, name), "train").fingerprint for name in SPARSE}) == len(SPARSE)


def test_measurements_are_turned_with_their_map(root: Path) -> None:
    maps = RadioMaps(config(root, "RANDOM"), "train")
    for seed in range(8):
        item = maps.example(0, np.random.default_rng(seed))
        gain, samples = levels(item["image"][0]), levels(item["cond"][1])
        np.testing.assert_array_equal(samples[samples > 0], gain[samples > 0])


def test_the_path_loss_model_takes_the_brightest_measurement_for_the_antenna(root: Path) -> None:
    maps = RadioMaps(config(root, "RANDOM"), "train")
    guess = PathLoss.fit(maps)
    assert math.isfinite(guess.a + guess.b)
    cond = torch.full((1, 3, 16, 16), -1.0)
    cond[0, 1:, 3, 4], cond[0, 1:, 9, 9] = 0.1, 0.2
    drawn = PathLoss(maps.variant, a=0.9, b=-0.1).predict(cond)[0, 0]
    assert (drawn == drawn.max()).nonzero().tolist() == [[9, 9]]


def test_no_antenna_image_is_needed(root: Path, tmp_path: Path) -> None:
    for name in ("gain", "maps.json"):
        (tmp_path / name).symlink_to(root / name)
    (tmp_path / "png").mkdir()
    (tmp_path / "png/buildings_complete").symlink_to(root / "png/buildings_complete")
    assert len(RadioMaps(config(tmp_path, "MASK"), "test")) == 4
