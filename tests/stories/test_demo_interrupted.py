"""The demo leaves nothing running when it is ended from outside."""

import re
import signal
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.slow


def test_a_terminated_demo_takes_its_monitor_along(house: Any, until: Any) -> None:
    folder = house.folder / "demo"
    demo = house.program("trainer", "demo", "--folder", str(folder), "--port", "0")
    url = until(lambda: re.search(r"the page of the run is (\S+)/runs/demo", demo.log), "the monitor is up")[
        1
    ]
    assert httpx.get(f"{url}/healthz", timeout=30).status_code == 200
    assert demo.end(signal.SIGTERM) == 130, demo.log
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz", timeout=30)
