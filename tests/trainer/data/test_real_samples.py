"""Original maps of RadioMapSeer, read as a folder of the data set is. They lie beside the repository."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.data.batches import LoadingConfig
from trainer.data.errors import BadFile
from trainer.data.gray import read_gray
from trainer.data.loading import Loader
from trainer.data.radiomaps import RadioMaps, RadioMapsConfig
from trainer.data.variants import VARIANTS

FOUND = [folder / "shared/radiodiff/samples" for folder in Path(__file__).parents]
SAMPLES = next((folder for folder in FOUND if (folder / "index.csv").is_file()), None)
SPLIT_OF_PLACE = ("train", "train", "test")


@pytest.fixture(scope="module")
def index() -> dict[str, tuple[int, int]]:
    """Row and column of each item's transmitter, as the samples' own list tells."""
    if SAMPLES is None:
        pytest.skip("the 30 original maps are not here: ../shared/radiodiff/samples")
    rows = csv.DictReader((SAMPLES / "index.csv").read_text().splitlines())
    return {f"{row['map_id']}_{row['tx_id']}": (int(row["tx_row"]), int(row["tx_col"])) for row in rows}


@pytest.fixture(scope="module")
def root(index: dict[str, tuple[int, int]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All thirty as maps with one transmitter each: ten of them show map 0, and get its number and more."""
    assert SAMPLES is not None
    folder, listed = tmp_path_factory.mktemp("RadioMapSeer"), []
    for name in ("gain/DPM", "png/buildings_complete", "png/antennas"):
        (folder / name).mkdir(parents=True)
    for place, item in enumerate(index):
        number = place + 1
        for kind in ("gain/DPM", "png/antennas"):
            (folder / f"{kind}/{number}_0.png").symlink_to(SAMPLES / f"{kind}/{item}.png")
        buildings = f"png/buildings_complete/{item.split('_')[0]}.png"
        (folder / f"png/buildings_complete/{number}.png").symlink_to(SAMPLES / buildings)
        listed.append({"map": number, "split": SPLIT_OF_PLACE[place % 3]})
    (folder / "maps.json").write_text(json.dumps({"maps": listed}))
    return folder


def config(root: Path, **changes: object) -> RadioMapsConfig:
    values = {"root": str(root), "variant": "radio", "split_rule": "listed", "num_transmitters": 1}
    return RadioMapsConfig.model_validate({**values, **changes})


def test_every_sample_is_read_value_for_value(root: Path, index: dict[str, tuple[int, int]]) -> None:
    assert SAMPLES is not None
    names = list(index)
    sizes = 0
    for split in ("train", "test"):
        maps = RadioMaps(config(root), split)
        sizes += len(maps)
        for place, number in enumerate(maps.ids):
            name = names[int(number.split("_")[0]) - 1]
            gain = read_gray(SAMPLES / f"gain/DPM/{name}.png")
            np.testing.assert_allclose(maps[place]["image"][0], gain / 255 * 2 - 1, atol=1e-6)
            assert (maps[place]["cond"][1] == 1).nonzero().tolist() == [list(index[name])]
            assert not (gain[(maps[place]["cond"][0] == 1).numpy()]).any()  # no gain inside buildings
    assert sizes == 30


@pytest.mark.parametrize("name", ["MASK", "MASK_R", "VERTEX", "VERTEX_R", "RANDOM"])
def test_a_real_map_is_measured_outdoors(root: Path, name: str) -> None:
    maps = RadioMaps(config(root, variant=name), "test")
    for item in (maps[place] for place in range(len(maps))):
        buildings, samples = item["cond"][0], item["cond"][1]
        places = samples > -1
        assert torch.equal(samples[places], item["image"][0][places])
        assert (buildings[places] == -1).all()
        assert 10 < places.sum() < 0.2 * places.numel()


def test_a_loader_hands_out_each_real_map_once_an_epoch(root: Path) -> None:
    maps = RadioMaps(config(root, image_size=64), "train")
    loader = Loader(maps, LoadingConfig(batch_size=5))
    ids = [one for _ in range(4) for one in loader.next_batch()["ids"]]
    assert sorted(ids) == sorted(maps.ids)


def test_without_a_list_the_published_split_asks_for_the_first_map_of_its_order(root: Path) -> None:
    with pytest.raises(BadFile, match=r"gain/DPM/159_0\.png"):
        RadioMaps(config(root, split_rule="disjoint"), "train")
    assert VARIANTS["radio"].num_transmitters == 80
