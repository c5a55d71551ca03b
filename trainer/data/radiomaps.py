"""Radio maps in RadioMapSeer's layout: the embedded set, or a folder of your own.

Layout under the root: ``gain/{kind}/{map}_{tx}.png``, ``png/buildings_complete/{map}.png``,
``png/antennas/{map}_{tx}.png`` and, where a variant asks for them, ``png/cars/{map}.png`` and
``gain/{kind}_k2_neg_norm/{map}_{tx}.png``.

Each image is decoded and checked once, at the start, and kept as ``uint8``: about one byte per pixel of every
target. That is 0.4 MB for the embedded set at 64 x 64, 230 MB for RadioMapSeer's 56,000 targets at 64 x 64,
and 3.7 GB (and some minutes of decoding) at 256 x 256. Loader workers share it by fork. With ``cache`` set to
``disk`` it is mapped from files, which later starts and other ranks share. The items are the same either way.
"""

from pathlib import Path

import numpy as np
import torch
from pydantic import Field, field_validator
from xxhash import xxh3_128_hexdigest

from trainer.data.antenna import AntennaForm, antenna_plane
from trainer.data.errors import BadFile, DataError
from trainer.data.gray import SOURCE_SIZE, Gray
from trainer.data.items import Item
from trainer.data.sparse import measured, places_of
from trainer.data.splits import SplitRule, split_maps
from trainer.data.stacks import Antennas, Cache, Pictures, Stack, stack
from trainer.data.variants import VARIANTS, Channel, Split
from trainer.section import Section

EMBEDDED = Path(__file__).parent / "embedded"
"""64 ray-traced maps of real city blocks; its README has origin and licence."""


class RadioMapsConfig(Section):
    """Which maps, and at which size."""

    root: str = Field("embedded", description="Folder in RadioMapSeer's layout, or 'embedded'.")
    variant: str = Field("RT", description="Target and condition: a row of trainer/data/variants.py.")
    image_size: int = Field(SOURCE_SIZE, ge=1, description="Side of a map after reduction, pixels.")
    num_transmitters: int | None = Field(
        None, ge=1, description="Transmitters taken per map; default: all that the variant has."
    )
    split_rule: SplitRule = Field(
        "disjoint",
        description="'upstream' repeats its splits, where a test map is trained on too; 'listed': maps.json.",
    )
    num_samples: int = Field(300, ge=1, description="Measurements in each map of the variant RANDOM.")
    sample_seed: int = Field(0, ge=0, description="Fixes where a map is measured, for each item by itself.")
    antenna: AntennaForm = Field(
        "pixel",
        description="The antenna's channel: the published bright pixel, or the logarithm of the distance.",
    )
    cache: Cache = Field(
        "memory",
        description="Decoded maps are kept in 'memory', on 'disk' (mapped files), or not at all ('none').",
    )
    cache_folder: Path = Field(Path("runs/cache"), description="Where the files of cache = 'disk' lie.")
    augment: bool = Field(True, description="Turn and mirror training maps at random (8 ways).")

    @field_validator("variant")
    @classmethod
    def _is_a_row(cls, name: str) -> str:
        if name not in VARIANTS:
            raise ValueError(f"there is no variant {name!r}; choose one of {', '.join(VARIANTS)}")
        return name

    @field_validator("image_size")
    @classmethod
    def _divides_the_source(cls, size: int) -> int:
        if SOURCE_SIZE % size:
            raise ValueError(
                f"{size} does not divide the maps' side of {SOURCE_SIZE}; take 32, 64, 128 or 256"
            )
        return size

    @property
    def folder(self) -> Path:
        """Where the maps lie."""
        return EMBEDDED if self.root == "embedded" else Path(self.root)


class RadioMaps:
    """One split of a data set. Item ``i`` is map ``i // num_transmitters``, antenna ``i % num_transmitters``.

    Raises:
        BadFile: at construction, for the first file that can't be used.
        DataError: the cache can't be written.
    """

    def __init__(self, config: RadioMapsConfig, split: Split) -> None:
        if not config.folder.is_dir():
            raise BadFile(
                config.folder, "there is no such folder; data.root must name a data set or be 'embedded'"
            )
        self.config, self.split = config, split
        self.variant = VARIANTS[config.variant]
        self.num_transmitters = config.num_transmitters or self.variant.num_transmitters
        maps = split_maps(config.folder, self.variant, split, config.split_rule)
        self._maps = [str(number) for number in maps]
        self.ids = [f"{number}_{tx}" for number in maps for tx in range(self.num_transmitters)]
        self._gains = self._read(f"gain/{self.variant.gain}", self.ids)
        drawn = {"antenna", "samples"}
        self._planes = {name: self._read_plane(name) for name in set(self.variant.channels) - drawn}
        self._antennas = self._read_antennas()
        self.fingerprint = self._fingerprint()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Item:
        """Item ``index`` as it lies in the data set, never turned."""
        return self._item(index, self._stack(index))

    def spread(self, count: int = 32) -> list[Item]:
        """About so many items from all over the data set, to ask what is usual in it."""
        return [self[index] for index in range(0, len(self), max(1, len(self) // count))]

    def example(self, index: int, rng: np.random.Generator) -> Item:
        """Item ``index`` for training: turned and mirrored as ``rng`` draws, if the config asks for that."""
        try:
            planes = self._stack(index)
        except (
            BadFile
        ) as error:  # only where nothing is kept; a worker can't hand on an error of two arguments
            raise DataError(f"{error}; it was whole when the run began") from error
        if self.config.augment and self.split == "train":
            planes = turned(planes, int(rng.integers(8)))
        return self._item(index, planes)

    def _item(self, index: int, stack: Gray) -> Item:
        image = stack[:1].astype(np.float32) / self.variant.full_scale
        cond = stack[1:].astype(np.float32) / self.variant.cond_scale
        return Item(
            image=torch.from_numpy(image * 2 - 1), cond=torch.from_numpy(cond * 2 - 1), id=self.ids[index]
        )

    def _stack(self, index: int) -> Gray:
        """Target and condition channels, (1 + C, H, W)."""
        return np.stack(
            [self._gains.rows[index], *(self._channel(name, index) for name in self.variant.channels)]
        )

    def _channel(self, name: Channel, index: int) -> Gray:
        if name == "antenna":
            return self._antenna_plane(index)
        if name == "samples":
            return self._measured(index)
        place = index if name == "k2" else index // self.num_transmitters
        plane: Gray = self._planes[name].rows[place]
        return plane

    def _antenna_plane(self, index: int) -> Gray:
        row, column = self._antennas.rows[index].tolist()
        return antenna_plane((row, column), self.config.image_size, self.config.antenna)

    def _measured(self, index: int) -> Gray:
        """Measured at places that hang on the item's name and the seed, not on its place in a split."""
        assert self.variant.sampling is not None, "a variant with samples tells where they are taken"
        buildings = self._channel("buildings", index)
        number, tx = map(int, self.ids[index].split("_"))
        rng = np.random.default_rng([self.config.sample_seed, number, tx])
        places = places_of(buildings, self.variant.sampling, self.config.num_samples, rng)
        return measured(self._gains.rows[index], places)

    def _read_plane(self, name: Channel) -> Stack:
        if name == "k2":
            return self._read(f"gain/{self.variant.k2}", self.ids)
        return self._read({"buildings": "png/buildings_complete", "cars": "png/cars"}[name], self._maps)

    def _read(self, folder: str, names: list[str]) -> Stack:
        """The images of these names, reduced by area mean, (N, H, W)."""
        files = Pictures(folder, self._paths(folder, names), self.config.image_size)
        return stack(files, self.config.cache, self.config.cache_folder)

    def _read_antennas(self) -> Stack:
        """Row and column of each item's antenna in the reduced image, (N, 2); none where no channel asks."""
        folder, ids = "png/antennas", self.ids if "antenna" in self.variant.channels else []
        files = Antennas(folder, self._paths(folder, ids), self.config.image_size)
        return stack(files, "disk" if self.config.cache == "disk" else "memory", self.config.cache_folder)

    def _paths(self, folder: str, names: list[str]) -> list[Path]:
        return [self.config.folder / folder / f"{name}.png" for name in names]

    def _fingerprint(self) -> str:
        """Equal for equal items in equal order: names, pixels, scale and channels."""
        config, variant = self.config, self.variant
        form: tuple[object, ...] = () if config.antenna == "pixel" else (config.antenna,)
        if variant.sampling is not None:
            form = (variant.sampling, variant.cond_scale, config.num_samples, config.sample_seed)
        shape = (len(self), config.image_size, config.image_size)
        header = repr((self.ids, variant, shape, config.augment, sorted(self._planes), *form))
        stacks = [self._gains, self._antennas, *(self._planes[name] for name in sorted(self._planes))]
        return xxh3_128_hexdigest("/".join([header, *(one.digest for one in stacks)]).encode())


def turned(planes: Gray, way: int) -> Gray:
    """(C, H, W) turned by ``way % 4`` quarters and, for 4 to 7, mirrored: the 8 symmetries of a square."""
    quarter = np.rot90(planes, way % 4, axes=(1, 2))
    return quarter[:, :, ::-1] if way >= 4 else quarter
