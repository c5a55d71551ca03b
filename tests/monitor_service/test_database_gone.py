"""PostgreSQL ends and comes back under a running monitor, and clocks are put back."""

from collections.abc import Callable
from typing import Any

import pytest

from monitor_service.opening import open_database

Build = Callable[..., dict[str, Any]]


@pytest.mark.slow
def test_while_the_database_is_gone_it_is_503_and_afterwards_all_goes_on(
    own_postgres: Any, serve: Any, batch: Build
) -> None:
    url = own_postgres.url("postgres")
    open_database(url)
    monitor = serve(database_url=url)
    monitor.register()
    assert monitor.send(batch(1, [1], loss=[1.0])).status_code == 200
    own_postgres.stop()
    for answer in (monitor.send(batch(2, [2], loss=[2.0])), monitor.get("/api/v1/runs/demo")):
        assert answer.status_code == 503, answer.text
        assert answer.headers["retry-after"]
    own_postgres.start()
    assert monitor.send(batch(2, [2], loss=[2.0])).json()["duplicate"] is False
    assert monitor.tell("/series?name=loss")["series"]["loss"]["step"] == [1, 2]


def test_a_clock_put_back_by_an_hour_stores_judges_and_compacts_as_before(
    monitor: Any, batch: Build, clock: Any
) -> None:
    monitor.send(batch(1, [1], loss=[1.0]))
    clock.advance(-3600)
    for seq in range(2, 5):
        assert monitor.send(batch(seq, [seq], loss=[1.0])).status_code == 200
    told = monitor.tell()
    assert (told["status"], told["step"]) == ("healthy", 4)
