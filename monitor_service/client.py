"""Asks a running monitor over HTTP; standard library only."""

import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from monitor_service.errors import MonitorError

TIMEOUT_S = 10.0


class Unreachable(MonitorError):
    """No monitor answers at the address."""

    def __init__(self, url: str, why: str) -> None:
        super().__init__(
            f"no monitor answers at {url}: {why}. Start one with: python -m monitor_service serve"
        )


class Refused(MonitorError):
    """The monitor answered with a problem; ``status`` is the HTTP status."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class Client:
    """The API of the monitor at ``url``."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def health(self, run: str) -> dict[str, Any]:
        return self._ask(f"/runs/{_quoted(run)}/health")

    def order(self, run: str, request: dict[str, Any]) -> dict[str, Any]:
        return self._ask(f"/runs/{_quoted(run)}/commands", request)

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """GET, or POST where there is a body.

        Raises:
            Unreachable, Refused: with what to say to a person.
        """
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self._url}/api/v1{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
                answer: dict[str, Any] = json.load(reply)
                return answer
        except urllib.error.HTTPError as error:
            with error:
                raise Refused(error.code, _detail(error)) from error
        except (OSError, ValueError) as error:
            raise Unreachable(self._url, str(getattr(error, "reason", error))) from error


def _quoted(run: str) -> str:
    return urllib.parse.quote(run, safe="")


def _detail(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["detail"])
    except (ValueError, KeyError, TypeError):
        return f"{error.code} {error.reason}"
