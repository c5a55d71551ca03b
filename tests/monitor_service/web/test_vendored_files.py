"""The notice tells the truth about the files of others."""

import hashlib
import re
from pathlib import Path

import monitor_service.web

VENDOR = Path(monitor_service.web.__file__).parent / "static" / "vendor"


def test_each_vendored_file_is_the_one_in_the_notice() -> None:
    notice = (VENDOR / "NOTICE.md").read_text()
    told = dict(re.findall(r"^\| `([^`]+)` .* `([0-9a-f]{64})` \|$", notice, re.M))
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in VENDOR.iterdir()
        if path.name != "NOTICE.md"
    }
    assert told == found
