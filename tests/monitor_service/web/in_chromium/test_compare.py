"""Runs are chosen on the page of all runs, and drawn over each other."""

from typing import Any

import httpx


def test_two_runs_are_chosen_and_drawn_over_each_other(
    watched: Any, client: httpx.Client, teller: Any
) -> None:
    for name, last in (("radio", 300), ("rival", 150)):
        run = teller(client, name)
        run.register(600)
        run.start(1, 0, "start")
        run.train(0, last)
    page = watched.page
    page.goto(f"{client.base_url}/")
    page.get_by_label("Compare radio").check()
    run.train(150, 160)
    watched.until("document.querySelector('#fleet').innerText.includes('159')")
    assert page.get_by_label("Compare radio").is_checked(), "what was ticked outlives the news"
    page.get_by_label("Compare rival").check()
    page.get_by_role("button", name="Compare the chosen runs").click()
    page.wait_for_selector(".chart[data-drawn-after-ms]")

    (radio, rival) = (1, 2) if "run=radio&run=rival" in page.url else (2, 1)
    longer, shorter = watched.values("loss", radio), watched.values("loss", rival)
    assert max(longer) == 299
    assert max(shorter) == 159
    assert longer[100] == shorter[100]
    assert longer[180] is None, "a NaN is a gap"

    page.locator(".chart").first.focus()
    page.keyboard.press("Home")
    assert "Step 0: " in page.inner_text("#reading")
    page.get_by_text("Show the numbers as a table").click()
    watched.until("document.querySelectorAll('#numbers-rows tr').length === 300")
    assert watched.complaints == []


def test_the_comparison_goes_on_while_a_run_is_open(watched: Any, client: httpx.Client, teller: Any) -> None:
    for name in ("radio", "rival"):
        run = teller(client, name)
        run.register(600)
        run.start(1, 0, "start")
        run.train(0, 50)
    watched.open(f"{client.base_url}/compare?run=radio&run=rival")
    run.train(50, 70)
    watched.until("document.querySelector('.chart').uplot.data[0].at(-1) === 69")
    assert watched.complaints == []
