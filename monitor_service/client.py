"""Asks a running monitor over HTTP."""

import ssl
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

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
    """The API of the monitor at ``url``. Used inside ``with``.

    Args:
        token: the secret of an access token; empty where none is needed.
        ca_file: certificates to trust besides the system's.
    """

    def __init__(self, url: str, *, token: str = "", ca_file: Path | None = None) -> None:
        self._url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(
            base_url=f"{self._url}/api/v1",
            headers=headers,
            timeout=TIMEOUT_S,
            verify=_trust(self._url, ca_file),
            trust_env=False,  # a proxy of the environment must not see the token
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def health(self, run: str) -> dict[str, Any]:
        return self._ask("GET", f"/runs/{_quoted(run)}/health")

    def order(self, run: str, request: dict[str, Any]) -> dict[str, Any]:
        return self._ask("POST", f"/runs/{_quoted(run)}/commands", json=request)

    def _ask(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        """The JSON that answers.

        Raises:
            Unreachable, Refused: with what to say to a person.
        """
        try:
            answer = self._http.request(method, path, **more)
            if answer.is_success:
                told: dict[str, Any] = answer.json()
                return told
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            raise Unreachable(self._url, str(error)) from error
        raise Refused(answer.status_code, detail_of(answer))


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


def _quoted(run: str) -> str:
    return quote(run, safe="")


def detail_of(answer: httpx.Response) -> str:
    """What a problem says to a person."""
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"{answer.status_code} {answer.reason_phrase}"
