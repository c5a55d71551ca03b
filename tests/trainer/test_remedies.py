"""What recovery changes beside the weights is told once, and in force in the next process, too."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from shared.events import Change
from trainer.checkpoint import Easing, RestoreSnapshot
from trainer.record import RunRecord
from trainer.remedies import Remedies


class Data:
    """Remembers what it was told to leave out and to pass over."""

    def __init__(self) -> None:
        self.out: list[str] = []
        self.passed = 0

    def quarantine(self, ids: Any) -> None:
        self.out += ids

    def skip(self, num_batches: int) -> None:
        self.passed += num_batches


class Run:
    """A process of a run, with as much of it as remedies touch."""

    def __init__(self, record: RunRecord | None = None) -> None:
        self.told: list[Change] = []
        self.record = record or RunRecord()
        self.rate, self.clip, self.data = torch.ones(()), torch.ones(()), Data()
        meters = {"loss": SimpleNamespace(clip_factor=self.clip)}
        self.state: Any = SimpleNamespace(meters=meters, loader=self.data, step=100, iteration=103)
        reporter: Any = SimpleNamespace(record=self.record, change=self.told.append)
        self.remedies = Remedies(self.state, reporter, [self.rate], returns_over=50)


@pytest.fixture
def run() -> Run:
    return Run()


def test_a_sample_is_set_aside_and_told_once_and_stays_out_in_the_next_process(run: Run) -> None:
    for _ in range(2):
        run.remedies.quarantine(["a", "b"], "not finite", "incident-1")
    assert [(one.what, one.value) for one in run.told] == [("quarantine", "a"), ("quarantine", "b")]
    assert Run(run.record).data.out == ["a", "b"]


def test_a_rung_turns_rates_down_and_passes_over_data_where_the_run_has_arrived(run: Run) -> None:
    run.remedies.go_along_with(RestoreSnapshot(100, Easing(lr=0.5, clip=0.7), past=110), "bad steps", None)
    assert (float(run.rate), float(run.clip)) == pytest.approx((0.5, 0.7))
    assert run.data.passed == 7
    assert [(one.what, one.value) for one in run.told][-1] == ("data_window", "103..109")
    again = Run(run.record)
    again.remedies.follow()
    assert float(again.rate) == 0.5, "and the next process has them from its first step on"


def test_a_mere_way_back_changes_nothing(run: Run) -> None:
    run.remedies.go_along_with(RestoreSnapshot(100), "corrupt", None)
    assert (float(run.rate), run.data.passed, run.told) == (1.0, 0, [])


def test_what_was_turned_down_comes_back_and_only_then_may_be_eased_again(run: Run) -> None:
    assert run.remedies.ease(100, Easing(lr=0.7), "divergence is predicted")
    assert not run.remedies.ease(101, Easing(lr=0.7), "and again")
    run.state.step = 150
    run.remedies.follow()
    assert float(run.rate) == 1.0
    assert run.told[-1].is_undo
    assert run.remedies.ease(151, Easing(lr=0.7), "once more")
