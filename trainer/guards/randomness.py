"""torch's random states, taken and set again: what a replay begins with."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Randomness:
    """torch's random states of the host and of one device. Taking them reads nothing from the device."""

    host: Tensor
    device: torch.device
    on_device: Tensor | None = None

    @classmethod
    def now(cls, device: torch.device) -> "Randomness":
        """The states at this moment: 5 KB, and 16 bytes of a GPU's."""
        on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), device, on_device)

    def set(self) -> None:
        """Make them the present ones."""
        torch.set_rng_state(self.host)
        if self.on_device is not None:
            torch.cuda.set_rng_state(self.on_device, self.device)

    def tensors(self) -> dict[str, Tensor]:
        """By name, for a file."""
        return {"host": self.host} | ({} if self.on_device is None else {"device": self.on_device})
