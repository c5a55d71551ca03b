"""What stays in float32 when a forward pass runs under autocast: sums, norms and what is small by nature."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def widened(x: Tensor) -> Tensor:
    """``x`` in float32, or as it is where it is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def in_float32(x: Tensor) -> AbstractContextManager[object]:
    """Autocast off on the device of ``x``; what comes from outside has to be ``widened``."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)
