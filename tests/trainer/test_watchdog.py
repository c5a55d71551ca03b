"""The watchdog: it notices what hangs, says where, frees it or ends the process, and nothing else."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trainer.watchdog import EXIT_HUNG, Hang, Hung, Limits, Watchdog, WatchdogConfig

QUICK = WatchdogConfig(least_s=0.2, first_s=0.2, give_up_after_s=60)


@contextmanager
def watching(config: WatchdogConfig = QUICK) -> Iterator[tuple[Watchdog, list[Hang], list[Hang]]]:
    told: list[Hang] = []
    given_up: list[Hang] = []
    watchdog = Watchdog(config, told.append, given_up.append)
    watchdog.start()
    try:
        yield watchdog, told, given_up
    finally:
        watchdog.stop()


def stand_still_here(seconds: float) -> None:
    threading.Event().wait(seconds)


def test_a_limit_is_a_multiple_of_p99_and_never_below_the_least() -> None:
    limits = Limits(WatchdogConfig(least_s=5, factor=5, first_s=300))
    assert limits.of("forward") == 300
    for _ in range(64):
        limits.learn("forward", 0.01)
        limits.learn("backward", 2.0)
    assert limits.of("forward") == 5
    assert limits.of("backward") == 10


def test_a_phase_that_is_rarely_long_may_be_so_again() -> None:
    limits = Limits(WatchdogConfig(least_s=5))
    for number in range(512):
        limits.learn("report", 40.0 if number == 100 else 0.01)
    assert limits.of("report") == 80


def test_a_hang_is_told_once_with_the_place_and_the_loop_is_freed() -> None:
    with watching() as (watchdog, told, given_up):
        watchdog.enter("fetch")
        with pytest.raises(Hung, match="fetch had not ended after"):
            stand_still_here(20)
    assert [hang.phase for hang in told] == ["fetch"]
    assert "stand_still_here" in told[0].stacks
    assert not given_up


def test_a_lock_that_nobody_opens_is_left_as_well() -> None:
    lock = threading.Lock()
    lock.acquire()
    with watching() as (watchdog, _, _):
        watchdog.enter("forward")
        with pytest.raises(Hung):
            lock.acquire()


def test_the_phase_that_keeps_the_way_back_is_told_of_but_never_cut_short() -> None:
    with watching() as (watchdog, told, _):
        watchdog.enter("report")
        stand_still_here(0.6)
        watchdog.enter("fetch")
    assert [hang.phase for hang in told] == ["report"]


def test_phases_that_end_are_no_hang_and_rest_is_none() -> None:
    with watching() as (watchdog, told, _):
        for _ in range(20):
            watchdog.enter("forward")
            time.sleep(0.02)
        watchdog.rest()
        time.sleep(0.5)
    assert not told


def test_what_cannot_be_freed_is_given_up() -> None:
    with watching(WatchdogConfig(least_s=0.2, first_s=0.2, give_up_after_s=0.3)) as (watchdog, _, given_up):
        watchdog.enter("report")
        stand_still_here(1.0)
        watchdog.enter("fetch")
    assert {hang.phase for hang in given_up} == {"report"}


def test_a_loop_in_another_thread_is_watched_but_not_interrupted() -> None:
    told: list[Hang] = []

    def loop() -> None:
        watchdog = Watchdog(QUICK, told.append, told.append)
        watchdog.start()
        watchdog.enter("fetch")
        stand_still_here(0.6)
        watchdog.stop()

    thread = threading.Thread(target=loop)
    thread.start()
    thread.join()
    assert [hang.phase for hang in told] == ["fetch"]


_HANGS = """
import threading, signal
from trainer.watchdog import Watchdog, WatchdogConfig, end_process
config = WatchdogConfig(least_s=0.2, first_s=0.2, give_up_after_s=GRACE)
def say(hang): print("told", hang.phase, flush=True)
watchdog = Watchdog(config, say, end_process(lambda hang: print("goodbye", flush=True)))
watchdog.start()
watchdog.enter("PHASE")
print("ready", flush=True)
threading.Event().wait(TIME)
watchdog.stop()
print("ended", flush=True)
"""


def run(phase: str, grace: float, seconds: float) -> "subprocess.Popen[str]":
    code = _HANGS.replace("GRACE", str(grace)).replace("PHASE", phase).replace("TIME", str(seconds))
    root = Path(__file__).parents[2]
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root)


def test_a_process_that_cannot_be_freed_ends_with_its_own_code() -> None:
    with run("report", grace=0.3, seconds=60) as process:
        words, _ = process.communicate(timeout=60)
    assert words.split("\n")[:3] == ["ready", "told report", "goodbye"]
    assert process.returncode == EXIT_HUNG


def test_a_process_that_was_stopped_has_not_hung() -> None:
    with run("report", grace=60, seconds=0.1) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(1.0)
        os.kill(process.pid, signal.SIGCONT)
        words, _ = process.communicate(timeout=60)
    assert words == "ended\n"
