"""What this very batch may cost: ceilings for loss and gradient norm, computed on the device from its times.

The host learns slowly what each diffusion time usually costs (``spike.py``) and publishes it as one small
table; the device looks up its batch in it, so that a spike is refused in the step in which it happens.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence

import torch
from torch import Tensor

BINS = 32
_REACH = 7.0  # the bins divide log(t / (1 - t)) evenly from -7 to 7: t from 0.001 to 0.999
_EDGES = [1 / (1 + math.exp(_REACH - 2 * _REACH * edge / BINS)) for edge in range(1, BINS)]


def bins_of(times: Sequence[float]) -> list[int]:
    """Bin of each diffusion time; the same rule as on the device."""
    return [bisect_right(_EDGES, t) for t in times]


class Limits:
    """A table at a fixed address: the expected loss of 32 bins of time, factor and power of three ceilings.

    A ceiling is ``factor * feature ** power``. Its feature, for the ceiling of the loss, is the mean of what
    the batch's samples should cost; for that of the gradient norm, and for the norm to clip to, it is their
    root mean square. A new table allows everything.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.table = torch.ones(BINS + 6, device=device)
        self.table[BINS : BINS + 3] = torch.inf
        self._edges = torch.tensor(_EDGES, device=device)

    def publish(self, expected: Sequence[float], factors: Sequence[float], powers: Sequence[float]) -> None:
        """Write the table. Does not wait for the device; a step that already runs keeps the older one."""
        on_gpu = self.table.is_cuda
        row = torch.tensor([*expected, *factors, *powers], dtype=torch.float32, pin_memory=on_gpu)
        self.table.copy_(row, non_blocking=on_gpu)

    def terms(self, times: Tensor | None) -> Tensor:
        """What the ceilings of a batch with these times, (B,) or none, are made of: (8,), all of it means.

        So the mean of several parts' terms is the whole batch's. Without times the first bin speaks for all.
        """
        expected, rest = torch.split(self.table, [BINS, 6])
        if times is not None:
            expected = expected.index_select(0, torch.bucketize(times.float(), self._edges, right=True))
        else:
            expected = expected[:1]
        return torch.cat((expected.mean()[None], expected.square().mean()[None], rest))

    def ceilings(self, times: Tensor | None) -> Tensor:
        """Largest loss, largest norm and clipping norm for a batch with these times, (B,) or none: (3,)."""
        return ceilings_of(self.terms(times))


def ceilings_of(terms: Tensor) -> Tensor:
    """The three ceilings that ``Limits.terms`` make: positive, and infinite where there is no limit."""
    mean, mean_square, factors, powers = torch.split(terms, [1, 1, 3, 3])
    rms = mean_square.sqrt()
    return factors * torch.cat((mean, rms, rms)).pow(powers)
