"""The random states of a process: torch's of host and device, Python's and NumPy's."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor


def random_tensors(device: torch.device) -> dict[str, Tensor]:
    """Of the host and of ``device`` alone: asking the other GPUs would cost memory on each, and a state with
    theirs would fit no machine that has another number of them."""
    states = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def random_facts() -> dict[str, Any]:
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
    }


@dataclass(frozen=True)
class RandomState:
    """Random states of every kind, proved on generators of their own before any global one is touched."""

    tensors: Mapping[str, Tensor]
    python: tuple[Any, ...]
    numpy: tuple[Any, ...]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Self:
        """Raises ``ValueError`` where a generator would refuse its state."""
        try:
            version, words, gauss = facts["python"]
            kind, keys, *rest = facts["numpy"]
            state = cls(
                tensors, (version, tuple(words), gauss), (kind, np.array(keys, dtype=np.uint32), *rest)
            )
            torch.Generator().set_state(tensors["torch"])
            random.Random().setstate(state.python)
            np.random.RandomState().set_state(state.numpy)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"the random states can't be taken over: {in_words(error)}") from error
        return state

    def set(self, device: torch.device) -> None:
        """Make them the global ones, and that of ``device``."""
        torch.set_rng_state(self.tensors["torch"])
        if "cuda" in self.tensors:
            torch.cuda.set_rng_state(self.tensors["cuda"], device)
        random.setstate(self.python)
        np.random.set_state(self.numpy)


def in_words(error: Exception) -> str:
    """A KeyError says nothing but the key."""
    return f"there is no {error}" if isinstance(error, KeyError) else str(error)
