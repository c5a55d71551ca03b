"""A person sends a run back with a few clicks, and sees what became of it."""

from typing import Any

import httpx

from shared.events import CommandUpdate, Rollback


def open_run(client: httpx.Client, teller: Any, kept: Any) -> Any:
    run = teller(client, "radio")
    run.register(600)
    run.start(1, 0, "start")
    run.train(0, 120)
    kept(run, range(50, 101, 50))
    return run


def test_a_run_is_sent_back_with_one_confirmation_that_says_the_price(
    watched: Any, client: httpx.Client, teller: Any, kept: Any
) -> None:
    run = open_run(client, teller, kept)
    page = watched.page
    watched.open(f"{client.base_url}/runs/radio")
    page.get_by_role("link", name="Roll back to step 50").click()
    assert page.get_by_role("heading", level=1).inner_text() == "Roll back to step 50"
    assert "70 steps are thrown away: about 5.6 s of training" in page.inner_text("main")
    page.get_by_label("Why").fill("the maps look washed out")
    page.get_by_label("Your name").fill("ana")
    page.get_by_role("button", name="Roll back to step 50").click()

    page.wait_for_url("**/runs/radio?ordered=*")
    row = page.locator("#commands tbody tr")
    assert "Pending" in row.inner_text()
    (command,) = client.get("/api/v1/runs/radio/commands").json()["items"]
    assert (command["to_step"], command["reason"]) == (50, "the maps look washed out")
    assert command["issued_by"] == "ana"

    again = page.get_by_role("link", name="Roll back …", exact=True)
    again.click()
    assert "wait for its outcome" in page.get_by_role("alert").inner_text()
    assert page.get_by_role("button").count() == 0
    page.go_back()

    id_ = command["id"]
    run.tell(
        CommandUpdate(step=119, time=run.moment(), command=id_, state="accepted"),
        Rollback(
            step=119,
            time=run.moment(),
            from_step=119,
            to_step=50,
            source="checkpoint",
            checkpoint="step-00000050",
            reason="the maps look washed out",
            trigger="command",
            command=id_,
            seconds=0.4,
        ),
        CommandUpdate(step=50, time=run.moment(), command=id_, state="succeeded", message="at step 50"),
    )
    page.locator("#commands tbody tr", has_text="Succeeded").wait_for()
    assert "From step 119 back to 50 by a command" in page.inner_text("#happened")
    assert watched.complaints == []


def test_the_whole_way_is_open_to_the_keyboard(
    watched: Any, client: httpx.Client, teller: Any, kept: Any
) -> None:
    open_run(client, teller, kept)
    page = watched.page
    page.goto(f"{client.base_url}/")
    page.get_by_role("link", name="radio").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/runs/radio")
    page.get_by_role("link", name="Save a checkpoint …").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/order?kind=save_checkpoint")
    watched.until("document.activeElement?.name === 'reason'")  # the field takes the focus by itself
    page.keyboard.type("before the night")
    page.keyboard.press("Enter")
    page.wait_for_url("**/runs/radio?ordered=*")
    (command,) = client.get("/api/v1/runs/radio/commands").json()["items"]
    assert (command["kind"], command["reason"]) == ("save_checkpoint", "before the night")


def test_a_link_keeps_the_focus_while_the_page_goes_on(
    watched: Any, client: httpx.Client, teller: Any, kept: Any
) -> None:
    run = open_run(client, teller, kept)
    watched.page.goto(f"{client.base_url}/")
    watched.page.get_by_role("link", name="radio").focus()
    run.train(120, 140)
    watched.until("document.querySelector('#fleet').innerText.includes('139')")
    assert watched.page.evaluate("document.activeElement.innerText") == "radio"
    assert watched.complaints == []
