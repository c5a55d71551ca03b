"""The pages as the server sends them: right words, right status, nothing inline."""

import json
import re
from typing import Any

import httpx
import pytest


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
    monkeypatch.setattr("monitor_service.web.pages.RUNS_ON_A_PAGE", 2)
    for name in ("run-1", "run-2", "run-3"):
        teller(client, name).register(10)
    html = client.get("/").text
    assert "run-3" in html
    assert "run-1" not in html
    older = re.search(r'href="(/\?cursor=[^"]+)"', html)
    assert older, "no link to older runs"
    assert "run-1" in client.get(older[1]).text


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


@pytest.mark.parametrize("address", ["/", "/runs/demo", "/runs/nobody"])
def test_pages_pass_a_strict_content_policy(told: httpx.Client, address: str) -> None:
    answer = told.get(address)
    assert answer.headers["content-security-policy"].startswith("default-src 'self';")
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert not re.search(r"\sstyle=|\son\w+=|<style", answer.text)
    scripts = re.findall(r"<script([^>]*)>", answer.text)
    assert all("src=" in script or "application/json" in script for script in scripts)
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//", answer.text)


def test_scripts_are_asked_for_again_so_that_an_upgrade_shows(told: httpx.Client) -> None:
    answer = told.get("/static/run.js")
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-cache"
    assert "javascript" in answer.headers["content-type"]
