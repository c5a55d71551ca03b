"""What a training step of a model answers: one loss with its graph, and the numbers beside it."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Losses:
    """The loss of one batch, still on its device.

    Attributes:
        total: scalar with its graph; the only one to call ``backward`` on.
        parts: detached scalars by name, as they are before weighting.
        per_sample: detached, (B,), or None where the loss is no mean over samples.
        times: detached diffusion times in (0, 1], (B,), or None where there is no time.
    """

    total: Tensor
    parts: dict[str, Tensor]
    per_sample: Tensor | None = None
    times: Tensor | None = None
