"""A small state with every kind of tensor that a training has, and ways to damage what was saved of it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.checkpoint.manifest import MANIFEST_FILE, FileEntry, Manifest
from trainer.checkpoint.tensors import digest_bytes


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def parts() -> dict[str, dict[str, Tensor]]:
    """Tied, transposed, 0-dim, empty, half precision, whole numbers, flags."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 6, generator=generator)
    return {
        "model": {
            "weight": weight,
            "tied": weight,
            "transposed": weight.t(),
            "half": weight.half(),
            "brain": weight.bfloat16(),
            "scale_factor": torch.tensor(0.3),
            "none_yet": torch.empty(0, 3),
            "num_batches": torch.tensor(7),
            "mask": weight > 0,
        },
        "ema": {"weight": weight * 0.5},
        "optimizer": {
            "0.exp_avg": weight * 0.1,
            "0.exp_avg_sq": weight.square(),
            "0.step": torch.tensor(3.0),
        },
        "rng": {"torch": torch.arange(64, dtype=torch.uint8)},
    }


@pytest.fixture
def facts() -> dict[str, Any]:
    return {"step": 150, "position": {"epoch": 2, "sample": 31}, "seen": [1.5, float("inf")]}


def _reseal(folder: Path) -> None:
    path = folder / MANIFEST_FILE
    manifest = Manifest.unseal(path.read_bytes())
    files = {name: _entry(folder / name) for name in manifest.files}
    path.write_bytes(manifest.model_copy(update={"files": files}).seal())


def _entry(path: Path) -> FileEntry:
    content = path.read_bytes()
    return FileEntry(size_bytes=len(content), xxh3_128=digest_bytes(content))


@pytest.fixture
def reseal() -> Callable[[Path], None]:
    """Make the manifest agree with the files as they are, so that only the check behind it can tell."""
    return _reseal


@pytest.fixture
def flip_bit() -> Callable[[Path, int], None]:
    """Flip one bit of a file, counted from its start."""

    def flip(path: Path, bit: int) -> None:
        content = bytearray(path.read_bytes())
        content[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(content)

    return flip
