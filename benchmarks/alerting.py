"""Prometheus and Alertmanager as processes on loopback, with the configuration that is shipped."""

import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

DEPLOY = Path(__file__).parents[1] / "deploy"
PROGRAMS = ("prometheus", "prometheus-alertmanager")


def missing() -> list[str]:
    """Programs of the two packages that are not installed here."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Alerting:
    """Both programs. Nothing of the shipped files is changed but names of machines, ports and folders.

    ``monitor`` is HOST:PORT of a monitor that asks for no token, on loopback.
    """

    def __init__(self, folder: Path, monitor: str) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._places = {
            "monitor:8321": monitor,
            "alertmanager:9093": f"127.0.0.1:{free_port()}",
            "localhost:9090": f"127.0.0.1:{free_port()}",
            "/etc/prometheus/secrets": str(folder),
            "/etc/alertmanager/secrets": str(folder),
            "/etc/prometheus/rules": str(DEPLOY / "prometheus/rules"),
        }
        (folder / "token").write_text("not needed on loopback")
        self.alertmanager = f"http://{self._places['alertmanager:9093']}"
        self.prometheus = f"http://{self._places['localhost:9090']}"
        self._processes = [self._start_alertmanager(), self._start_prometheus()]

    def wait(self, patience_s: float = 60.0) -> None:
        """Until both answer and the monitor has been scraped; Prometheus takes 5 s to look for it."""
        deadline = time.monotonic() + patience_s
        while not (self.is_ready(self.alertmanager) and self.ask('up{job="trainhealth"} == 1')):
            assert time.monotonic() < deadline, f"not ready: see the logs in {self._folder}"
            time.sleep(0.05)

    def ask(self, expr: str) -> list[dict[str, Any]]:
        """What Prometheus answers to an expression now; nothing while it is not ready yet."""
        try:
            answer = httpx.get(f"{self.prometheus}/api/v1/query", params={"query": expr}, timeout=10)
        except httpx.TransportError:
            return []
        if answer.status_code == 503:  # it still reads what it stored: a plain text
            return []
        told = answer.json()
        assert told["status"] == "success", f"{expr}: {told}"
        return list(told.get("data", {}).get("result", []))

    def firing(self, alert: str) -> bool:
        """Whether Prometheus says that this alert fires."""
        return bool(self.ask(f'ALERTS{{alertname="{alert}",alertstate="firing"}}'))

    def close(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(20)

    def is_ready(self, url: str) -> bool:
        try:
            return httpx.get(f"{url}/-/ready", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def _start_alertmanager(self) -> subprocess.Popen[bytes]:
        config = self._moved("alertmanager/alertmanager.yml")
        listen = f"--web.listen-address={self._places['alertmanager:9093']}"
        storage = f"--storage.path={self._folder / 'alertmanager'}"
        return self._start("prometheus-alertmanager", config, storage, listen, "--cluster.listen-address=")

    def _start_prometheus(self) -> subprocess.Popen[bytes]:
        config = self._moved("prometheus/prometheus.yml")
        listen = f"--web.listen-address={self._places['localhost:9090']}"
        return self._start("prometheus", config, f"--storage.tsdb.path={self._folder / 'tsdb'}", listen)

    def _moved(self, shipped: str) -> Path:
        """The shipped file with the places of this test."""
        text = (DEPLOY / shipped).read_text()
        for name, here in self._places.items():
            text = text.replace(name, here)
        file = self._folder / Path(shipped).name
        file.write_text(text)
        return file

    def _start(self, program: str, config: Path, *flags: str) -> subprocess.Popen[bytes]:
        with (self._folder / f"{program}.log").open("w") as log:
            return subprocess.Popen([program, f"--config.file={config}", *flags], stdout=log, stderr=log)


def eventually(is_so: Callable[[], Any], what: str, patience_s: float = 60.0) -> Any:
    """Wait until ``is_so`` answers something true, and answer it."""
    deadline = time.monotonic() + patience_s
    while not (answer := is_so()):
        assert time.monotonic() < deadline, f"still not so after {patience_s:g} s: {what}"
        time.sleep(0.02)
    return answer
