"""Addresses that would do, and those that would not."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from trainer.link import LinkConfig


@pytest.mark.parametrize(
    "url", ["localhost:8321", "ftp://host", "http://", "http://host?a=1", "http://[::1", "http://\x00"]
)
def test_what_is_no_address_is_refused_with_what_would_do(url):
    with pytest.raises(ValidationError, match="write http://HOST:PORT"):
        LinkConfig(url=url)


def test_a_trailing_slash_does_not_matter():
    assert LinkConfig(url="https://monitor.example/health/").url == "https://monitor.example/health"


@pytest.mark.parametrize(
    ("url", "here"), [("http://127.0.0.1:1", True), ("http://[::1]:1", True), ("http://monitor", False)]
)
def test_a_proxy_is_not_asked_for_this_machine(url, here):
    assert LinkConfig(url=url).is_loopback is here


def test_the_link_needs_no_torch_and_no_numpy():
    code = "import sys, trainer.link; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3]).returncode == 0
