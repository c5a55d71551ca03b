"""A batch that goes through the model in pieces, and the losses of the whole from theirs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.guards.base import StepLosses


@dataclass(frozen=True, slots=True)
class Combined:
    """The losses of a whole batch from those of its pieces; detached, since each piece had its backward."""

    total: Tensor
    parts: dict[str, Tensor]
    per_sample: Tensor | None
    times: Tensor | None


def piece_of(batch: Mapping[str, Any], index: int, pieces: int) -> Mapping[str, Any]:
    """One of ``pieces`` equal parts of a batch, whose every value holds its samples in order."""
    if pieces == 1:
        return batch
    size = len(batch["ids"]) // pieces
    return {key: value[index * size : (index + 1) * size] for key, value in batch.items()}


def combine(pieces: Sequence[StepLosses]) -> StepLosses:
    """What the batch would have told: means of what are means, and the samples one after the other.

    The pieces are of one size, as those of ``piece_of`` are. A single one is answered as it is.
    """
    if len(pieces) == 1:
        return pieces[0]
    return Combined(
        total=torch.stack([piece.total.detach() for piece in pieces]).mean(),
        parts={name: torch.stack([piece.parts[name] for piece in pieces]).mean() for name in pieces[0].parts},
        per_sample=_joined([piece.per_sample for piece in pieces]),
        times=_joined([piece.times for piece in pieces]),
    )


def _joined(vectors: Sequence[Tensor | None]) -> Tensor | None:
    known = [vector for vector in vectors if vector is not None]
    return torch.cat(known) if len(known) == len(vectors) else None
