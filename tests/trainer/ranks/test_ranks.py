"""Two ranks train as one: they refuse, go back, obey, stop and resume together, and tell it once."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.checkpoint import list_records
from trainer.data.batches import LoadingConfig, Share
from trainer.data.errors import DataError
from trainer.data.loading import Loader
from trainer.errors import ConfigError
from trainer.ranks import joined

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
PATIENCE_S = 280.0


def start(*words: str, log: Path, restarts: int = 0) -> subprocess.Popen[bytes]:
    """Two ranks under torchrun."""
    command = ["--standalone", "--nproc-per-node", "2", "--max-restarts", str(restarts), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *command],
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def end(process: subprocess.Popen[bytes], log: Path) -> None:
    try:
        assert process.wait(PATIENCE_S) == 0, log.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks saw in all the checks of ``world.py``."""
    folder = tmp_path_factory.mktemp("world")
    log = folder / "log"
    end(start(str(HERE / "world.py"), str(folder), log=log), log)
    return [json.loads((folder / f"rank-{rank}.json").read_text()) | {"folder": folder} for rank in (0, 1)]


def both(world: list[dict[str, Any]], check: str, *, apart: tuple[str, ...] = ()) -> dict[str, Any]:
    """What both saw in a check; they must agree but for what is each rank's own, as a guard's memory is."""
    one, other = (seen[check] for seen in world)
    apart = ("memory", *apart)
    assert {k: v for k, v in one.items() if k not in apart} == {
        k: v for k, v in other.items() if k not in apart
    }
    return dict(one)


@pytest.mark.slow
def test_two_ranks_learn_what_one_learns_from_the_same_batches(world: Any, lab: Any) -> None:
    sys.path.insert(0, str(HERE))
    try:
        from world import plain, weights  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(HERE))
    alone = weights(lab.run("plain", model=plain(lab), steps=12))
    shared = both(world, "same_as_one")["weights"]
    start = weights(lab.loop("start", model=plain(lab), steps=12))
    for name, values in alone.items():
        torch.testing.assert_close(torch.tensor(shared[name]), torch.tensor(values), rtol=1e-5, atol=1e-6)
    assert alone["head.weight"] != start["head.weight"]


@pytest.mark.slow
def test_two_ranks_that_share_the_weights_learn_the_same(world: Any) -> None:
    whole, shared = both(world, "same_as_one"), both(world, "sharded")
    assert shared["shards"]["head.weight"] == "DTensor"
    assert shared["shards"]["encoder.weight"] == "Parameter", "what is frozen stays whole"
    for name, values in shared["weights"].items():
        torch.testing.assert_close(
            torch.tensor(values), torch.tensor(whole["weights"][name]), rtol=1e-5, atol=1e-6
        )


@pytest.mark.slow
def test_a_nan_on_one_rank_is_refused_where_weights_are_shared_and_resumed_to_the_same_bits(
    world: Any,
) -> None:
    seen = both(world, "sharded_nan")
    assert [(step, reason) for step, reason, _ in seen["skips"]] == [(7, "nonfinite_loss")]
    assert seen["prints"] == seen["whole"]


@pytest.mark.slow
def test_ranks_hold_the_same_and_draw_different_noise(world: Any) -> None:
    both(world, "usual", apart=("times", "batches"))
    ours, theirs = (seen["usual"] for seen in world)
    assert len(ours["times"]) == len(theirs["times"]) > 0
    assert not set(ours["times"]) & set(theirs["times"])
    for mine, other in zip(ours["batches"], theirs["batches"], strict=True):
        assert len(mine) == len(other) == 2
        assert not set(mine) & set(other)


@pytest.mark.slow
def test_a_nan_on_one_rank_is_refused_by_both(world: Any) -> None:
    struck, by_hand = both(world, "nan_on_one"), both(world, "skipped_by_hand")
    assert [(step, reason, len(ids)) for step, reason, ids in struck["skips"]] == [(7, "nonfinite_grad", 4)]
    assert struck["prints"] == by_hand["prints"], "as if that step had never been"


@pytest.mark.slow
def test_a_fault_of_a_moment_on_one_rank_is_replayed_by_both(world: Any) -> None:
    seen = both(world, "nan_once")
    assert len(seen["skips"]) == 1
    assert seen["prints"] == world[0]["usual"]["prints"], "as if nothing had happened"


@pytest.mark.slow
@pytest.mark.parametrize("check", ["corrupt_on_one", "unequal", "sharded_corrupt"])
def test_what_happens_to_one_ranks_weights_sends_both_back(world: Any, check: str) -> None:
    seen = both(world, check)
    assert [(to_step, source) for _, to_step, source, _ in seen["rollbacks"]] == [(25, "snapshot")]
    told = [message for _, _, severity, message in seen["findings"] if severity == "critical"]
    assert all("rank 1" in message and "head.weight" in message for message in told)
    assert told
    assert seen["step"] == 40


@pytest.mark.slow
def test_a_command_is_carried_out_once_and_a_signal_to_one_stops_both(world: Any) -> None:
    seen = both(world, "ordered")
    assert [(to_step, source) for _, to_step, source, _ in seen["rollbacks"]] == [(25, "checkpoint")]
    assert seen["seen"] == ["c1"]
    assert seen["status"] == "stopped"
    assert seen["step"] == 39


@pytest.mark.slow
def test_two_ranks_resume_to_the_same_bits(world: Any) -> None:
    assert both(world, "resumed")["prints"] == world[0]["usual"]["prints"]


@pytest.mark.slow
def test_each_rank_remembers_at_a_resume_what_it_remembered(world: Any) -> None:
    ours, theirs = (seen["usual"]["memory"] for seen in world)
    differing = {name for name in ours if ours[name] != theirs[name]}
    assert differing == {"streams"}
    for seen in world:
        assert seen["resumed"]["memory"] == seen["usual"]["memory"]


@pytest.mark.slow
def test_a_run_of_two_ranks_goes_on_with_one_and_says_so(world: Any, lab: Any) -> None:
    loop = lab.run(str(world[0]["folder"] / "usual"), steps=44, seed=None)
    assert loop.state.step == 44
    (told,) = (one.message for one in loop.reporter.record.findings)
    assert "ranks 2 -> 1" in told


@pytest.mark.slow
def test_a_checkpoint_that_one_rank_refuses_is_taken_by_none(world: Any) -> None:
    assert both(world, "bad_file_on_one") == {"name": "step-00000025-attempt-1", "step": 25}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The small training of the stories."""
    text = (ROOT / "tests/stories/small.toml").read_text()
    for placeholder, value in (("FOLDER", str(tmp_path / "run")), ("URL", ""), ('"FLUSH_S"', "0.1")):
        text = text.replace(placeholder, value)
    path = tmp_path / "small.toml"
    path.write_text(text.replace('name = "radio-7"', 'name = "radio-7"\nrank_timeout_s = 60.0'))
    return path


def ranks_of(process: subprocess.Popen[bytes]) -> Iterator[int]:
    """Process ids of the ranks that torchrun has started."""
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        yield from map(int, (task / "children").read_text().split())


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_a_killed_rank_ends_the_other_and_torchrun_starts_both_again(
    config: Path, tmp_path: Path, parallel: str
) -> None:
    words = f'[diffusion.training]\nparallel = "{parallel}"'
    text = config.read_text().replace("[diffusion.training]", words)
    config.write_text(text.replace("steps = 60", "steps = 25"))
    log, run = tmp_path / "log", tmp_path / "run"
    process = start("-m", "trainer", "run", str(config), "--json", log=log, restarts=1)
    deadline = time.monotonic() + PATIENCE_S
    while not any((run / "checkpoints").glob("step-00000010-*")):
        assert time.monotonic() < deadline, log.read_text()
        assert process.poll() is None, log.read_text()
        time.sleep(0.02)
    os.kill(max(ranks_of(process)), signal.SIGKILL)
    end(process, log)
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("finished", 25)
    text = log.read_text()
    assert "run radio-7: going on from step-" in text
    assert text.count("run radio-7: finished at step 25") == 1
    record = list_records(run / "checkpoints")[0]
    assert record.step == 25


@pytest.mark.slow
def test_each_rank_loads_its_part_of_the_same_batch(lab: Any) -> None:
    config = LoadingConfig(batch_size=6)
    whole = Loader(lab.Pictures(), config)
    parts = [Loader(lab.Pictures(), config, share=Share(number, 3)) for number in range(3)]
    for _ in range(8):
        ids = [name for part in parts for name in part.next_batch()["ids"]]
        assert ids == list(whole.next_batch()["ids"])


def test_a_refused_item_is_replaced_alike_for_one_and_for_several_ranks(lab: Any) -> None:
    config = LoadingConfig(batch_size=6)

    def inspect(item: Any) -> str | None:
        return "no" if item["id"] in ("picture_3", "picture_30", "picture_7") else None

    whole = Loader(lab.Pictures(), config, inspect)
    parts = [Loader(lab.Pictures(), config, inspect, Share(number, 2)) for number in range(2)]
    for _ in range(8):
        ids = [name for part in parts for name in part.next_batch()["ids"]]
        assert ids == list(whole.next_batch()["ids"])
    assert {one.id for part in parts for one in part.refused} == {one.id for one in whole.refused}


def test_a_batch_that_can_t_be_shared_evenly_is_refused(lab: Any) -> None:
    with pytest.raises(DataError, match="a batch of 4 can't be shared evenly by 3 ranks; make"):
        Loader(lab.Pictures(), LoadingConfig(batch_size=4), share=Share(0, 3))


@pytest.mark.parametrize(
    ("device", "variables", "message"),
    [
        ("cpu", {"WORLD_SIZE": "2", "RANK": "0"}, "start them with torchrun"),
        ("cpu", {"WORLD_SIZE": "two"}, "WORLD_SIZE = two is no number"),
        ("cuda:1", {"WORLD_SIZE": "2", "RANK": "0"}, "several ranks can't share one; choose cuda, or cpu"),
    ],
)
def test_ranks_that_can_t_meet_say_why(
    monkeypatch: pytest.MonkeyPatch, device: str, variables: dict[str, str], message: str
) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message), joined(device, 1.0):
        pass
