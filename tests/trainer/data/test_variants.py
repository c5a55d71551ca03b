"""Upstream's map order, splits, scales and condition channels (RadioDiff specification §11)."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.data import radiomaps
from trainer.data.radiomaps import RadioMaps, RadioMapsConfig
from trainer.data.splits import SplitRule, split_maps, upstream_order
from trainer.data.variants import VARIANTS, Split

SPLITS: tuple[Split, ...] = ("train", "val", "test")


def save(path: Path, level: int, mark: tuple[int, int] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full((256, 256), level, dtype=np.uint8)
    if mark:
        image[mark] = 255
    Image.fromarray(image).save(path)


def test_the_map_order_is_upstreams() -> None:
    order = upstream_order()
    assert order[:5] == [159, 501, 397, 156, 322]
    assert order[600] == 289
    assert sorted(order) == list(range(1, 701))


def test_making_the_order_leaves_the_global_generator_alone() -> None:
    before = np.random.get_state()[1]
    upstream_order()
    assert np.array_equal(np.random.get_state()[1], before)


@pytest.mark.parametrize("name", [name for name, row in VARIANTS.items() if row.upstream])
def test_the_default_split_shares_no_map_and_keeps_upstreams_test_maps(name: str) -> None:
    row = VARIANTS[name]
    default = {split: split_maps(Path(), row, split, "disjoint") for split in SPLITS}
    for one, other in combinations(SPLITS, 2):
        assert not set(default[one]) & set(default[other])
    assert default["test"] == split_maps(Path(), row, "test", "upstream")


@pytest.mark.parametrize("rule", ["disjoint", "upstream"])
@pytest.mark.parametrize("name", ["MASK", "MASK_R", "VERTEX", "VERTEX_R", "RANDOM"])
def test_sparse_measurements_keep_upstreams_splits_which_share_no_map(name: str, rule: SplitRule) -> None:
    order, row = upstream_order(), VARIANTS[name]
    found = {split: split_maps(Path(), row, split, rule) for split in SPLITS}
    assert found == {"train": order[0:201], "val": order[501:521], "test": order[601:700]}


@pytest.mark.parametrize(("name", "val"), [("radio", (600, 650)), ("IRT4", (501, 600))])
def test_upstreams_splits_are_reproduced_with_their_overlap(name: str, val: tuple[int, int]) -> None:
    order, row = upstream_order(), VARIANTS[name]
    found = {split: split_maps(Path(), row, split, "upstream") for split in SPLITS}
    assert found["train"] == order[0:601]
    assert found["val"] == order[val[0] : val[1] + 1]
    assert found["test"] == order[600:700]
    assert set(found["train"]) & set(found["test"]) == {289}


@pytest.mark.parametrize(
    ("name", "gain", "scale", "channels"),
    [
        ("radio", "DPM", 255, ["buildings", "antenna", "buildings"]),
        ("IRT4", "IRT4", 256, ["buildings", "antenna", "buildings"]),
        ("DPMCAR", "carsDPM", 255, ["buildings", "antenna", "cars"]),
        ("DPMK", "DPM", 255, ["buildings", "antenna", "DPM_k2_neg_norm"]),
        ("IRT4K", "IRT4", 256, ["buildings", "antenna", "IRT4_k2_neg_norm"]),
        ("DPMCARK", "carsDPM", 255, ["buildings", "antenna", "cars", *["DPMCAR_k2_neg_norm"] * 2]),
    ],
)
def test_a_variant_reads_upstreams_target_and_condition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, gain: str, scale: int, channels: list[str]
) -> None:
    """Every kind of image gets its own gray level, so that a mixed-up channel shows."""
    monkeypatch.setattr(radiomaps, "split_maps", lambda *_: [7, 9])
    levels = {"buildings": 20, "cars": 60}
    for number in (7, 9):
        save(tmp_path / f"png/buildings_complete/{number}.png", levels["buildings"] + number)
        save(tmp_path / f"png/cars/{number}.png", levels["cars"] + number)
        for tx in range(2):
            save(tmp_path / f"gain/{gain}/{number}_{tx}.png", 200 + number + tx)
            save(tmp_path / f"gain/{channels[-1]}/{number}_{tx}.png", 100 + number + tx)
            save(tmp_path / f"png/antennas/{number}_{tx}.png", 0, mark=(number, tx))
    config = RadioMapsConfig(root=str(tmp_path), variant=name, num_transmitters=2)
    item = RadioMaps(config, "train")[3]
    assert item["id"] == "9_1"
    assert item["image"].unique().tolist() == pytest.approx([210 / scale * 2 - 1])
    for plane, channel in zip(item["cond"], channels, strict=True):
        if channel == "antenna":
            assert (plane == 1).nonzero().tolist() == [[9, 1]]
        else:
            expected = levels.get(channel, 101) + 9
            assert torch.allclose(plane, torch.tensor(expected / 255 * 2 - 1))
