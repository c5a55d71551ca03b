"""Which faults a soak injects, and that a run which meets them ends as well as its twin."""

import argparse
from pathlib import Path

import pytest

from trainer.drill import command
from trainer.drill.soak import candidates, planned
from trainer.errors import ConfigError


def test_a_seed_fixes_which_faults_come_and_when() -> None:
    plan = [(one.drill.name, one.fault.at_step) for one in planned(5000, 500, seed=3)]
    assert plan == [(one.drill.name, one.fault.at_step) for one in planned(5000, 500, seed=3)]
    assert plan != [(one.drill.name, one.fault.at_step) for one in planned(5000, 500, seed=4)]
    assert [at // 500 for _, at in plan] == list(range(1, 10))


def test_a_soak_draws_from_many_faults_and_none_that_stops() -> None:
    assert len({one.id for one in candidates()}) >= 15
    assert all(one.expect.ends == "finished" for one in candidates())


@pytest.mark.parametrize(("steps", "every", "said"), [(500, 500, "too short"), (500, 5, "20 steps or more")])
def test_a_soak_without_room_for_a_fault_is_refused(steps: int, every: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        planned(steps, every, seed=0)


@pytest.mark.slow
def test_a_soaked_run_ends_as_well_as_its_twin(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    words = ["soak", "--steps", "150", "--every", "32", "--folder", str(tmp_path / "soak"), "--seed", "1"]
    facts, said, went_well = command.drill(parser.parse_args(words))
    assert went_well, said
    assert len(facts["waves"]) == 2
    assert all(one["struck_at"] and one["by"] for one in facts["waves"])
