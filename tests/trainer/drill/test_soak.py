"""Which faults a soak injects, and when."""

import pytest

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
    drawn = {one.name for one in candidates() if one.id == "R14"}
    assert drawn == {"gradients-times-100"}, "ten times may be clipped and left untold"


@pytest.mark.parametrize(("steps", "every", "said"), [(500, 500, "too short"), (500, 5, "20 steps or more")])
def test_a_soak_without_room_for_a_fault_is_refused(steps: int, every: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        planned(steps, every, seed=0)
