"""Orders on pages: what stands in their way is said, and no other page can give them."""

import math
import re
from typing import Any

import httpx
import pytest

from shared.commands import CommandKind
from shared.events import CheckpointState, CommandUpdate, RunEnded
from shared.exchange import Columns

BROWSER = {"Accept": "text/html"}


@pytest.fixture
def run(client: httpx.Client, teller: Any, kept: Any) -> Any:
    """A run at step 119 with good checkpoints at 50 and 100 and a bad one at 110."""
    radio = teller(client, "radio")
    radio.register(600)
    radio.start(1, 0, "start")
    radio.train(0, 120)
    kept(radio, range(50, 101, 50))
    radio.tell(radio.checkpoint(110, CheckpointState.BAD, "probe"))
    return radio


def fields(html: str) -> dict[str, str]:
    """What the form on a page would send if nobody typed anything."""
    return {
        found["name"]: found["value"]
        for found in (
            dict(re.findall(r'(name|value)="([^"]*)"', one)) for one in re.findall(r"<input[^>]*>", html)
        )
    }


def order(client: httpx.Client, query: str, **typed: str) -> httpx.Response:
    """Open the page of an order, fill it in, and send it."""
    shown = client.get(f"/runs/radio/order?{query}", headers=BROWSER)
    assert shown.status_code == 200
    return client.post("/runs/radio/order", data={**fields(shown.text), **typed}, headers=BROWSER)


def commands(client: httpx.Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get("/api/v1/runs/radio/commands").json()["items"]
    return found


@pytest.mark.parametrize("kind", CommandKind)
def test_each_kind_of_command_can_be_ordered(client: httpx.Client, run: Any, kind: CommandKind) -> None:
    answer = order(client, f"kind={kind}", reason="why not", issued_by="ana")
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/runs/radio?ordered=")
    (command,) = commands(client)
    assert (command["kind"], command["reason"], command["issued_by"]) == (kind, "why not", "ana")


def test_the_price_is_said_before(client: httpx.Client, run: Any) -> None:
    html = client.get("/runs/radio/order?to_step=100").text
    assert "<h1>Roll back to step 100</h1>" in html
    assert "20 steps are thrown away: about 1.6 s of training." in html


def test_only_a_rollback_has_a_goal(client: httpx.Client, run: Any) -> None:
    answer = order(client, "kind=stop", reason="why not", to_step="5")
    assert answer.status_code == 422
    assert "to_step" in answer.text
    assert commands(client) == []


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("to_step=110", "Checkpoint step-00000110 is bad (it fails probe)"),
        ("to_step=10", "no good checkpoint at step 10 or before"),
    ],
)
def test_a_goal_that_will_not_do_is_said_and_has_no_button(
    client: httpx.Client, run: Any, query: str, words: str
) -> None:
    html = client.get(f"/runs/radio/order?{query}").text
    assert words in html
    assert "<button" not in html


def test_a_step_between_leads_to_the_good_checkpoint_before_it(client: httpx.Client, run: Any) -> None:
    html = client.get("/runs/radio/order?to_step=99").text
    assert "<h1>Roll back to step 50</h1>" in html
    assert fields(html)["to_step"] == "50"


def test_a_run_that_ends_meanwhile_is_said_and_nothing_is_ordered(client: httpx.Client, run: Any) -> None:
    shown = client.get("/runs/radio/order", headers=BROWSER)
    run.tell(RunEnded(step=120, time=run.moment(), status="finished"))
    answer = client.post("/runs/radio/order", data={**fields(shown.text), "reason": "late"}, headers=BROWSER)
    assert answer.status_code == 409
    assert "The run is over (finished); nobody would carry out a command." in answer.text
    assert commands(client) == []


def test_a_second_order_of_a_kind_waits_for_the_first(client: httpx.Client, run: Any) -> None:
    waiting = client.get("/runs/radio/order", headers=BROWSER)
    assert order(client, "", reason="first").status_code == 303
    answer = client.post("/runs/radio/order", data={**fields(waiting.text), "reason": "second"})
    assert answer.status_code == 409
    assert "ordered by operator, is pending; wait for its outcome" in answer.text
    assert [one["reason"] for one in commands(client)] == ["first"]


def test_an_order_without_a_reason_is_asked_for_one(client: httpx.Client, run: Any) -> None:
    answer = order(client, "", reason="  ")
    assert answer.status_code == 422
    assert "Say why" in answer.text
    assert commands(client) == []


@pytest.mark.parametrize(
    ("change", "status"),
    [({"form_token": "0" * 64}, 403), ({"kind": "dance"}, 422), ({"to_step": "first"}, 422)],
)
def test_a_form_that_is_not_ours_orders_nothing(
    client: httpx.Client, run: Any, change: dict[str, str], status: int
) -> None:
    answer = order(client, "", reason="why", **change)
    assert answer.status_code == status
    assert answer.headers["content-type"].startswith("text/html")
    assert commands(client) == []


def test_a_run_that_has_sent_nothing_has_nobody_to_obey(client: httpx.Client, teller: Any) -> None:
    teller(client, "radio").register(10)
    assert "nobody to obey" in client.get("/runs/radio/order?kind=stop").text


def test_a_price_in_time_is_left_open_while_no_step_was_timed(
    client: httpx.Client, teller: Any, kept: Any
) -> None:
    fresh = teller(client, "radio")
    fresh.register(10)
    fresh.start(1, 0, "start")
    fresh.train(0, 1)
    kept(fresh, range(1))
    assert "1 step are" not in client.get("/runs/radio/order").text
    assert "how long a step takes is not known yet" in client.get("/runs/radio/order").text


def test_a_suggestion_is_shown_with_its_price_and_taken_up(client: httpx.Client, run: Any) -> None:
    steps = list(range(120, 132))
    times = [run.moment().timestamp() + number for number in range(len(steps))]
    run.send(Columns(step=steps, time=times, series={"loss": [math.nan] * len(steps)}))
    html = client.get("/runs/radio").text
    assert "<strong>Suggested: roll back</strong>" in html
    address = re.search(r'href="(/runs/radio/order\?kind=roll_back&amp;suggestion=[^"]+)"', html)
    assert address
    shown = client.get(address[1].replace("&amp;", "&"))
    assert "The monitor suggests it, because" in shown.text
    assert "32 steps are thrown away" in shown.text
    for other in ({"kind": "stop"}, {"to_step": "50"}):  # what is shown and what is ordered must be one thing
        mixed = client.post("/runs/radio/order", data={**fields(shown.text), **other})
        assert mixed.status_code == 409
        assert "take it up as it is" in mixed.text
    answer = client.post("/runs/radio/order", data=fields(shown.text))
    assert answer.status_code == 303
    (command,) = commands(client)
    assert command["reason"].startswith("suggested: ")
    again = client.post("/runs/radio/order", data=fields(shown.text))
    assert again.status_code == 409
    assert len(commands(client)) == 1


def cancel_page(client: httpx.Client, command: dict[str, Any]) -> str:
    """Where the table of commands leads to."""
    path = f"/runs/radio/commands/{command['id']}/cancel"
    assert f'href="{path}"' in client.get("/runs/radio", headers=BROWSER).text
    return path


def test_a_command_can_be_taken_back_on_its_page(client: httpx.Client, run: Any) -> None:
    order(client, "kind=roll_back", reason="the wrong run")
    path = cancel_page(client, commands(client)[0])
    shown = client.get(path, headers=BROWSER)
    assert "It has not reached the trainer." in shown.text
    empty = client.post(path, data=fields(shown.text), headers=BROWSER)
    assert (empty.status_code, "Say why" in empty.text) == (422, True)
    done = client.post(path, data={**fields(shown.text), "reason": "mistake"}, headers=BROWSER)
    assert done.status_code == 303
    (command,) = commands(client)
    assert command["state"] == "cancelled"
    assert command["history"][-1]["message"] == "cancelled by operator: mistake"
    assert path not in client.get("/runs/radio", headers=BROWSER).text
    again = client.post(path, data={**fields(shown.text), "reason": "mistake"}, headers=BROWSER)
    assert again.status_code == 303  # a second click
    assert "can be taken back no more" in client.get(path, headers=BROWSER).text


def test_a_command_that_the_trainer_has_taken_says_so_on_its_page(client: httpx.Client, run: Any) -> None:
    order(client, "kind=save_checkpoint", reason="why not")
    (command,) = commands(client)
    run.tell()
    path = cancel_page(client, command)
    shown = client.get(path, headers=BROWSER).text
    assert "The trainer may hold it already and is asked to drop it." in shown
    run.tell(CommandUpdate(step=119, command=command["id"], state="accepted"))
    late = client.post(path, data={**fields(shown), "reason": "mistake"}, headers=BROWSER)
    assert (late.status_code, "It is accepted" in late.text) == (409, True)
    assert commands(client)[0]["state"] == "accepted"


def test_no_other_page_can_take_a_command_back(client: httpx.Client, run: Any) -> None:
    order(client, "kind=stop", reason="why not")
    path = cancel_page(client, commands(client)[0])
    forged = client.post(path, data={"reason": "mistake", "form_token": "0" * 64}, headers=BROWSER)
    assert forged.status_code == 403
    assert commands(client)[0]["state"] == "pending"
