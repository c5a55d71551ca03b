"""A disk that turns read-only under a running monitor, as ext4 does after an error: 503, nothing is lost."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.monitor_service.test_served import Program

Build = Callable[..., dict[str, Any]]
RUN = "/api/v1/runs/demo"


class Disk:
    """An ext4 in a file, which can be made to abort."""

    def __init__(self, folder: Path) -> None:
        self.image, self.folder = folder / "image", folder / "disk"
        self.folder.mkdir()
        self.image.write_bytes(b"")
        os.truncate(self.image, 64 << 20)

    def make(self) -> bool:
        if os.getuid() != 0:
            return False
        commands = (["mkfs.ext4", "-q", str(self.image)], ["mount", "-o", "loop", *self._both()])
        return all(_succeeds(one) for one in commands)

    def abort(self) -> None:
        assert _succeeds(["mount", "-o", "remount,abort", str(self.folder)])

    def mend(self) -> None:
        assert _succeeds(["umount", str(self.folder)])
        subprocess.run(["e2fsck", "-p", str(self.image)], capture_output=True, check=False)  # 1: mended
        assert _succeeds(["mount", "-o", "loop", *self._both()])

    def _both(self) -> tuple[str, str]:
        return str(self.image), str(self.folder)


def _succeeds(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path)
    if not disk.make():
        pytest.skip("needs root, mkfs.ext4 and loop devices")
    yield disk
    subprocess.run(["umount", "-l", str(disk.folder)], check=False)


def test_on_a_disk_that_turns_read_only_it_is_503_and_all_that_was_taken_is_there_afterwards(
    disk: Disk, batch: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel gives up what no fsync has brought to the disk, as in a power cut: so ``full`` it is."""
    monkeypatch.setenv("TRAINHEALTH_DURABLE", "full")
    url = f"sqlite:///{disk.folder}/monitor.db"
    monitor = Program(url)
    try:
        with httpx.Client(base_url=monitor.url, timeout=30) as client:
            spec = {"started_at": "2026-01-01T00:00:00Z"}
            assert client.put(RUN, json=spec).status_code == 201
            assert client.post(f"{RUN}/exchange", json=batch(1, [0, 1], loss=[1.0, 0.5])).status_code == 200
            disk.abort()
            refused = client.post(f"{RUN}/exchange", json=batch(2, [2], loss=[0.25]))
            assert (refused.status_code, bool(refused.headers["retry-after"])) == (503, True)
            assert refused.json()["type"].endswith("storage-unavailable")
    finally:
        monitor.end(signal.SIGTERM)
    disk.mend()
    monitor = Program(url)
    try:
        with httpx.Client(base_url=monitor.url, timeout=30) as client:
            again = client.post(f"{RUN}/exchange", json=batch(2, [2], loss=[0.25]))
            assert (again.status_code, again.json()["duplicate"]) == (200, False)
            assert client.get(f"{RUN}/series?name=loss").json()["series"]["loss"]["value"] == [1.0, 0.5, 0.25]
    finally:
        monitor.end(signal.SIGTERM)
