"""Quirks of upstream (docs/upstream.md) that no room's own tests show to be absent, and misfits."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.config import load
from trainer.pipeline import train

ROOT = Path(__file__).parents[3]


def test_every_quirk_has_a_row_and_every_test_in_it_exists() -> None:
    page = (ROOT / "docs/upstream.md").read_text()
    rows = [int(number) for number in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)]
    assert rows == list(range(1, 24))
    for line in page.splitlines():
        assert not re.match(r"\| \d+ \|", line) or "::test_" in line, line
    for file, name in re.findall(r"`(test_\w+\.py)::(test_\w+)`", page):
        sources = [path.read_text() for path in (ROOT / "tests").rglob(file)]
        assert any(f"def {name}(" in source for source in sources), f"{file}::{name}"


def test_weights_and_moments_are_float32(trained: Any) -> None:
    """Upstream's ``amp`` is float16 without a loss scale; here weights are float32 at any precision."""
    parts = trained.newest()[1].parts
    kinds = {tensor.dtype for part in ("model", "ema", "optimizer") for tensor in parts[part].values()}
    assert kinds == {torch.float32, torch.int64}


def test_a_batch_is_moved_to_the_device(lab: Any) -> None:
    """Upstream drops the result of ``to``."""
    loop = lab.loop()
    loop.device = torch.device("meta")
    loop.fetch()
    assert {value.device.type for value in loop.batch.values() if isinstance(value, Tensor)} == {"meta"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"image_size = 32": "image_size = 64"},
            r"unet.input_size \(48, 48\) do not fit; set it to \(80, 80\)",
        ),
        (
            {"image_size = 32": "image_size = 4"},
            "sides that are multiples of 8, because the Swin starts at a",
        ),
        (
            {'root = "': 'variant = "DPMCARK"\nroot = "'},
            r"this model wants \(B, 3, H, W\); set unet.cond_chan",
        ),
    ],
)
def test_maps_that_the_model_can_not_take_are_refused_at_start(
    new_run: Any, refused: Any, changes: dict[str, str], words: str
) -> None:
    assert re.search(words, refused("check", new_run(changes=changes).config))


def test_importing_the_trainer_writes_nothing(tmp_path: Path) -> None:
    """Upstream writes a configuration into a home folder."""
    home, caches = tmp_path / "home", tmp_path / "caches"
    home.mkdir()
    places = {"HOME": str(home), "MPLCONFIGDIR": str(caches), "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-B", "-c", "import trainer.__main__"]
    subprocess.run(words, cwd=home, env={**os.environ, **places}, check=True)
    assert list(home.iterdir()) == []


def test_a_finished_run_started_again_is_finished(trained: Any) -> None:
    """Upstream takes a root of a negative number there, and stops with a TypeError."""
    summary = train(load(trained.config))
    assert (summary.status, summary.steps, summary.attempts) == ("finished", 3, 2)
