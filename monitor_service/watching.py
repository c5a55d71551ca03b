"""``watch RUN``: live news of a run, in a panel on a terminal and line by line elsewhere."""

import json
import sys
from collections import deque
from collections.abc import Iterator
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from monitor_service.client import Client, Happened
from monitor_service.health import OVER

MAX_LINES = 12
PER_SECOND = 4


def watch(client: Client, run: str, *, as_json: bool) -> None:
    """Show what happens in the run until it is over. Raises Unreachable, Refused."""
    console = Console()
    if as_json or not console.is_terminal:
        _print_lines(client, run, as_json=as_json)
    else:
        _draw(client, run, console)


def _until_over(client: Client, run: str) -> Iterator[Happened]:
    """The news; the first look tells whether the run is over already."""
    health = client.health(run)
    words = {"to_status": health.status.value, "step": health.step, "reasons": health.reasons}
    yield Happened("transition", {"run": run, "at": health.since.isoformat(), **words})
    if health.status in OVER:
        return
    for happened in client.watch(run):
        yield happened
        if happened.kind == "transition" and happened.data["to_status"] in OVER:
            return


def _print_lines(client: Client, run: str, *, as_json: bool) -> None:
    for happened in _until_over(client, run):
        told = json.dumps({"event": happened.kind, **happened.data}) if as_json else in_words(happened)
        sys.stdout.write(f"{told}\n")
        sys.stdout.flush()


def _draw(client: Client, run: str, console: Console) -> None:
    status, numbers = "", ""
    lines: deque[str] = deque(maxlen=MAX_LINES)
    with Live(console=console, refresh_per_second=PER_SECOND) as live:
        for happened in _until_over(client, run):
            if happened.kind == "step":
                numbers = in_words(happened)
            else:
                lines.append(in_words(happened))
            if happened.kind == "transition":
                status = str(happened.data["to_status"])
            body = Group(Text(numbers, style="bold"), *map(Text, lines))
            live.update(Panel(body, title=f"{run}: {status}", title_align="left"))


def in_words(happened: Happened) -> str:
    """One line about one piece of news."""
    data = happened.data
    if happened.kind == "transition":
        return f"step {_shown(data['step'])}  {data['to_status']}: {'; '.join(data['reasons'])}"
    if happened.kind == "step":
        of = f" of {data['total_steps']}" if data["total_steps"] else ""
        numbers = f"loss {_shown(data['loss'])}  gradient {_shown(data['grad_norm'])}"
        return f"step {_shown(data['step'])}{of}  {numbers}"
    if happened.kind == "command":
        message = f": {data['message']}" if data["message"] else ""
        return f"{data['kind']} {data['state']}{message}"
    event = data["data"]
    said = event.get("message") or event.get("reason") or event.get("state") or ""
    return f"step {_shown(event.get('step'))}  {data['type']}{': ' if said else ''}{said}"


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
