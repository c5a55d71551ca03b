"""Both programs as processes on loopback, and what they tell afterwards."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from trainer.checkpoint import Stored, list_records, read

ROOT = Path(__file__).parents[2]
RUN = "radio-7"
STEPS = 60
PATIENCE_S = 120.0
"""Deadline of every wait: long, since it is reached only by what is broken, on a machine that may be busy."""


def until(is_so: Callable[[], Any], what: str) -> Any:
    """Wait until ``is_so`` answers something true, and answer it."""
    deadline = time.monotonic() + PATIENCE_S
    while not (answer := is_so()):
        assert time.monotonic() < deadline, f"still not so after {PATIENCE_S:g} s: {what}"
        time.sleep(0.02)
    return answer


class Program:
    """One process of ours; what it says goes to files."""

    def __init__(self, words: list[str], folder: Path, **environment: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob("*.err")))
        self.words_file, self.log_file = folder / f"{number}.out", folder / f"{number}.err"
        with self.words_file.open("w") as out, self.log_file.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *words],
                cwd=ROOT,
                stdout=out,
                stderr=err,
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            )

    @property
    def words(self) -> str:
        """What it has said on standard output so far."""
        return self.words_file.read_text()

    @property
    def log(self) -> str:
        """What it has said on standard error so far."""
        return self.log_file.read_text()

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, how: signal.Signals | None = None) -> int:
        """Its exit code, after a signal or of its own accord."""
        if how is not None:
            self.send(how)
        return self.process.wait(PATIENCE_S)

    def make_sure_it_is_gone(self) -> None:
        if self.is_running:
            self.process.kill()
        self.process.wait()


class Monitor(Program):
    """``python -m monitor_service serve``, listening."""

    def __init__(self, folder: Path, database: Path, port: int, settings: dict[str, str]) -> None:
        words = ["monitor_service", "serve", "--json", "--port", str(port)]
        super().__init__([*words, "--database-url", f"sqlite:///{database}"], folder, **settings)
        until(lambda: self.words.endswith("\n") or not self.is_running, "the monitor greets")
        assert self.is_running, self.log
        self.url: str = json.loads(self.words)["url"]
        self.port = httpx.URL(self.url).port

    def tell(self, path: str = "", run: str = RUN, **wanted: str | int) -> Any:
        """What it says about a run."""
        answer = httpx.get(f"{self.url}/api/v1/runs/{run}{path}", params=wanted, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def step(self, run: str = RUN) -> int:
        """The last step it knows of; -1 if none."""
        answer = httpx.get(f"{self.url}/api/v1/runs/{run}", timeout=30)
        step = answer.json()["step"] if answer.status_code == 200 else None
        return -1 if step is None else step

    def events(self, run: str = RUN, **wanted: str) -> list[dict[str, Any]]:
        """What the trainer reported, in the order of arrival."""
        return [event["data"] for event in self.tell("/events", run, limit=1000, **wanted)["items"]]

    def curves(self, run: str = RUN, attempt: str = "effective") -> dict[str, list[tuple[int, Any]]]:
        """All series as (step, value), but for those that measure time."""
        names = [name for name in self.tell(run=run)["series"] if not name.endswith("_seconds")]
        query = [("name", name) for name in names] + [("attempt", attempt)]
        answer = httpx.get(f"{self.url}/api/v1/runs/{run}/series", params=query, timeout=30)
        answer.raise_for_status()
        series = answer.json()["series"]
        return {name: list(zip(series[name]["step"], series[name]["value"], strict=True)) for name in names}


class Trainer(Program):
    """``python -m trainer run``."""

    def checkpoint_changes(self) -> list[tuple[str, str]]:
        """Each checkpoint of the diffusion and the state it reached, as the trainer itself logged it."""
        return re.findall(rf"run {RUN}: (step-\S+) is (\w+)", self.log)

    def has_sealed(self, step: int) -> bool:
        """Whether a checkpoint of this step or a later one is on disk; fails if the trainer ended before."""
        sealed = [name for name, state in self.checkpoint_changes() if state == "sealed"]
        is_so = any(int(name.split("-")[1]) >= step for name in sealed)
        assert is_so or self.is_running, f"the trainer ended before step {step}:\n{self.log}"
        return is_so


class House:
    """A folder, the training in it, and the programs that a story starts there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run_folder = folder / "run"
        self.database = folder / "monitor.db"
        self._programs: list[Program] = []

    def config(self, url: str = "", flush_s: float = 0.1) -> Path:
        """The small training, in this house, reporting to ``url``."""
        text = (Path(__file__).parent / "small.toml").read_text()
        for placeholder, value in (("FOLDER", self.run_folder), ("URL", url), ('"FLUSH_S"', flush_s)):
            text = text.replace(placeholder, str(value))
        path = self.folder / "small.toml"
        path.write_text(text)
        return path

    def monitor(self, port: int = 0, **settings: str) -> Monitor:
        return self._keep(Monitor(self.folder / "said", self.database, port, settings))

    def trainer(self, url: str = "", flush_s: float = 0.1) -> Trainer:
        config = self.config(url, flush_s)
        return self._keep(Trainer(["trainer", "run", str(config)], self.folder / "said"))

    def program(self, *words: str) -> Program:
        return self._keep(Program(list(words), self.folder / "said"))

    def has_checkpoint(self, step: int) -> bool:
        """Whether one of this step of the diffusion is complete on disk."""
        return any((self.run_folder / "checkpoints").glob(f"step-{step:08d}-*"))

    def last_checkpoint(self, stage: str = "") -> Stored:
        """The last state of a stage, verified."""
        return read(list_records(self.run_folder / stage / "checkpoints")[0].path)

    def close(self) -> None:
        for program in self._programs:
            program.make_sure_it_is_gone()

    def _keep(self, program: Any) -> Any:
        self._programs.append(program)
        return program


@contextmanager
def _house(folder: Path) -> Iterator[House]:
    house = House(folder)
    try:
        yield house
    finally:
        house.close()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with _house(tmp_path) as house:
        yield house


@pytest.fixture(scope="session")
def house_at() -> Callable[[Path], AbstractContextManager[House]]:
    """A house for several tests; leaving its block ends what runs in it."""
    return _house


class Undisturbed:
    """How the same training goes when nothing happens: what every disturbed one has to equal."""

    def __init__(self, house: House) -> None:
        monitor = house.monitor()
        trainer = house.trainer(monitor.url)
        assert trainer.end() == 0, trainer.log
        self.curves = monitor.curves()
        self.events = monitor.events()
        self.summary = json.loads((house.run_folder / "summary.json").read_text())
        self.last = {stage: house.last_checkpoint(stage) for stage in ("", "first-stage")}
        assert monitor.end(signal.SIGTERM) == 0

    def differences(self, house: House) -> list[str]:
        """Tensors and facts in which the last state in ``house`` is not, bit for bit, the one here."""
        return [
            f"{stage or 'diffusion'}: {name}"
            for stage, expected in self.last.items()
            for name in _differences(expected, house.last_checkpoint(stage))
        ]


def _differences(expected: Stored, found: Stored) -> list[str]:
    tensors, theirs = _tensors(expected), _tensors(found)
    facts, their_facts = _facts(expected), _facts(found)
    return [
        *(n for n in sorted(tensors | theirs) if not _same_bits(tensors.get(n), theirs.get(n))),
        *(n for n in sorted(facts | their_facts) if facts.get(n) != their_facts.get(n)),
    ]


def _tensors(stored: Stored) -> dict[str, torch.Tensor]:
    return {f"{part}/{name}": tensor for part, ts in stored.parts.items() for name, tensor in ts.items()}


def _facts(stored: Stored) -> dict[str, Any]:
    """With the memory of each guard as a fact of its own."""
    guards = {f"guards/{name}": memory for name, memory in stored.facts["guards"].items()}
    return {name: fact for name, fact in stored.facts.items() if name != "guards"} | guards


def _same_bits(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    if a is None or b is None or (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return a.numpy().tobytes() == b.numpy().tobytes()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Undisturbed]:
    with _house(tmp_path_factory.mktemp("undisturbed")) as house:
        yield Undisturbed(house)


@pytest.fixture(scope="session", name="until")
def until_() -> Callable[[Callable[[], Any], str], Any]:
    return until
