"""A target for atheris: python tests/fuzz/decoders.py json|msgpack [CORPUS] [libFuzzer's options]."""

import json
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["monitor_service.api", "shared", "msgpack"]):
    import msgpack

    from monitor_service.api import body, bounds
    from monitor_service.api.examples import BODIES
    from monitor_service.batches import Incoming
    from monitor_service.errors import MonitorError
    from shared.exchange import Batch

KIND = {"json": body.JSON, "msgpack": body.PACKED}[sys.argv[1]]


def try_one(told: bytes) -> None:
    """What is taken must also be storable."""
    try:
        batch = body.parse(Batch, told, KIND)
        bounds.check(batch)
    except MonitorError:
        return
    incoming = Incoming.of(batch)
    assert len(incoming.digest) == 16


def seed(folder: Path) -> None:
    """Begin with a good batch."""
    good = BODIES["Batch"]
    (folder / "good").write_bytes(json.dumps(good).encode() if KIND == body.JSON else msgpack.packb(good))


if __name__ == "__main__":
    if len(sys.argv) > 2 and Path(sys.argv[2]).is_dir():
        seed(Path(sys.argv[2]))
    atheris.Setup([sys.argv[0], *sys.argv[2:]], try_one)
    atheris.Fuzz()
