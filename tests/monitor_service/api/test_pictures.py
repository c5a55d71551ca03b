"""Pictures: kept byte by byte, apart from the events that brought them, and bounded in size and number."""

import base64
import io
from typing import Any

import pytest
from PIL import Image

from shared.events import MAX_PICTURE_BYTES


def a_png(shade: int = 90) -> bytes:
    content = io.BytesIO()
    Image.new("L", (8, 4), shade).save(content, "PNG")
    return content.getvalue()


def a_picture(name: str = "drawn-1", step: int = 40, png: bytes | None = None, **more: Any) -> dict[str, Any]:
    return {
        "type": "picture",
        "step": step,
        "time": f"2026-03-01T12:00:{step % 60:02d}Z",
        "picture": name,
        "kind": "drawn",
        "title": "map 12_3",
        "tiles": ["truth", "drawn"],
        "png": base64.b64encode(a_png() if png is None else png).decode(),
        **more,
    }


def test_a_picture_comes_back_byte_by_byte_and_events_stay_short(monitor: Any, batch: Any) -> None:
    told = [a_picture(reading={"nmse": "NaN"}), a_picture("sample-1", kind="sample", incident="i-1")]
    assert monitor.send(batch(1, events=told)).status_code == 200
    answer = monitor.get("/api/v1/runs/demo/pictures/drawn-1")
    assert (answer.headers["content-type"], answer.content) == ("image/png", a_png())
    assert answer.headers["x-content-type-options"] == "nosniff"
    (sample,) = monitor.tell("/pictures?kind=sample&incident=i-1")["items"]
    assert (sample["picture"], sample["tiles"]) == ("sample-1", ["truth", "drawn"])
    (drawn,) = monitor.tell("/pictures?kind=drawn")["items"]
    assert drawn["reading"] == {"nmse": "NaN"}
    kept = monitor.tell("/events?type=picture")["items"]
    assert [event["data"]["png"] for event in kept] == ["", ""]


def test_a_repeated_batch_is_known_although_its_events_are_kept_without_the_png(
    monitor: Any, batch: Any
) -> None:
    again = batch(1, events=[a_picture()])
    assert monitor.send(again).json()["duplicate"] is False
    assert monitor.send(again).json()["duplicate"] is True
    other = batch(1, events=[a_picture(png=a_png(200))])
    assert monitor.send(other).status_code == 409


def test_a_name_is_given_once(monitor: Any, batch: Any) -> None:
    monitor.send(batch(1, events=[a_picture()]))
    monitor.send(batch(2, events=[a_picture(png=a_png(200))]))
    assert monitor.get("/api/v1/runs/demo/pictures/drawn-1").content == a_png()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"png": "!!"}, "base64"),
        ({"png": base64.b64encode(b"GIF89a").decode()}, "a picture is a PNG"),
        ({"png": base64.b64encode(a_png() + bytes(MAX_PICTURE_BYTES)).decode()}, "at most"),
        ({"tiles": []}, "at least 1"),
    ],
)
def test_what_is_no_small_png_is_refused_with_the_reason(
    monitor: Any, batch: Any, change: dict[str, Any], words: str
) -> None:
    answer = monitor.send(batch(1, events=[{**a_picture(), **change}]))
    assert answer.status_code == 422
    assert words in answer.json()["errors"][0]["problem"]


def test_the_oldest_of_a_kind_leave(monitor: Any, batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monitor_service.pictures.MAX_OF_A_KIND", 2)
    told = [a_picture(f"drawn-{step}", step) for step in (1, 2, 3)]
    monitor.send(batch(1, events=[a_picture("sample-1", 0, kind="sample"), *told]))
    names = [one["picture"] for one in monitor.tell("/pictures")["items"]]
    assert names == ["drawn-3", "drawn-2", "sample-1"]


def test_a_picture_that_is_not_here_is_404_and_says_where_the_others_are(monitor: Any) -> None:
    answer = monitor.get("/api/v1/runs/demo/pictures/none")
    assert answer.status_code == 404
    assert "/api/v1/runs/demo/pictures lists them" in answer.json()["detail"]
