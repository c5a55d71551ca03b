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

    def ceilings(self, times: Tensor | None) -> Tensor:
        """Largest loss, largest norm and clipping norm for a batch with these times, (B,) or none: (3,).

        They are positive, and infinite where there is no limit. Without times the first bin speaks for all.
        """
        expected, factors, powers = torch.split(self.table, [BINS, 3, 3])
        if times is None:
            return factors * expected[:1].pow(powers)
        losses = expected.index_select(0, torch.bucketize(times.float(), self._edges, right=True))
        mean, rms = losses.mean(), torch.linalg.vector_norm(losses) / math.sqrt(len(losses))
        return factors * torch.stack((mean, rms, rms)).pow(powers)
