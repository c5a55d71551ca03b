"""The table of data-set variants: which target, on which scale, under which condition.

Names are upstream's ``data.name``; ``RT`` is the embedded set's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from trainer.data.sparse import Sampling

Split = Literal["train", "val", "test"]
Channel = Literal["buildings", "antenna", "cars", "k2", "samples"]


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

    # Not shown, so that the fingerprint of data without measurements stays what it was.
    sampling: Sampling | None = field(default=None, repr=False)
    """Where the ``samples`` channel has measurements."""

    cond_scale: int = field(default=255, repr=False)
    """Gray levels of the condition are divided by this; upstream takes 256 beside measurements."""


_DPM: Mapping[Split, range] = {"train": range(601), "val": range(600, 651), "test": range(600, 700)}
_IRT4: Mapping[Split, range] = {"train": range(601), "val": range(501, 601), "test": range(600, 700)}
_SPARSE: Mapping[Split, range] = {"train": range(201), "val": range(501, 521), "test": range(601, 700)}
_CARS_AND_K2: tuple[Channel, ...] = ("buildings", "antenna", "cars", "k2", "k2")


def _sparse(sampling: Sampling) -> Variant:
    return Variant(
        gain="DPM",
        full_scale=256,
        cond_scale=256,
        channels=("buildings", "samples", "samples"),
        upstream=_SPARSE,
        sampling=sampling,
    )


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
    "MASK": _sparse(Sampling("edges")),
    "MASK_R": _sparse(Sampling("edges", scattered=True)),
    "VERTEX": _sparse(Sampling("corners")),
    "VERTEX_R": _sparse(Sampling("corners", scattered=True)),
    "RANDOM": _sparse(Sampling("anywhere")),
}
