"""A run with everything that the run page must show, told to a monitor through its own API.

600 steps. A NaN gradient is refused at step 120 and its sample set aside, a loss of NaN is applied at step
180, a guard rolls back from 250 to 240, a command from 400 to 350; checkpoints end sealed, good and bad, and
maps are drawn at some of them. Norms of five modules come every twenty steps, one of them NaN at step 160.
"""

import base64
import io
import math
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
import uvicorn
from PIL import Image

from monitor_service.app import create_app
from monitor_service.settings import Settings
from shared.commands import CommandRequest
from shared.events import (
    AnyEvent,
    AttemptStarted,
    Change,
    CheckpointChanged,
    CheckpointState,
    CommandUpdate,
    Finding,
    Incident,
    OpaqueEvent,
    Picture,
    Rollback,
    RunEnded,
    Severity,
    StepSkipped,
)
from shared.exchange import Batch, Columns, RunSpec

BEGIN = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
STEP_S = 0.08
NAN_STEP = 180
REFUSED_STEP = 120
NAN_MODULE_STEP = 160
MODULES = ("unet.stem", "unet.levels.0", "unet.levels.1", "unet.middle", "unet.noise_decoder.final_conv")
DATA_INCIDENT, WEIGHTS_INCIDENT = "step-00000120-1", "step-00000250-2"


def noise(step: int, size: float) -> float:
    """A factor around 1 that is the same each time."""
    return math.exp(random.Random(step).gauss(0, size))


def loss_at(step: int) -> float:
    """A loss that falls from 1.3 to about 0.05."""
    if step == NAN_STEP:
        return math.nan
    return (0.05 + 1.25 * math.exp(-step / 110)) * noise(step, 0.12)


def grad_norm_at(step: int) -> float:
    """Falls from 2.7 to about 0.25."""
    return (0.2 + 2.5 * math.exp(-step / 160)) * noise(step + 1_000_000, 0.2)


def module_norm_at(step: int, place: int) -> float | None:
    """Of one module, every twenty steps."""
    if step % 20:
        return None
    if step == NAN_MODULE_STEP and place == 3:
        return math.nan
    return grad_norm_at(step) * 10.0**-place * noise(step + place, 0.3)


def a_png(step: int, tiles: int) -> str:
    """A smooth picture of so many tiles, as base64; one pixel is red."""
    image = Image.new("RGB", (32 * tiles + 4 * (tiles - 1), 32), "white")
    for x in range(image.width):
        for y in range(32):
            tile, left = divmod(x, 36)
            glow = math.exp(-((left - 10 - tile * 4) ** 2 + (y - 14) ** 2) / (60 + step / 4))
            if left < 32:
                image.putpixel((x, y), (int(60 + 180 * glow), int(20 + 210 * glow), int(90 - 40 * glow)))
    image.putpixel((20, 20), (217, 38, 38))
    content = io.BytesIO()
    image.save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


class Teller:
    """Plays the trainer: sends batches of one session in order."""

    def __init__(self, http: httpx.Client, run: str, begin: datetime = BEGIN) -> None:
        self.http, self.run, self.begin = http, run, begin
        self.seq, self.applied, self.attempt = 0, 0, 1

    def moment(self) -> datetime:
        return self.begin + timedelta(seconds=self.applied * STEP_S)

    def register(self, total_steps: int) -> None:
        spec = RunSpec(total_steps=total_steps, checkpoint_interval_steps=50, started_at=self.begin)
        answer = self.http.put(f"/api/v1/runs/{self.run}", content=spec.model_dump_json(), headers=JSON)
        assert answer.status_code in (200, 201), answer.text

    def send(self, columns: Columns, *events: AnyEvent) -> None:
        self.seq += 1
        batch = Batch(session="s1", seq=self.seq, attempt=self.attempt, columns=columns, events=list(events))
        url = f"/api/v1/runs/{self.run}/exchange"
        answer = self.http.post(url, content=batch.model_dump_json(), headers=JSON)
        assert answer.status_code == 200, answer.text

    def train(self, first: int, last: int, factor: float = 1.0, *, plain: bool = False) -> None:
        """Applied updates ``first`` to ``last - 1``, their loss times ``factor ** k``, or ``plain`` ones."""
        for start in range(first, last, 10_000):
            steps = range(start, min(start + 10_000, last))
            self.send(self._plain(steps) if plain else self._columns(steps, factor))

    def _plain(self, steps: range) -> Columns:
        values = [0.05 + 1 / (step + 1) + step % 97 / 5_000 for step in steps]
        self.applied += len(steps)
        times = [self.begin.timestamp() + step * STEP_S for step in steps]
        return Columns(step=list(steps), time=times, series={"loss": list(values), "grad_norm": list(values)})

    def _columns(self, steps: range, factor: float) -> Columns:
        series: dict[str, list[float | None]] = {
            "loss": [loss_at(step) * factor ** (step - steps[0]) for step in steps],
            "grad_norm": [grad_norm_at(step) * factor ** (step - steps[0]) for step in steps],
            "lr": [1e-4 * min(1.0, (step + 1) / 100) for step in steps],
            "step_seconds": [STEP_S * noise(step + 2_000_000, 0.1) for step in steps],
        }
        for place, module in enumerate(MODULES):
            series[f"grad_norm/{module}"] = [module_norm_at(step, place) for step in steps]
        times = [
            (self.begin + timedelta(seconds=(self.applied + i) * STEP_S)).timestamp()
            for i in range(len(steps))
        ]
        self.applied += len(steps)
        return Columns(step=list(steps), time=times, series=series)

    def tell(self, *events: AnyEvent) -> None:
        self.send(Columns(), *events)

    def start(self, attempt: int, step: int, reason: str) -> None:
        self.attempt = attempt
        self.tell(AttemptStarted(step=step, time=self.moment(), attempt=attempt, reason=reason))

    def picture(
        self, kind: Literal["drawn", "sample"], step: int, number: int, title: str, **more: Any
    ) -> Picture:
        tiles = ("truth", "drawn", "difference") if kind == "drawn" else ("image", "cond 1", "cond 2")
        return Picture(
            step=step,
            time=self.moment(),
            picture=f"{kind}-{step:08d}-{self.attempt}-{number}",
            kind=kind,
            title=title,
            tiles=tiles,
            png=a_png(step, len(tiles)),
            **more,
        )

    def checkpoint(
        self, step: int, state: CheckpointState, failed_check: str | None = None
    ) -> CheckpointChanged:
        return CheckpointChanged(
            step=step,
            time=self.moment(),
            checkpoint=f"step-{step:08d}",
            state=state,
            size_bytes=9_437_184,
            probe_loss=None if failed_check else loss_at(step),
            seconds=0.21,
            failed_check=failed_check,
        )


JSON = {"Content-Type": "application/json"}


def _kept(teller: Teller, steps: range) -> None:
    states = (CheckpointState.SEALED, CheckpointState.GOOD)
    teller.tell(*(teller.checkpoint(step, state) for step in steps for state in states))
    for step in steps[1::2]:
        drawn = (
            teller.picture("drawn", step, number, f"map {name}", reading={"nmse": 60 / (step + 90)})
            for number, name in enumerate(("112_0", "87_1"))
        )
        teller.tell(*drawn)


def _bad_sample(teller: Teller) -> None:
    incident = Incident(
        step=REFUSED_STEP,
        time=teller.moment(),
        incident=DATA_INCIDENT,
        onset_step=REFUSED_STEP,
        guard="nonfinite",
        kind="data",
        message="the gradient is not finite",
        module="unet.mid.attention.to_q",
        sample_ids=("dpm_207",),
        evidence=f"incidents/{DATA_INCIDENT}",
        reading={"loss": 0.47, "grad_norm": math.nan},
    )
    done = {"action": "set aside dpm_207", "steps_lost": 1, "seconds_lost": 0.21, "outcome": "healed"}
    teller.tell(
        incident,
        teller.picture("sample", REFUSED_STEP, 0, "sample dpm_207", incident=DATA_INCIDENT),
        Change(
            step=REFUSED_STEP,
            time=teller.moment(),
            what="quarantine",
            value="dpm_207",
            previous="",
            reason="not finite by itself",
            incident=DATA_INCIDENT,
        ),
        incident.model_copy(update=done),
        OpaqueEvent.model_validate(
            {"type": "lr_searched", "step": REFUSED_STEP, "time": teller.moment(), "found": 3}
        ),
    )


def _first_attempt(teller: Teller) -> None:
    teller.start(1, 0, "start")
    teller.train(0, REFUSED_STEP)
    teller.tell(
        StepSkipped(
            step=REFUSED_STEP,
            time=teller.moment(),
            reason="nonfinite_grad",
            loss=0.47,
            grad_norm=math.nan,
            sample_ids=("dpm_14", "dpm_207"),
        ),
        Finding(
            step=REFUSED_STEP,
            time=teller.moment(),
            guard="nonfinite",
            severity=Severity.ERROR,
            message="the gradient is not finite; first in unet.mid.attention.to_q.weight",
            reading={"loss": 0.47, "grad_norm": math.nan},
        ),
    )
    _bad_sample(teller)
    teller.train(REFUSED_STEP, 244)
    _kept(teller, range(50, 201, 50))
    teller.train(244, 251, factor=1.9)
    teller.tell(
        teller.checkpoint(250, CheckpointState.BAD, "probe"),
        Finding(
            step=247,
            time=teller.moment(),
            guard="spike",
            severity=Severity.WARNING,
            message="loss 9.4 robust deviations above what this batch should give",
            reading={"loss": 1.9, "expected": 0.18, "deviations": 9.4},
        ),
        Finding(
            step=250,
            time=teller.moment(),
            guard="invariants",
            severity=Severity.CRITICAL,
            message="buffer scale_factor changed from 0.873 to 0.31",
            reading={"before": 0.873, "now": 0.31},
        ),
        Rollback(
            step=250,
            time=teller.moment(),
            from_step=250,
            to_step=240,
            source="snapshot",
            reason="weights cannot be trusted after step 243",
            trigger="guard",
            seconds=0.08,
        ),
        Incident(
            step=250,
            time=teller.moment(),
            incident=WEIGHTS_INCIDENT,
            onset_step=244,
            guard="invariants",
            kind="weights",
            message="buffer scale_factor changed from 0.873 to 0.31",
            module="scale_factor",
            action="went back from step 250 to 240 (snapshot)",
            steps_lost=10,
            seconds_lost=0.88,
        ),
    )


def _second_attempt(teller: Teller) -> None:
    teller.start(2, 240, "rollback")
    teller.train(240, 401)
    _kept(teller, range(300, 351, 50))
    request = CommandRequest(
        kind="roll_back", reason="the maps look washed out", issued_by="ana", to_step=350
    )
    answer = teller.http.post(
        f"/api/v1/runs/{teller.run}/commands", content=request.model_dump_json(), headers=JSON
    )
    assert answer.status_code in (201, 202), answer.text
    command = answer.json()["id"]
    teller.tell(
        CommandUpdate(step=400, time=teller.moment(), command=command, state="accepted"),
        Rollback(
            step=400,
            time=teller.moment(),
            from_step=400,
            to_step=350,
            source="checkpoint",
            checkpoint="step-00000350",
            reason="the maps look washed out",
            trigger="command",
            command=command,
            seconds=0.42,
        ),
        CommandUpdate(
            step=350, time=teller.moment(), command=command, state="succeeded", message="at step 350"
        ),
    )


def tell_whole_story(http: httpx.Client, run: str = "demo", begin: datetime = BEGIN) -> Teller:
    """The run described above, to its end."""
    teller = Teller(http, run, begin)
    teller.register(600)
    _first_attempt(teller)
    _second_attempt(teller)
    teller.start(3, 350, "rollback")
    teller.train(350, 600)
    _kept(teller, range(400, 551, 50))
    teller.tell(
        teller.checkpoint(600, CheckpointState.SEALED),
        RunEnded(step=600, time=teller.moment(), status="finished", message="all 600 steps done"),
    )
    return teller


@contextmanager
def serving(folder: Path) -> Iterator[httpx.Client]:
    """A monitor on a free port of loopback, as a browser can reach it."""
    app = create_app(Settings(database_url=f"sqlite:///{folder}/monitor.db"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=2))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the monitor did not start"
            time.sleep(0.02)
        # uvicorn ends an idle connection after 5 s, when httpx would just take it again
        short = httpx.Limits(keepalive_expiry=1.0)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with httpx.Client(base_url=url, timeout=30, limits=short) as http:
            yield http
        app.state.monitor.newsroom.close()
        server.should_exit = True
        thread.join(timeout=10)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[httpx.Client]:
    """A monitor that knows nothing yet."""
    with serving(tmp_path) as http:
        yield http


@pytest.fixture(scope="session")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A monitor to which the story of run ``demo`` was told; for tests that only read."""
    with serving(tmp_path_factory.mktemp("told")) as http:
        tell_whole_story(http, "demo")
        yield http


@pytest.fixture
def teller() -> type[Teller]:
    return Teller


@pytest.fixture
def kept() -> Any:
    """Tell that checkpoints were kept and are good."""
    return _kept
