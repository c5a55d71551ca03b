"""The files that are shipped for Prometheus and Alertmanager, and their own programs to read them with."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
Tool = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def tool() -> Tool:
    """Runs a program of Prometheus's or Alertmanager's package; skips where it is not installed."""

    def run(name: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
        if shutil.which(name) is None:
            pytest.skip(f"no {name} here: install the packages prometheus and prometheus-alertmanager")
        return subprocess.run([name, *map(str, words)], capture_output=True, text=True, timeout=60)

    return run
