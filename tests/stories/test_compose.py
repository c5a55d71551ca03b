"""The stack of docker-compose.yml, for real: a NaN is answered; kills and a cut network lose nothing.

Needs an engine and the public images; Grafana is left out. Where no image can be pulled, ``engine.sh`` beside
this file starts an engine with local ones under the same tags. That takes longer than CI has: do it by hand.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.alerting import eventually, free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PROJECT = "trainhealth-story"
PORTS = ("MONITOR_PORT", "PROMETHEUS_PORT", "ALERTMANAGER_PORT")
IMAGES = ("python:3.11-slim", "postgres:15", "prom/prometheus:v2.53.2", "prom/alertmanager:v0.27.0")
ASK = (
    "import sys, urllib.request as u; t = open('/secrets/operator/token').read();"
    "r = u.Request('http://127.0.0.1:8321/api/v1' + sys.argv[1], headers={'Authorization': 'Bearer ' + t});"
    "print(u.urlopen(r, timeout=30).read().decode())"
)
PATIENCE_S = 180.0
BUILD_S = 1500.0
"""The trainer's packages are large: ten minutes on a busy machine."""


def docker() -> str:
    """A client that finds an engine and Compose; skips, saying what is missing."""
    for client in ("/usr/bin/docker", shutil.which("docker") or ""):
        words = ([client, "info"], [client, "compose", "version"], [client, "image", "inspect", *IMAGES])
        if client and Path(client).exists() and all(_succeeds(one) for one in words):
            if os.geteuid() != 0:
                pytest.skip("only root may kill a container's process")
            return client
    wanted = f"a Docker engine with Compose, and the images {', '.join(IMAGES)}"
    pytest.skip(f'needs {wanted}; as root on Debian: eval "$(tests/stories/engine.sh start)"')


def _succeeds(words: list[str]) -> bool:
    return subprocess.run(words, capture_output=True).returncode == 0


class Stack:
    """The services, in a project of their own and on free ports."""

    def __init__(self, client: str, folder: Path) -> None:
        self._client = client
        self._env = {**os.environ, "STORY": str(folder), **{port: str(free_port()) for port in PORTS}}
        files = ["-f", str(ROOT / "docker-compose.yml"), "-f", str(HERE / "compose.fault.yml")]
        self._compose = [client, "compose", "-p", PROJECT, *files]

    def up(self) -> None:
        self._run([*self._compose, "build"], BUILD_S)
        self.compose("up", "-d", "--wait", "--pull", "never", "--scale", "grafana=0")

    def down(self) -> None:
        self.compose("down", "-v", "--timeout", "5")

    def compose(self, *words: str) -> str:
        return self._run([*self._compose, *words])

    def docker(self, *words: str) -> str:
        return self._run([self._client, *words])

    def name(self, service: str) -> str:
        return f"{PROJECT}-{service}-1"

    def tell(self, path: str) -> Any:
        """What the monitor answers to its operator; None while it does not answer."""
        try:
            return json.loads(self.docker("exec", self.name("monitor"), "python", "-c", ASK, path))
        except AssertionError:
            return None

    def kill(self, service: str) -> None:
        """SIGKILL for the service's first process, and wait until it is back."""
        before = self._look(service, "{{.State.Pid}} {{.State.StartedAt}}")
        os.kill(int(before.split()[0]), signal.SIGKILL)
        eventually(lambda: self._is_back(service, before), f"{service} is back", PATIENCE_S)

    def _is_back(self, service: str, before: str) -> bool:
        is_new = self._look(service, "{{.State.Pid}} {{.State.StartedAt}}") != before
        return is_new and self._look(service, "{{.State.Health.Status}}") == "healthy"

    def _look(self, service: str, form: str) -> str:
        return self.docker("inspect", "-f", form, self.name(service)).strip()

    def _run(self, words: list[str], within_s: float = 600) -> str:
        done = subprocess.run(
            words, env=self._env, cwd=ROOT, capture_output=True, text=True, timeout=within_s
        )
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    client, folder = docker(), tmp_path_factory.mktemp("story")
    for part in (folder, *folder.parents[:2]):
        part.chmod(0o755)  # the trainer reads it as a user of its own
    text = (HERE / "small.toml").read_text().partition("[link]")[0].replace("FOLDER", "/data/run")
    (folder / "config.toml").write_text(text.replace("steps = 60", "steps = 100000"))
    shutil.copy(HERE / "faulty_trainer.py", folder)
    stack = Stack(client, folder)
    try:
        stack.up()
        yield stack
    finally:
        stack.down()


def test_the_monitors_image_adds_at_most_120_megabytes_to_pythons(stack: Stack) -> None:
    """With the public python:3.11-slim, of some 125 MB, that stays below 250."""
    sizes = [
        int(stack.docker("image", "inspect", "-f", "{{.Size}}", image))
        for image in ("trainhealth/monitor:0.1.0", "python:3.11-slim")
    ]
    assert sizes[0] - sizes[1] < 120e6


def commands(stack: Stack) -> list[dict[str, Any]]:
    return list((stack.tell("/runs/radio-7/commands") or {"items": []})["items"])


def step(stack: Stack) -> int:
    told = stack.tell("/runs/radio-7")
    return -1 if told is None or told["step"] is None else told["step"]


def test_a_nan_in_the_trainers_container_is_answered_with_a_rollback_and_resolved(stack: Stack) -> None:
    def has_good() -> bool:
        health = stack.tell("/runs/radio-7/health")
        return health is not None and health["last_good_checkpoint"] is not None

    eventually(has_good, "there is a good checkpoint", PATIENCE_S)
    stack.docker("exec", stack.name("trainer"), "touch", "/data/run/strike")
    eventually(lambda: commands(stack), "a rollback is ordered", PATIENCE_S)
    done = eventually(
        lambda: [one for one in commands(stack) if one["history"][-1]["state"] == "succeeded"],
        "it is obeyed",
        PATIENCE_S,
    )
    assert done[0]["reason"].startswith("TrainHealthNonfinite: ")
    resolved = eventually(
        lambda: (stack.tell("/alerts?status=resolved") or {"items": []})["items"], "resolved", PATIENCE_S
    )
    assert resolved[0]["alertname"] == "TrainHealthNonfinite"


@pytest.mark.parametrize("service", ["monitor", "postgres", "prometheus", "alertmanager", "trainer"])
def test_a_killed_service_comes_back_and_training_goes_on(stack: Stack, service: str) -> None:
    stack.kill(service)
    seen = step(stack)
    eventually(lambda: step(stack) > seen, "new steps arrive", PATIENCE_S)


def test_nothing_is_lost_by_kills_and_by_a_network_that_is_cut_for_30_seconds(stack: Stack) -> None:
    network = (f"{PROJECT}_training", stack.name("trainer"))
    stack.docker("network", "disconnect", *network)
    time.sleep(30)
    stack.docker("network", "connect", *network)
    seen = step(stack)
    eventually(lambda: step(stack) > seen, "what waited arrives", PATIENCE_S)
    steps = stack.tell("/runs/radio-7/series?name=loss")["series"]["loss"]["step"]
    assert steps == list(range(len(steps)))
    sessions = stack.tell("/runs/radio-7/sessions")
    assert [one["missing"] for one in sessions["items"] if one["missing"]] == []
