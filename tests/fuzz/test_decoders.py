"""Both decoders of a body take any bytes: a message comes out, or a refusal with a reason, and nothing else.

``FUZZ_RUNS=1000000`` tries so many bodies; the default keeps CI short.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("atheris", reason="the extra 'fuzz' is not installed")

RUNS = int(os.environ.get("FUZZ_RUNS", "3000"))
TARGET = Path(__file__).with_name("decoders.py")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["json", "msgpack"])
def test_no_bytes_break_a_decoder(kind: str, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    limits = [f"-runs={RUNS}", "-max_len=4096", "-timeout=20", "-seed=1", f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(
        [sys.executable, str(TARGET), kind, str(corpus), *limits],
        cwd=TARGET.parents[2],
        env={**os.environ, "PYTHONPATH": str(TARGET.parents[2])},
        capture_output=True,
        text=True,
        check=False,
        timeout=3000,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Done" in done.stderr, done.stderr[-2000:]
