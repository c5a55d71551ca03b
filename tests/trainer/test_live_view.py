"""The panel on a terminal: what a person sees of a healthy training, and of one with a fault on the way."""

import io
from typing import Any

import pytest
from rich.console import Console
from rich.live import Live

from trainer import live_view
from trainer.drill.faults import nan_gradient, nan_weight
from trainer.live_view import LiveView, bars, lines, status


def test_a_training_is_drawn_with_its_progress_its_numbers_and_its_way_back(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_view, "_PAUSE_S", 0.0)
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with Live(console=console, auto_refresh=False) as live:
        loop = lab.loop(observers=[LiveView(live, bars(console))])
        lab.steps(loop, 2)
        with console.capture() as drawn:
            console.print(live.renderable)
    said = drawn.get()
    assert f"{loop.reporter.run}: healthy" in said
    assert f"/{loop.total_steps}" in said
    assert "loss " in said
    assert "no checkpoint yet" in said


def test_a_refused_step_is_counted_and_told(lab: Any) -> None:
    loop = lab.loop(config=lab.without_replay(), observers=[nan_gradient(5)])
    lab.steps(loop, 7)
    told = [text.plain for text in lines(loop)]
    assert "1 refused" in told[1]
    assert told[-1].startswith("step 5  error  nonfinite: ")
    assert "nan" in told[-1]


def test_a_corrupt_state_is_recovering_until_it_is_past_where_it_turned(lab: Any) -> None:
    loop = lab.loop(observers=[nan_weight(15)])
    lab.steps(loop, 10)
    assert status(loop) == "healthy"
    while not loop.reporter.record.rollbacks:
        loop.step()
    assert status(loop) == "recovering"
    while loop.state.step < loop.reporter.record.rollbacks[-1].from_step:
        loop.step()
    assert status(loop) == "suspect"
