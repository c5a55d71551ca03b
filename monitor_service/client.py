"""Asks a running monitor over HTTP: one method for each question, answers as the monitor's own models."""

import errno
import json
import os
import re
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote
from uuid import uuid4

import httpx

from monitor_service.errors import MonitorError
from monitor_service.incidents import IncidentPage
from monitor_service.rulebook import RulesView
from monitor_service.series_forms import from_bytes
from monitor_service.views import CommandPage, CommandView, EventPage, HealthView, RunDetail, RunPage
from monitor_service.webhook import AlertPage
from shared.base import Message

TIMEOUT_S = 10.0
STREAM_TIMEOUT_S = 40.0
"""A stream that says nothing for so long has died; the monitor says something every 15 s."""

ORDER_PAUSES_S = (0.5, 1.0, 2.0, 4.0)
"""Between the sendings of one order. A monitor that restarts is back within them."""

LONGEST_ORDER_PAUSE_S = 15.0
"""A ``Retry-After`` of the monitor's is heeded up to this."""

TOO_MANY, UNAVAILABLE = 429, 503
UNCERTAIN = (500, 502, 504)
"""What a proxy answers also where the monitor behind it has committed the order, or a monitor after that."""

PASSING = (TOO_MANY, UNAVAILABLE, *UNCERTAIN)

PAUSE_S = 0.5
LONGEST_PAUSE_S = 15.0
CHUNK_BYTES = 1 << 20

M = TypeVar("M", bound=Message)


class Unreachable(MonitorError):
    """No monitor answers at the address."""

    def __init__(self, url: str, why: str) -> None:
        super().__init__(
            f"no monitor answers at {url}: {why}. Start one with: python -m monitor_service serve"
        )


class OrderUncertain(Unreachable):
    """An order was sent and no answer came: it may be ordered, or not. ``key`` finds that out."""

    def __init__(self, url: str, key: str, why: str) -> None:
        MonitorError.__init__(
            self,
            f"{url} did not answer ({why}); whether the command is ordered is not known. "
            f"Order it again with --key {key}: it is ordered once",
        )
        self.key = key


class Refused(MonitorError):
    """The monitor answered with a problem; ``status`` is the HTTP status, ``retry_after_s`` its wish."""

    def __init__(self, status: int, detail: str, retry_after_s: float = 0.0) -> None:
        super().__init__(detail)
        self.status, self.retry_after_s = status, retry_after_s


@dataclass(frozen=True)
class Happened:
    """One piece of live news; docs/protocol.md lists the kinds."""

    kind: str
    data: dict[str, Any]


class Client:
    """The API of the monitor at ``url``. Used inside ``with``.

    Args:
        token: the secret of an access token; empty where none is needed.
        ca_file: certificates to trust besides the system's.

    Every method raises ``Unreachable`` or ``Refused``, with what to say to a person.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str = "",
        ca_file: Path | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._url, self._sleep = url.rstrip("/"), sleep
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            self._http = httpx.Client(
                base_url=f"{self._url}/api/v1",
                headers=headers,
                timeout=TIMEOUT_S,
                verify=_trust(self._url, ca_file),
                trust_env=False,  # a proxy of the environment must not see the token
                transport=transport,
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise Unreachable(url, str(error)) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def runs(self, **filters: Any) -> Iterator[RunPage]:
        """Pages of runs; ``status``, ``project``, ``search`` and ``sort`` are those of ``GET /runs``."""
        chosen = {name: value for name, value in filters.items() if value}
        cursor: str | None = None
        while True:
            page = self._model(RunPage, "/runs", {**chosen, **({"cursor": cursor} if cursor else {})})
            yield page
            cursor = page.next_cursor
            if cursor is None:
                return

    def run(self, run: str) -> RunDetail:
        return self._model(RunDetail, f"/runs/{_quoted(run)}")

    def health(self, run: str) -> HealthView:
        return self._model(HealthView, f"/runs/{_quoted(run)}/health")

    def events(self, run: str, *, after: int = 0, **filters: Any) -> EventPage:
        return self._model(EventPage, f"/runs/{_quoted(run)}/events", {"after": after, **filters})

    def incidents(self, run: str) -> IncidentPage:
        return self._model(IncidentPage, f"/runs/{_quoted(run)}/incidents")

    def series(self, run: str, *names: str, **options: Any) -> dict[str, dict[str, Any]]:
        """Columns of each series as NumPy arrays; ``options`` are those of ``GET …/series``."""
        params = {"name": names, "format": "binary", **options}
        return from_bytes(self._ask("GET", f"/runs/{_quoted(run)}/series", params=params).content)

    def order(self, run: str, request: dict[str, Any], key: str | None = None) -> CommandView:
        """Order a command once, however often it must be sent until an answer arrives.

        Args:
            request: a ``shared.commands.CommandRequest`` as JSON.
            key: the ``Idempotency-Key`` of an earlier call that got no answer; a new one by default.
        """
        return self._order_once(f"/runs/{_quoted(run)}/commands", request, key)

    def accept(self, run: str, suggestion: str, issued_by: str, key: str | None = None) -> CommandView:
        """Order what is suggested, in the same way; ``suggestion`` is its id in ``health``."""
        told = {"suggestion": suggestion, "issued_by": issued_by}
        return self._order_once(f"/runs/{_quoted(run)}/suggestion/accept", told, key)

    def cancel(self, run: str, command: str, reason: str, cancelled_by: str) -> CommandView:
        """Take a command back; ``cancelling`` until the trainer has dropped it, or was faster."""
        params = {"reason": reason, "cancelled_by": cancelled_by}
        answer = self._ask("DELETE", f"/runs/{_quoted(run)}/commands/{_quoted(command)}", params=params)
        return CommandView.model_validate_json(answer.content)

    def commands(self, run: str) -> CommandPage:
        return self._model(CommandPage, f"/runs/{_quoted(run)}/commands")

    def rules(self, run: str | None, project: str | None = None) -> RulesView:
        """The rules of a run, or of a project."""
        return self._model(RulesView, _rules_of(run, project))

    def choose(self, run: str | None, project: str | None, request: dict[str, Any]) -> RulesView:
        """Choose rules; ``request`` is a ``rulebook.RulesRequest`` as JSON."""
        answer = self._ask("PUT", _rules_of(run, project), json=request)
        return RulesView.model_validate_json(answer.content)

    def alerts(self, **filters: Any) -> AlertPage:
        """Alerts that were received, the youngest first; filters are those of ``GET /alerts``."""
        return self._model(AlertPage, "/alerts", {name: one for name, one in filters.items() if one})

    def export(self, run: str, file: Path) -> int:
        """Write the whole run to ``file``, which must not exist; returns its size in bytes."""
        if file.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(file))
        part = file.with_name(
            f"{file.name}.part"
        )  # a break leaves no half of a file under the name asked for
        try:
            with self._refusals(), self._http.stream("GET", f"/runs/{_quoted(run)}/export") as answer:
                _check(answer)
                with part.open("wb") as target:
                    for chunk in answer.iter_bytes(CHUNK_BYTES):
                        target.write(chunk)
                    size = target.tell()
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)
        return size

    def bring_in(self, file: Path) -> RunDetail:
        """Store the run that ``file`` holds."""
        headers = {"Content-Type": "application/zip"}
        with file.open("rb") as source:
            answer = self._ask("POST", "/import", content=source, headers=headers, timeout=600.0)
        return RunDetail.model_validate_json(answer.content)

    def watch(self, run: str | None = None) -> Iterator[Happened]:
        """What is new, of one run or of all, from now on. A broken stream is taken up where it broke."""
        path = "/stream" if run is None else f"/runs/{_quoted(run)}/stream"
        last, failures = "", 0
        while True:
            try:
                for event in self._listen(path, last):
                    last, failures = event.get("id", last), 0
                    if "event" in event:
                        yield Happened(event["event"], json.loads(event["data"]))
            except Unreachable:
                if not last:
                    raise
            except Refused as refused:
                if refused.status not in (429, 503):
                    raise
            self._sleep(min(PAUSE_S * 2**failures, LONGEST_PAUSE_S))
            failures = min(failures + 1, 10)

    def _listen(self, path: str, last: str) -> Iterator[dict[str, str]]:
        headers = {"Last-Event-ID": last} if last else {}
        timeout = httpx.Timeout(TIMEOUT_S, read=STREAM_TIMEOUT_S)
        with self._refusals(), self._http.stream("GET", path, headers=headers, timeout=timeout) as answer:
            _check(answer)
            event: dict[str, str] = {}
            for line in answer.iter_lines():
                name, _, value = line.partition(":")
                if line and name:
                    event[name] = value.removeprefix(" ")
                elif not line:
                    yield event
                    event = {}

    def _order_once(self, path: str, told: dict[str, Any], key: str | None) -> CommandView:
        """Send an order until it is answered, under one key; a monitor that never answered is asked once."""
        key = key or uuid4().hex
        pauses_s = iter(ORDER_PAUSES_S)
        is_perhaps_there = False
        while True:
            try:
                answer = self._ask("POST", path, json=told, headers={"Idempotency-Key": key})
                return CommandView.model_validate_json(answer.content)
            except (Unreachable, Refused) as trouble:
                if isinstance(trouble, Refused) and trouble.status not in PASSING:
                    raise
                is_limited = isinstance(trouble, Refused) and trouble.status == TOO_MANY
                is_perhaps_there |= not is_limited and not is_never_sent(trouble)
                pause_s = next(pauses_s, None)
                if not is_perhaps_there and (pause_s is None or not is_limited):
                    raise
                if pause_s is None:
                    raise OrderUncertain(self._url, key, str(trouble)) from trouble
                self._sleep(max(pause_s, _asked_pause_s(trouble)))

    def _model(self, model: type[M], path: str, params: dict[str, Any] | None = None) -> M:
        answer = self._ask("GET", path, params=params)
        try:
            return model.model_validate_json(answer.content)
        except ValueError as error:
            problem = f"the monitor answers what this version does not understand: {error}"
            raise Refused(answer.status_code, problem) from error

    def _ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        with self._refusals():
            answer = self._http.request(method, path, **more)
            _check(answer)
            return answer

    def _refusals(self) -> "_Translated":
        return _Translated(self._url)


class _Translated:
    """Turns what httpx raises inside the block into ``Unreachable``."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, httpx.HTTPError | httpx.InvalidURL | httpx.StreamError):
            raise Unreachable(self._url, str(error) or type(error).__name__) from error


def is_never_sent(trouble: Exception) -> bool:
    """Whether no connection came about, so that nobody can have heard."""
    return isinstance(trouble.__cause__, httpx.ConnectError | httpx.ConnectTimeout | httpx.InvalidURL)


def _asked_pause_s(trouble: Exception) -> float:
    """How long the monitor asks to wait, up to a bound, seconds."""
    return min(trouble.retry_after_s, LONGEST_ORDER_PAUSE_S) if isinstance(trouble, Refused) else 0.0


def _retry_after_s(answer: httpx.Response) -> float:
    """``Retry-After`` as seconds; 0 without one, or for a date, which the monitor never sends."""
    told = answer.headers.get("Retry-After", "")
    return float(told) if re.fullmatch(r"[0-9]{1,9}", told) else 0.0


def _check(answer: httpx.Response) -> None:
    if not answer.is_success:
        answer.read()
        raise Refused(answer.status_code, _detail(answer), _retry_after_s(answer))


def _trust(url: str, ca_file: Path | None) -> ssl.SSLContext | bool:
    if not url.startswith("https"):
        return False  # plain HTTP needs no certificates loaded
    context = ssl.create_default_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except OSError as error:
            raise Unreachable(url, f"the certificates in {ca_file} cannot be used ({error})") from error
    return context


def _rules_of(run: str | None, project: str | None) -> str:
    return f"/projects/{_quoted(project or '')}/rules" if run is None else f"/runs/{_quoted(run)}/rules"


def _quoted(run: str) -> str:
    return quote(run, safe="")


def _detail(answer: httpx.Response) -> str:
    """What a problem says to a person."""
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"{answer.status_code} {answer.reason_phrase}"
