"""Which maps belong to a split: the data set's own list, or a stretch of upstream's shuffled order.

Upstream's train and test stretches share the map at place 600 (id 289). ``disjoint`` mends that and keeps
upstream's test maps, so that test numbers stay comparable: the paper's 500 maps for training, then 100, then
100 for the test. Upstream's stretches for sparse measurements share none, and are kept as they are.
``listed`` takes the ``maps.json`` of the data set, for a folder that holds some of RadioMapSeer's maps.
"""

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ValidationError

from trainer.data.errors import BadFile
from trainer.data.variants import Split, Variant

SplitRule = Literal["disjoint", "upstream", "listed"]

DISJOINT: Mapping[Split, range] = {"train": range(500), "val": range(500, 600), "test": range(600, 700)}


class _Map(BaseModel):
    map: int
    split: Split


class _MapsFile(BaseModel):
    maps: list[_Map]


def upstream_order() -> list[int]:
    """Map ids in upstream's order: 1..700 shuffled by NumPy's legacy generator, seed 42. Map 0 is unused."""
    places = np.arange(700)
    np.random.RandomState(42).shuffle(places)
    return [int(place) + 1 for place in places]


def split_maps(root: Path, variant: Variant, split: Split, rule: SplitRule) -> list[int]:
    """Map ids of a split, in order.

    Raises:
        BadFile: ``maps.json`` is missing or malformed, or names no map of this split.
    """
    if variant.upstream is None or rule == "listed":
        return _listed_maps(root / "maps.json", split)
    keeps_upstreams = rule == "upstream" or not _share_a_map(variant.upstream)
    places = variant.upstream if keeps_upstreams else DISJOINT
    order = upstream_order()
    return [order[place] for place in places[split]]


def _share_a_map(places: Mapping[Split, range]) -> bool:
    return any(set(one) & set(other) for one, other in combinations(places.values(), 2))


def _listed_maps(path: Path, split: Split) -> list[int]:
    try:
        listed = _MapsFile.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise BadFile(path, "there is no such file; it tells the split of each map") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise BadFile(path, f"not a list of maps with their splits ({place}: {first['msg']})") from error
    maps = [entry.map for entry in listed.maps if entry.split == split]
    if not maps:
        raise BadFile(path, f"names no map of the split {split!r}; give at least one")
    return maps
