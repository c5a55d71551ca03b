"""The demo: a watched training of a small RadioDiff that survives two faults and obeys one order.

Starts the monitor as a program of its own, trains under its eyes, breaks things on purpose, and says at the
end whether the story went as it should.
"""

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from trainer.claim import claimed
from trainer.config import Config, load
from trainer.drill.faults import corrupt_weights, nan_gradient
from trainer.errors import ConfigError
from trainer.loop import Loop, Observer
from trainer.passes import Phase
from trainer.pipeline import train
from trainer.summary import Summary

log = logging.getLogger(__name__)

DEMO_LOCK = "demo.lock"
TINY = Path(__file__).parents[2] / "deploy/configs/tiny.toml"


def demo(
    folder: Path,
    port: int,
    *,
    config: Path = TINY,
    resume: bool = False,
    progress: Observer | None = None,
    hold: bool = False,
) -> Summary:
    """Run it; answers the summary, with what fell short of the story under ``fell_short``.

    Args:
        folder: the run's folder; one that exists is kept beside it as ``.previous``, unless ``resume``.
        port: of the monitor on loopback; 0 takes any free one.
        config: what is trained; its name, folder and monitor are the demo's own.
        hold: keep the monitor up until Ctrl-C.

    Raises:
        ConfigError: the folder or the port will not do.
    """
    _refuse_if_taken(port)
    _make_room(folder, resume)
    with claimed(folder / DEMO_LOCK), monitor(folder / "monitor.db", port) as url:
        log.info("the monitor listens; the page of the run is %s/runs/demo", url)
        chosen = _configure(load(config), folder, url)
        story = [] if resume else _story(chosen, url)
        always = [progress] if progress else []
        summary = train(chosen, lambda stage: [*(story if stage.run == chosen.run.name else ()), *always])
        assert isinstance(summary, Summary), "the demo is one process, and trains both stages"
        if not resume:
            summary.fell_short = fell_short(summary)
            summary.save(folder)
        log.info(
            "left behind: %s, %s, %s", *(folder / name for name in ("summary.json", "maps.png", "monitor.db"))
        )
        if hold:
            _wait_for_ctrl_c(url)
    return summary


def fell_short(summary: Summary) -> list[str]:
    """What of the story did not happen."""
    triggers = [one.trigger for one in summary.rollbacks]
    expected = {
        "the run did not finish": summary.status == "finished",
        "the NaN gradient was not refused": summary.skipped_steps >= 1,
        "the corrupted weights were not rolled back": "guard" in triggers,
        "the ordered rollback was not carried out": "command" in triggers,
        "the drawn maps are no better than the mean map": summary.nmse < summary.nmse_mean_map,
    }
    return [words for words, held in expected.items() if not held]


@contextmanager
def monitor(database: Path, port: int) -> Iterator[str]:
    """The monitor as a program of its own on loopback; answers its address.

    Raises:
        ConfigError: it did not start, with its own words.
    """
    words = [sys.executable, "-m", "monitor_service", "serve", "--json", "--port", str(port)]
    words += ["--database-url", f"sqlite:///{database}"]
    log_file = database.with_suffix(".log")
    with log_file.open("w") as errors:
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )
    assert process.stdout is not None
    try:
        greeting = process.stdout.readline()
        if not greeting:
            raise ConfigError(f"the monitor did not start: {_detail(log_file)}")
        yield json.loads(greeting)["url"]
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


class OrderRollback:
    """Orders one rollback through the monitor's REST interface, as a person would."""

    def __init__(self, url: str, run: str, at_step: int) -> None:
        self._url, self._at_step = f"{url}/api/v1/runs/{run}/commands", at_step
        self._ordered = False

    def __call__(self, phase: Phase, loop: Loop) -> None:
        """Called by the loop at the start of every phase; the request does not hold it up."""
        if not self._ordered and phase is Phase.FETCH and loop.state.step >= self._at_step:
            self._ordered = True
            threading.Thread(target=self._order, daemon=True).start()

    def _order(self) -> None:
        wish = {"kind": "roll_back", "reason": "ordered in the demo through REST", "issued_by": "demo"}
        answer = httpx.post(self._url, json=wish, timeout=30)
        log.info("ordered a rollback: %s", answer.json().get("id", answer.text))


def _story(config: Config, url: str) -> list[Observer]:
    steps = config.diffusion.training.steps
    return [
        nan_gradient(steps * 30 // 100),
        corrupt_weights(steps * 55 // 100),
        OrderRollback(url, config.run.name, steps * 80 // 100),
    ]


def _configure(config: Config, folder: Path, url: str) -> Config:
    run = config.run.model_copy(update={"name": "demo", "folder": folder})
    return config.model_copy(update={"run": run, "link": config.link.model_copy(update={"url": url})})


def _refuse_if_taken(port: int) -> None:
    """Before anything is moved: the monitor would find it out when the earlier demo is out of its place."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(
                f"the monitor did not start: port {port} of 127.0.0.1: {os.strerror(error.errno or 0)}; "
                "--port 0 takes any free one"
            ) from error


def _make_room(folder: Path, resume: bool) -> None:
    if folder.exists():
        with claimed(folder / DEMO_LOCK):
            pass  # or a demo that still shows its page would lose the ground under it
    if resume or not folder.exists():
        log.info(
            "%s", f"going on in {folder}" if resume and folder.exists() else f"starting clean in {folder}"
        )
    else:
        previous = folder.with_name(folder.name + ".previous")
        if previous.exists():
            _remove(previous)
        folder.rename(previous)
        log.info(
            "starting clean in %s; what was there is in %s now (RESUME=1 goes on instead)", folder, previous
        )
    folder.mkdir(parents=True, exist_ok=True)


def _remove(folder: Path) -> None:
    """Delete an earlier demo's folder, and nothing that is not one."""
    if not (folder / "monitor.db").exists():
        raise ConfigError(f"{folder} is in the way and is no earlier demo; move it elsewhere")
    shutil.rmtree(folder)


def _detail(log_file: Path) -> str:
    """The monitor's own last words."""
    lines = log_file.read_text().strip().splitlines() or ["it said nothing"]
    try:
        return str(json.loads(lines[-1])["detail"])
    except (ValueError, KeyError):
        return lines[-1]


def _wait_for_ctrl_c(url: str) -> None:
    log.info("look at %s/runs/demo; Ctrl-C ends the monitor", url)
    with suppress(KeyboardInterrupt):
        threading.Event().wait()
