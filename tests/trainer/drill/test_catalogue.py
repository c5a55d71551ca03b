"""What can be drilled, and how a drill is judged."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from shared.events import Finding, Severity, StepSkipped
from trainer.build import _WELL_SCALED
from trainer.config import load
from trainer.data.radiomaps import RadioMaps
from trainer.drill import command, faults_data
from trainer.drill.catalogue import CATALOGUE, find
from trainer.drill.ground import DRILL_CONFIG, changed
from trainer.drill.judge import Expectation, Facts, Judgement, Twin, judge
from trainer.drill.table import as_table, summary
from trainer.errors import ConfigError
from trainer.record import RunRecord

ROW = Judgement(id="F09", name="nan-gradient", what="NaN in one gradient")
TWIN = Twin(loss=2.0, seconds=1.0, findings=0, hashes={"model/w": "1"})


def test_every_fault_and_every_cause_has_a_drill_or_says_why_not() -> None:
    faults = {f"F{number:02}" for number in range(1, 43)}
    causes = {f"R{number:02}" for number in range(1, 27)}
    assert {one.id for one in CATALOGUE if one.fault} == faults | causes
    assert all(one.fault or one.awaits or one.idle for one in CATALOGUE)
    ground = load(DRILL_CONFIG)
    assert all(changed(ground, one.changes) for one in CATALOGUE)
    assert len({one.name for one in CATALOGUE}) == len(CATALOGUE)


def test_a_drill_is_found_by_its_id_and_by_its_name() -> None:
    assert [one.name for one in find("f09")] == ["nan-gradient"]
    assert [one.id for one in find("nan-gradient")] == ["F09"]
    assert len(find("F36")) == 3
    with pytest.raises(ConfigError, match="--list"):
        find("F99")


def facts(**changes: Any) -> Facts:
    skip = StepSkipped(step=63, reason="nonfinite_grad", loss=1.0, grad_norm=float("nan"))
    usual: dict[str, Any] = {
        "struck_at": 63,
        "record": RunRecord(skips=[skip], skipped_steps=1),
        "ended": ["finished"],
        "final_loss": 2.01,
        "hashes": {},
    }
    return Facts(**(usual | changes))


def judged(found: Facts, places: str = "P", **expected: Any) -> Judgement:
    return judge(ROW, found, Expectation(places, **expected), TWIN, tolerance=0.05)


def test_a_fault_refused_in_its_own_step_is_detected_and_healed() -> None:
    row = judged(facts())
    assert (row.place, row.by, row.steps_late, row.healed_by) == ("P", "nonfinite_grad", 0, "refused 1")
    assert (row.is_detected, row.is_healed, row.fell_short) == (True, True, [])


def finding(step: int, guard: str = "nonfinite") -> RunRecord:
    return RunRecord(findings=[Finding(step=step, guard=guard, severity=Severity.CRITICAL, message="bad")])


@pytest.mark.parametrize(
    ("changes", "expected", "said"),
    [
        ({"struck_at": None}, {}, "did not strike"),
        ({"record": RunRecord()}, {}, "nobody saw it"),
        ({"record": finding(62)}, {}, "nobody saw it"),
        ({"record": finding(63, "data")}, {}, "seen at W by data"),
        ({"record": finding(70)}, {"places": "S", "late": 5}, "7 steps late"),
        ({}, {"words": "conv1"}, "names 'conv1'"),
        ({"ended": ["RunStopped: no rung"]}, {}, "did not finish"),
        ({"final_loss": 2.2}, {}, "final loss is 2.2"),
        ({"final_loss": float("nan")}, {}, "final loss is nan"),
        ({}, {"ends": "stopped"}, "should have stopped"),
        ({"broke": ("it was loaded",)}, {}, "it was loaded"),
    ],
)
def test_what_falls_short_is_said(changes: dict[str, Any], expected: dict[str, Any], said: str) -> None:
    row = judged(facts(**changes), **{"places": "P", **expected})
    assert len(row.fell_short) == 1
    assert said in row.fell_short[0]
    assert "FELL SHORT" in as_table([row])


def harmless(**changes: Any) -> Judgement:
    quiet: dict[str, Any] = {"record": RunRecord(), "hashes": TWIN.hashes, "final_loss": 2.0}
    return judged(facts(**(quiet | changes)), "", means="does no harm")


def test_what_can_do_no_harm_must_leave_the_twins_very_state_and_no_word() -> None:
    row = harmless()
    assert (row.is_detected, row.is_healed, row.fell_short) == (True, True, [])
    assert "does no harm" in as_table([row])
    assert harmless(hashes={"model/w": "2"}).fell_short == ["the run did not end equal to the twin"]
    assert "says: bad" in harmless(record=finding(70)).fell_short[0]


def test_faults_and_causes_are_counted_apart() -> None:
    cause = judged(facts()).model_copy(update={"id": "R03"})
    assert summary([judged(facts()), cause]).splitlines() == [
        "1 of 1 faults detected, 1 healed, 0 stopped by design",
        "1 of 1 causes detected, 1 healed, 0 stopped by design",
    ]


def test_a_stop_by_design_counts_as_such() -> None:
    row = judged(facts(ended=["RunStopped: no gradient"], final_loss=float("nan")), ends="stopped")
    assert row.fell_short == []
    assert summary([row]) == "1 of 1 faults detected, 0 healed, 1 stopped by design"


def asked(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(words)


def test_the_list_names_every_drill() -> None:
    _, words, went_well = command.drill(asked("--list"))
    assert went_well
    assert len(words.splitlines()) == len(CATALOGUE)


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(ConfigError, match="holds no earlier drills"):
        command.drill(asked("F09", "--folder", str(tmp_path)))
    with pytest.raises(ConfigError, match="--all or --list"):
        command.drill(asked())


@pytest.mark.parametrize("damage", ["nan_pixel", "infinite_condition", "a_million_times", "eight_bits"])
def test_a_damaged_item_is_refused_where_it_is_loaded_and_a_whole_one_is_not(damage: str) -> None:
    item = RadioMaps(load(DRILL_CONFIG).data, "train")[0]
    assert _WELL_SCALED(item) is None
    getattr(faults_data, damage)(item)
    assert _WELL_SCALED(item) is not None
