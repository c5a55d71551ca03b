"""A disk that is really full: batches are refused until there is room again, and none is half stored."""

import math
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from monitor_service.opening import open_database

Build = Callable[..., dict[str, Any]]
SMALL = "size=6m"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MiB in memory."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.getuid() != 0:
        pytest.skip("only root may mount a disk")
    mount = ["mount", "-t", "tmpfs", "-o", SMALL, "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_while_the_disk_is_full_it_is_503_and_then_all_goes_on(
    small_disk: Path, serve: Any, batch: Build
) -> None:
    url = f"sqlite:///{small_disk}/x.db"
    open_database(url)
    monitor = serve(database_url=url)
    monitor.register()
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1024 * 1024))
    noise = [math.sin(step * 1e5) for step in range(10_000)]
    stored = []
    for seq in range(1, 100):
        answer = monitor.send(batch(seq, range(seq * 10_000, seq * 10_000 + 10_000), loss=noise))
        if answer.status_code != 200:
            break
        stored.append(seq)
    assert (answer.status_code, bool(answer.headers["retry-after"])) == (503, True)
    assert len(monitor.tell("/series?name=loss")["series"]["loss"]["step"]) == 10_000 * len(stored)
    ballast.unlink()
    again = monitor.send(batch(seq, range(seq * 10_000, seq * 10_000 + 10_000), loss=noise))
    assert (again.status_code, again.json()["duplicate"]) == (200, False)
