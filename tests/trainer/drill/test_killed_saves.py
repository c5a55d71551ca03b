"""A save that is killed at any of its calls leaves a checkpoint to load, and never half a one to be seen."""

from pathlib import Path

import torch

from trainer.checkpoint import CheckpointRing, RingConfig
from trainer.drill.faults_process import _save_and_die


def test_a_save_may_die_before_and_after_each_call_it_makes(tmp_path: Path) -> None:
    parts = {"model": {"w": torch.rand(50)}, "optimizer": {"m": torch.rand(3)}}
    record = CheckpointRing(tmp_path / "ring", RingConfig()).save(parts, {"step": 60}, step=60, attempt=1)
    rounds = _save_and_die(record.path, tmp_path / "room")
    assert {(one["later"], tuple(one["failed"])) for one in rounds} == {(0, ()), (10, ())}
    places = [one["where"] for one in rounds]
    renamed = places.index("after rename in rename")
    assert [one["later"] for one in rounds] == [0] * renamed + [10] * (len(rounds) - renamed)
    assert {"before fsync in write_file", "after write in write_file", "before mkdir in mkdir"} <= {*places}
