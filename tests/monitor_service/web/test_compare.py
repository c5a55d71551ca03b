"""Runs side by side, as the server sends them."""

import json
import re
from typing import Any

import httpx


def text_of(html: str) -> str:
    return " ".join(re.sub(r"<script.*?</script>|<[^>]+>", " ", html, flags=re.S).split())


def tell_two(client: httpx.Client, teller: Any) -> None:
    for name, rate in (("slow", 1e-5), ("fast", 1e-3)):
        config = {"run": {"name": name}, "optimizer": {"lr": rate, "kind": "adamw"}}
        spec = {"started_at": "2026-03-01T12:00:00Z", "config": config, "total_steps": 100}
        assert client.put(f"/api/v1/runs/{name}", json=spec).status_code == 201
        run = teller(client, name)
        run.start(1, 0, "start")
        run.train(0, 20)


def test_only_the_settings_that_differ_are_shown(client: httpx.Client, teller: Any) -> None:
    tell_two(client, teller)
    answer = client.get("/compare?run=slow&run=fast&run=slow")
    assert answer.status_code == 200
    settings = text_of(answer.text.split('id="settings-title"', 1)[1])
    assert "optimizer.lr 1e-05 0.001" in settings
    assert "adamw" not in settings
    assert "run.name" not in settings
    story = json.loads(re.search(r'id="story" data-live>(.*?)</script>', answer.text, re.S)[1])  # type: ignore[index]
    assert (story["runs"], story["series"]) == (["slow", "fast"], ["loss", "grad_norm"])


def test_runs_without_steps_or_settings_say_so_instead_of_a_chart(client: httpx.Client, teller: Any) -> None:
    for name in ("one", "two"):
        teller(client, name).register(10)
    html = client.get("/compare?run=one&run=two").text
    assert "None of these runs told its settings." in html
    assert 'class="chart"' not in html


def test_a_choice_that_cannot_be_compared_says_what_would_do(client: httpx.Client, teller: Any) -> None:
    tell_two(client, teller)
    page = {"Accept": "text/html"}
    for address in ("/compare", "/compare?run=slow", "/compare?" + "&".join(f"run=r{n}" for n in range(9))):
        answer = client.get(address, headers=page)
        assert answer.status_code == 422
        assert "choose two to 8 runs" in text_of(answer.text)
    unknown = client.get("/compare?run=slow&run=nobody", headers=page)
    assert unknown.status_code == 404
    assert "knows no run called “nobody”" in text_of(unknown.text)


def test_a_single_run_is_not_offered_for_comparison(client: httpx.Client, teller: Any) -> None:
    teller(client, "one").register(10)
    assert "Compare" not in client.get("/").text
    teller(client, "two").register(10)
    assert client.get("/").text.count('form="compare"') == 2
