"""A spool delivered later, by hand."""

import subprocess
import sys
from pathlib import Path

import pytest

from trainer.link import LinkConfig, SpoolError, deliver


def test_a_spool_left_behind_is_delivered_later(start_monitor, free_port, link_to, quick, tmp_path):
    link = link_to(f"http://127.0.0.1:{free_port}")
    for step in range(5):
        link.record_step(1, step, 0.0, {"loss": 1.0})
    assert link.close(0.1).pending_batches >= 1
    monitor = start_monitor(free_port)
    assert deliver(tmp_path / "spool", quick(monitor.url)).pending_batches == 0
    assert monitor.steps() == list(range(5))
    assert monitor.puts == ["/api/v1/runs/radio-7"]
    assert list((tmp_path / "spool").glob("*.spool")) == []


def test_with_the_monitor_away_delivery_ends_in_time_and_says_what_is_left(
    free_port, link_to, quick, tmp_path
):
    url = f"http://127.0.0.1:{free_port}"
    link = link_to(url)
    link.record_step(1, 0, 0.0, {"loss": 1.0})
    waiting = link.close(0.1).pending_batches
    assert deliver(tmp_path / "spool", quick(url), deadline_s=0.2).pending_batches == waiting >= 1


def test_a_folder_without_a_run_is_refused(tmp_path, quick):
    with pytest.raises(SpoolError, match=r"run\.json: can't be read"):
        deliver(tmp_path, quick("http://127.0.0.1:1"))


def test_delivery_without_an_address_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no monitor is configured"):
        deliver(tmp_path, LinkConfig())


HOLDER = """
import sys
from pathlib import Path
from trainer.link.outbox import Outbox
Outbox(Path(sys.argv[1]), 1 << 20).open()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_spool_in_use_is_refused(link_to, free_port, quick, tmp_path):
    spool = tmp_path / "spool"
    link_to(f"http://127.0.0.1:{free_port}").close(0.1)
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        HOLDER.replace("Outbox(P", "held = Outbox(P").replace(").open()", ")\nheld.open()"),
        str(spool),
    ]
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[3], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(SpoolError, match="another process uses this spool"):
            deliver(spool, quick("http://127.0.0.1:1"))
        holder.stdin.close()
