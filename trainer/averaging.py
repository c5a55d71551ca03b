"""The step of a whole batch, of which each rank has computed its part: gradients and numbers, averaged.

One SUM all-reduce after the backward pass, in flat pieces of bounded size, carries everything: gradients,
the running statistics that the forward pass wrote, the loss, its parts, each sample's loss and time, and what
the ceilings are computed from. A sum keeps a NaN, wherever it is; a maximum may lose it. So each rank decides
the same about the step, from the same bits.

It is written out rather than left to ``DistributedDataParallel``; docs/decisions/0005 says why.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.guards.base import StepLosses, norms
from trainer.guards.vitals import Whole
from trainer.ranks import Ranks

PIECE = 16 << 20
"""Elements that are sent at a time: 64 MiB of float32 besides the gradients themselves."""


@dataclass(frozen=True)
class BatchLosses:
    """The losses of all ranks' parts together."""

    total: Tensor
    parts: Mapping[str, Tensor]
    per_sample: Tensor | None
    times: Tensor | None


class Averaging:
    """What ``Meter`` asks for the whole batch, where ``ranks`` are many.

    Every rank has a part of the same size and gradients for the same parameters; their mean is then the
    gradient of the whole batch's mean loss. Costs one copy of the gradients, a piece at a time, and is not
    overlapped with the backward pass.

    Args:
        statistics: buffers that the forward pass writes; the mean over the ranks takes their place. Those
            that are no floating numbers count batches, and are equal anyway.
    """

    def __init__(self, ranks: Ranks, statistics: Iterable[Tensor] = ()) -> None:
        self._ranks = ranks
        self._statistics = [one for one in statistics if one.is_floating_point()]

    def __call__(self, losses: StepLosses, terms: Tensor, grads: Sequence[Tensor]) -> Whole:
        """The whole batch's losses, terms of its ceilings, and norm of its gradient; ``grads`` become its."""
        numbers = pack(losses, terms, self._ranks)
        self._average([*grads, *self._statistics, numbers])
        whole, terms = unpack(numbers, losses, terms)
        return Whole(whole, terms, torch.linalg.vector_norm(norms(grads)))

    def _average(self, tensors: Sequence[Tensor]) -> None:
        for piece in _pieces([tensor.detach() for tensor in tensors]):
            flat = torch.cat([tensor.reshape(-1) for tensor in piece])
            self._ranks.add(flat)
            flat.div_(self._ranks.world)
            parts = torch.split(flat, [tensor.numel() for tensor in piece])
            torch._foreach_copy_(piece, [part.view(t.shape) for part, t in zip(parts, piece, strict=True)])


class Summing(Averaging):
    """The same where weights are sharded: their gradients are means already, a share on each rank.

    What is left to send is small: the numbers, and the square of the norm of this rank's share.
    """

    def __call__(self, losses: StepLosses, terms: Tensor, grads: Sequence[Tensor]) -> Whole:
        """As ``Averaging``, but for ``grads``, which stay as they are."""
        square = torch.linalg.vector_norm(norms(grads)).double().square()
        numbers = torch.cat([pack(losses, terms, self._ranks).double(), square[None] * self._ranks.world])
        self._average([*self._statistics, numbers])
        whole, terms = unpack(numbers[:-1].float(), losses, terms)
        return Whole(whole, terms, numbers[-1].sqrt().float())


def pack(losses: StepLosses, terms: Tensor, ranks: Ranks) -> Tensor:
    """All numbers of this rank's part in one vector, float32, whose mean over the ranks is the whole batch's.

    What belongs to one sample has a place of its own, times the number of ranks, with zeros from the others.
    """
    own = [one for one in (losses.per_sample, losses.times) if one is not None]
    samples = [torch.zeros(ranks.world, len(one), device=terms.device) for one in own]
    for place, one in zip(samples, own, strict=True):
        place[ranks.number] = one.detach().float() * ranks.world
    scalars = torch.stack([losses.total.detach(), *losses.parts.values()]).float()
    return torch.cat([terms, scalars, *(place.reshape(-1) for place in samples)])


def unpack(numbers: Tensor, own: StepLosses, terms: Tensor) -> tuple[BatchLosses, Tensor]:
    """What ``pack`` made of losses like ``own``: those of the whole batch, and the terms."""
    count = len(terms) + 1 + len(own.parts)
    terms, total, parts = numbers[: len(terms)], numbers[len(terms)], numbers[len(terms) + 1 : count]
    vectors = iter(
        numbers[count:].chunk(2)
        if own.per_sample is not None and own.times is not None
        else [numbers[count:]]
    )
    per_sample = None if own.per_sample is None else next(vectors)
    times = None if own.times is None else next(vectors)
    return BatchLosses(total, dict(zip(own.parts, parts, strict=True)), per_sample, times), terms


def _pieces(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """In order, of one dtype each, and of about ``PIECE`` elements at most."""
    piece: list[Tensor] = []
    for tensor in tensors:
        size = sum(one.numel() for one in piece)
        if piece and (piece[0].dtype != tensor.dtype or size + tensor.numel() > PIECE):
            yield piece
            piece = []
        piece.append(tensor)
    yield piece
