"""The table of data-set variants: which target, on which scale, under which condition.

Names are upstream's ``data.name``; ``RT`` is the embedded set's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "val", "test"]
Channel = Literal["buildings", "antenna", "cars", "k2"]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row: a target with its condition."""

    gain: str
    """Folder of the target under ``gain/``."""

    full_scale: int = 255
    """Gray levels are divided by this; upstream takes 256 for IRT4."""

    channels: tuple[Channel, ...] = ("buildings", "antenna", "buildings")
    """The condition's channels, in order."""

    k2: str | None = None
    """Folder of the ``k2`` channel under ``gain/``."""

    num_transmitters: int = 80
    """Transmitters per map that the data set has."""

    upstream: Mapping[Split, range] | None = None
    """Upstream's splits, as places in its map order; None: the data set's ``maps.json`` tells them."""


_DPM: Mapping[Split, range] = {"train": range(601), "val": range(600, 651), "test": range(600, 700)}
_IRT4: Mapping[Split, range] = {"train": range(601), "val": range(501, 601), "test": range(600, 700)}
_CARS_AND_K2: tuple[Channel, ...] = ("buildings", "antenna", "cars", "k2", "k2")

VARIANTS: Mapping[str, Variant] = {
    "RT": Variant(gain="RT", num_transmitters=2),
    "radio": Variant(gain="DPM", upstream=_DPM),
    "IRT4": Variant(gain="IRT4", full_scale=256, num_transmitters=2, upstream=_IRT4),
    "DPMCAR": Variant(gain="carsDPM", channels=("buildings", "antenna", "cars"), upstream=_DPM),
    "DPMK": Variant(gain="DPM", channels=("buildings", "antenna", "k2"), k2="DPM_k2_neg_norm", upstream=_DPM),
    "IRT4K": Variant(
        gain="IRT4",
        full_scale=256,
        channels=("buildings", "antenna", "k2"),
        k2="IRT4_k2_neg_norm",
        num_transmitters=2,
        upstream=_IRT4,
    ),
    "DPMCARK": Variant(gain="carsDPM", channels=_CARS_AND_K2, k2="DPMCAR_k2_neg_norm", upstream=_DPM),
}
