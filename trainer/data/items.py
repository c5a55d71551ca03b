"""One map with its condition, and several of them stacked."""

from typing import TypedDict

import torch
from torch import Tensor


class Item(TypedDict):
    """One map with its condition, values in [-1, 1], float32."""

    image: Tensor  # (1, H, W)
    cond: Tensor  # (C, H, W)
    id: str  # "{map}_{tx}"


class Batch(TypedDict):
    """Items stacked."""

    image: Tensor  # (B, 1, H, W)
    cond: Tensor  # (B, C, H, W)
    ids: list[str]


def collate(items: list[Item]) -> Batch:
    """Items as one batch."""
    return Batch(
        image=torch.stack([item["image"] for item in items]),
        cond=torch.stack([item["cond"] for item in items]),
        ids=[item["id"] for item in items],
    )
