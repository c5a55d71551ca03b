"""In which format a forward pass computes."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]

FORMATS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def computing_in(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Where a forward pass belongs: weights stay float32, matrix products and convolutions are shorter."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=FORMATS[precision])
