"""What ingest is measured against: our monitor, and trackers that can be installed from PyPI.

A batch is ten metrics for some steps, as a trainer sends it. Each target says what a batch looks like to it.
"""

import json
import random
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgpack
import numpy as np

from benchmarks.bare_http import Connection, Server, free_port, request

METRICS = (
    *("loss", "grad_norm", "lr", "loss_scale", "param_norm"),
    *("step_seconds", "data_seconds", "update_ratio", "clip", "ema_loss"),
)
NOON = 1_772_366_400.0


@dataclass(frozen=True)
class Rows:
    """The numbers of one batch."""

    step: list[int]
    time: list[float]
    series: dict[str, list[float]]

    @classmethod
    def make(cls, first_step: int, num_points: int, chance: random.Random) -> "Rows":
        names = METRICS if num_points >= len(METRICS) else METRICS[:num_points]
        steps = list(range(first_step, first_step + num_points // len(names)))
        noise = {name: [_float32(chance.lognormvariate(0, 0.3)) for _ in steps] for name in names}
        return cls(steps, [NOON + 0.2 * step for step in steps], noise)


def _float32(value: float) -> float:
    narrowed: float = struct.unpack("f", struct.pack("f", value))[0]
    return narrowed


class Ours:
    """``python -m monitor_service serve`` as a user starts it: all checks, metrics and rules on."""

    def __init__(self, name: str = "trainhealth", *, packed: bool = False, **settings: str) -> None:
        self.name, self._packed, self._settings = name, packed, settings

    def start(self, folder: Path) -> Server:
        port = free_port()
        command = [sys.executable, "-m", "monitor_service", "serve", "--port", str(port)]
        url = f"sqlite:///{self.file(folder)}"
        environment = {"TRAINHEALTH_DATABASE_URL": url, **self._settings}
        server = Server(command, port, folder / f"{self.name}.log", **environment)
        server.wait_until("/healthz")
        return server

    def file(self, folder: Path) -> Path:
        """Its database, unless a setting names another."""
        return folder / f"{self.name}.db"

    def new_run(self, port: int) -> str:
        run = f"run-{uuid4().hex[:12]}"
        spec = json.dumps({"started_at": "2026-03-01T12:00:00Z"}).encode()
        connection = Connection(port)
        assert connection.ask(request("PUT", f"/api/v1/runs/{run}", spec))[0] == 201
        connection.close()
        return run

    def encode(self, run: str, seq: int, rows: Rows) -> bytes:
        path = f"/api/v1/runs/{run}/exchange"
        columns: dict[str, Any] = {"step": rows.step, "time": rows.time, "series": rows.series}
        if not self._packed:
            body = {"session": "bench", "seq": seq, "attempt": 1, "columns": columns}
            return request("POST", path, json.dumps(body).encode())
        series = {name: np.array(values, "<f8").tobytes() for name, values in rows.series.items()}
        step, moments = np.array(rows.step, "<i8").tobytes(), np.array(rows.time, "<f8").tobytes()
        columns = {"step": step, "time": moments, "series": series}
        packed = msgpack.packb({"session": "bench", "seq": seq, "attempt": 1, "columns": columns})
        return request("POST", path, packed, "application/msgpack")

    def alarm(self, run: str, seq: int) -> bytes:
        """A batch that holds one finding."""
        finding = {"type": "finding", "step": seq, "time": "2026-03-01T12:00:00Z", "guard": "spike"}
        finding |= {"severity": "warning", "message": "loss 9 deviations above its median"}
        body = {"session": "bench", "seq": seq, "attempt": 1, "events": [finding]}
        return request("POST", f"/api/v1/runs/{run}/exchange", json.dumps(body).encode())


class MLflow:
    """``mlflow server`` on SQLite with one worker: its default of four fight for the lock and cost more."""

    name = "mlflow"

    def __init__(self, python: str) -> None:
        self._python = python

    def start(self, folder: Path) -> Server:
        port = free_port()
        store = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
        where = ["--host", "127.0.0.1", "--port", str(port), "--default-artifact-root", str(folder / "art")]
        command = [self._python, "-m", "mlflow", "server", *where, *store, "--allowed-hosts", "*"]
        command += ["--workers", "1"]
        path = f"{Path(self._python).parent}:/usr/bin:/bin"
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "PATH": path}
        server = Server(command, port, folder / "mlflow.log", **quiet)
        server.wait_until("/health")
        while True:  # its workers start one after another
            before = server.cpu_s()
            time.sleep(2)
            if server.cpu_s() - before < 0.2:
                return server

    def new_run(self, port: int) -> str:
        body = json.dumps({"experiment_id": "0", "start_time": int(NOON * 1000)}).encode()
        _, answer = Connection(port).ask(request("POST", "/api/2.0/mlflow/runs/create", body))
        run: str = json.loads(answer)["run"]["info"]["run_id"]
        return run

    def encode(self, run: str, seq: int, rows: Rows) -> bytes:
        metrics = [
            {"key": name, "value": value, "timestamp": int(moment * 1000), "step": step}
            for name, values in rows.series.items()
            for step, moment, value in zip(rows.step, rows.time, values, strict=True)
        ]
        body = json.dumps({"run_id": run, "metrics": metrics}).encode()
        return request("POST", "/api/2.0/mlflow/runs/log-batch", body)


class Trackio:
    """trackio's own server on SQLite."""

    name = "trackio"
    _PROGRAM = (
        "import sys, trackio.server as s, uvicorn\n"
        "app, _ = s.build_starlette_app_only()\n"
        "uvicorn.run(app, host='127.0.0.1', port=int(sys.argv[1]), log_level='error')\n"
    )

    def __init__(self, python: str) -> None:
        self._python = python

    def start(self, folder: Path) -> Server:
        port = free_port()
        quiet = {"TRACKIO_DIR": str(folder / "trackio"), "TRACKIO_WRITE_TOKEN": "bench"}
        quiet |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        command = [self._python, "-c", self._PROGRAM, str(port)]
        server = Server(command, port, folder / "trackio.log", **quiet)
        server.wait_until("/version")
        return server

    def new_run(self, port: int) -> str:
        return uuid4().hex

    def encode(self, run: str, seq: int, rows: Rows) -> bytes:
        named = {"project": "p", "run": run, "run_id": run, "config": None}
        logs = [
            {
                **named,
                "metrics": {name: values[row] for name, values in rows.series.items()},
                "step": step,
                "log_id": uuid4().hex,
            }
            for row, step in enumerate(rows.step)
        ]
        body = json.dumps({"kwargs": {"logs": logs, "hf_token": None}}).encode()
        return request("POST", "/api/bulk_log", body, x_trackio_write_token="bench")


RIVALS: dict[str, Callable[[str], Any]] = {"mlflow": MLflow, "trackio": Trackio}


def installed(python: str) -> list[Any]:
    """The rivals that this interpreter can import."""
    found = []
    for name, make in RIVALS.items():
        if subprocess.run([python, "-c", f"import {name}"], capture_output=True, check=False).returncode == 0:
            found.append(make(python))
    return found
