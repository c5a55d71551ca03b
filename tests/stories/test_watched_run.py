"""The watched run: a NaN, corrupted weights and an ordered rollback on the way, and what is left of it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from trainer.drill.demo import demo
from trainer.summary import Summary

pytestmark = pytest.mark.slow

STEPS = 120
"""So that an order given at four fifths of the way finds the run still under way."""


class Watched:
    """The demo after its end, and a monitor on the database that it left behind."""

    def __init__(self, house: Any) -> None:
        config = house.config()
        config.write_text(config.read_text().replace("steps = 60", f"steps = {STEPS}"))
        self.folder: Path = house.folder / "demo"
        self.summary: Summary = demo(self.folder, 0, config=config)
        house.database = self.folder / "monitor.db"
        self.monitor = house.monitor()

    def events(self, kind: str) -> list[dict[str, Any]]:
        return list(self.monitor.events("demo", type=kind))

    def tell(self, path: str = "") -> Any:
        return self.monitor.tell(path, "demo")


@pytest.fixture(scope="module")
def watched(house_at: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with house_at(tmp_path_factory.mktemp("watched")) as house:
        yield Watched(house)


def test_the_demo_heals_both_faults_obeys_the_order_and_finishes(watched: Watched) -> None:
    summary = watched.summary
    assert (summary.status, summary.steps) == ("finished", STEPS)
    assert summary.skipped_steps >= 1
    assert [one.trigger for one in summary.rollbacks] == ["guard", "command"]
    # this model is too small, and this training too short, to promise good maps; the rest it does promise
    assert set(summary.fell_short) <= {"the drawn maps are no better than the mean map"}


def test_the_summary_and_the_picture_are_left_behind(watched: Watched) -> None:
    found = json.loads((watched.folder / "summary.json").read_text())
    wanted = {
        "status",
        "steps",
        "findings",
        "skipped_steps",
        "rollbacks",
        "nmse",
        "nmse_mean_map",
        "final_loss",
    }
    assert wanted <= found.keys()
    for rollback in found["rollbacks"]:
        assert {"from", "to", "reason", "steps_lost", "seconds"} <= rollback.keys()
        assert rollback["steps_lost"] == rollback["from"] - rollback["to"] > 0
    assert found["nmse"] > 0
    assert found["findings"]
    assert found["fell_short"] == watched.summary.fell_short
    assert (watched.folder / "maps.png").read_bytes().startswith(b"\x89PNG")


def test_the_nan_that_was_sent_is_the_nan_that_is_shown(watched: Watched) -> None:
    refused = watched.events("step_skipped")[0]
    assert (refused["step"], refused["reason"]) == (STEPS * 30 // 100, "nonfinite_grad")
    assert refused["grad_norm"] == "NaN"
    assert isinstance(refused["loss"], float)
    page = httpx.get(f"{watched.monitor.url}/runs/demo", timeout=30)
    assert page.status_code == 200
    assert "gradient norm NaN" in page.text


def test_the_events_tell_the_story_in_its_order(watched: Watched) -> None:
    story = [event for event in watched.monitor.events("demo") if event["type"] != "checkpoint"]
    kinds = [event["type"] for event in story]
    assert kinds[0] == "attempt_started"
    assert kinds[-1] == "run_ended"
    refused, corrupted, ordered = (
        kinds.index("step_skipped"),
        *(n for n, kind in enumerate(kinds) if kind == "rollback"),
    )
    assert refused < corrupted < ordered
    assert "finding" in kinds[:corrupted]
    assert [story[n]["trigger"] for n in (corrupted, ordered)] == ["guard", "command"]
    assert kinds[corrupted + 1] == kinds[ordered + 1] == "attempt_started"
    assert [e["attempt"] for e in watched.events("attempt_started")] == [1, 2, 3]
    assert [event["state"] for event in watched.events("command")] == ["accepted", "succeeded"]


def test_the_order_lived_its_life_and_the_run_finished(watched: Watched) -> None:
    (order,) = watched.tell("/commands")["items"]
    life = [change["state"] for change in order["history"]]
    assert life == ["pending", "delivered", "accepted", "succeeded"]
    health = watched.tell("/health")
    assert health["status"] == "finished"
    assert health["cost"]["rollbacks"] == 2
    assert health["cost"]["steps_lost"] == sum(one.steps_lost for one in watched.summary.rollbacks)
    assert watched.tell()["transitions"][-1]["to_status"] == "finished"


def test_every_step_is_shown_once_and_the_abandoned_stretches_on_request(watched: Watched) -> None:
    effective = watched.monitor.curves("demo")
    everything = watched.monitor.curves("demo", attempt="all")
    for name in ("loss", "grad_norm"):
        assert [step for step, _ in effective[name]] == list(range(STEPS))
        lost = sum(one.steps_lost for one in watched.summary.rollbacks)
        assert len(everything[name]) == STEPS + lost


def test_the_checkpoints_are_listed_with_their_states(watched: Watched) -> None:
    told = {one["checkpoint"]: one["state"] for one in watched.tell("/checkpoints")["items"]}
    on_disk = {path.name for path in (watched.folder / "checkpoints").glob("step-*")}
    assert on_disk == {name for name, state in told.items() if state != "deleted"}
    assert {"good", "deleted"} <= set(told.values())
    assert told[max(on_disk)] == "sealed"


def test_the_metrics_count_what_happened(watched: Watched) -> None:
    families = text_string_to_metric_families(httpx.get(f"{watched.monitor.url}/metrics", timeout=30).text)
    counted = {
        (one.name.removeprefix("trainhealth_"), *sorted(one.labels.values())): one.value
        for family in families
        for one in family.samples
        if one.labels.get("run") == "demo"
    }
    lost = sum(one.steps_lost for one in watched.summary.rollbacks)
    for name, count in {
        ("run_state", "default", "demo", "finished"): 1,
        ("run_attempt", "default", "demo"): 3,
        ("steps_total", "default", "demo"): STEPS + lost,
        ("rollback_lost_steps_total", "default", "demo"): lost,
        ("rollbacks_total", "applied", "default", "demo", "guard"): 1,
        ("rollbacks_total", "applied", "default", "demo", "operator"): 1,
        ("skipped_steps_total", "default", "demo", "nonfinite_grad"): watched.summary.skipped_steps,
    }.items():
        assert counted[name] == count, name
