"""One request to the monitor and its answer, bounded in time and in size."""

import asyncio
import json
import logging
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import httpx

from trainer.link.config import LinkConfig

MAX_ANSWER_BYTES = 1 << 20
TOKEN_VARIABLE = "TRAINHEALTH_TOKEN"
"""Of the environment, where the configuration names no file; with ``_FILE`` at its end it names one."""

MAX_CONNECTIONS = 2
"""One whose reply is held, and one to overtake it."""
KEEP_ALIVE_S = 4.0
"""Below the 5 s after which uvicorn closes an idle connection, or a batch would meet a closed one."""

log = logging.getLogger(__name__)


class NotTaken(Exception):
    """A batch did not get through this time; it will be sent again."""

    def __init__(self, why: str, *, retry_after_s: float | None = None, register_again: bool = False) -> None:
        super().__init__(why)
        self.retry_after_s, self.register_again = retry_after_s, register_again


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    body: bytes
    retry_after_s: float | None = None

    @property
    def is_success(self) -> bool:
        """2xx: committed."""
        return 200 <= self.status < 300

    def describe(self) -> str:
        """The status and what problem+json says about it, in one line."""
        try:
            problem = json.loads(self.body)
            detail = str(problem.get("detail") or problem.get("title") or "")
        except (ValueError, AttributeError, RecursionError):
            detail = self.body[:200].decode(errors="replace")
        return f"{self.status} {' '.join(detail.split())[:500]}".strip()


class Courier:
    """Carries bytes to one run's addresses. Used inside ``async with``."""

    def __init__(self, config: LinkConfig, run: str) -> None:
        self._config = config
        self._path = f"{config.url}/api/v1/runs/{quote(run, safe='')}"
        self._client = httpx.AsyncClient(
            timeout=None,  # the whole request has one deadline, see _request
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS, keepalive_expiry=KEEP_ALIVE_S),
            verify=_trust(config),
            # A proxy named in the environment leads to the outside, never to this machine.
            trust_env=not config.is_loopback,
        )
        self._headers: dict[str, str] = {}

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.__aexit__(kind, error, trace)

    async def register(self, spec: bytes) -> Answer:
        """Tell the monitor what the run is. Reads the token anew. Raises ``NotTaken``."""
        self._headers = {
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",  # what is not packed can't unpack to gigabytes
            **_authorization(self._config.token_file),
        }
        return await self._request("PUT", self._path, spec, self._config.answer_timeout_s)

    async def exchange(self, body: bytes, hold_s: float) -> Answer:
        """Send a batch and wait for the reply, which may be held for ``hold_s``. Raises ``NotTaken``."""
        return await self._request(
            "POST", f"{self._path}/exchange", body, hold_s + self._config.answer_timeout_s
        )

    async def _request(self, method: str, url: str, body: bytes, deadline_s: float) -> Answer:
        """One deadline over all of it: a peer that drips a byte a second gets no longer than a silent one."""
        try:
            async with (
                asyncio.timeout(deadline_s),
                self._client.stream(method, url, content=body, headers=self._headers) as response,
            ):
                return Answer(response.status_code, await _read(response), _retry_after_s(response))
        except TimeoutError as error:
            raise NotTaken(f"no answer within {deadline_s:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError) as error:
            raise NotTaken(f"{type(error).__name__}: {error}") from error


async def _read(response: httpx.Response) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise NotTaken(f"its answer is longer than {MAX_ANSWER_BYTES} bytes")
    return bytes(body)


def _retry_after_s(response: httpx.Response) -> float | None:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _trust(config: LinkConfig) -> ssl.SSLContext | bool:
    if not config.url.startswith("https"):
        return False  # plain HTTP needs no certificates loaded
    context = ssl.create_default_context()
    if config.ca_file is not None:
        try:
            context.load_verify_locations(config.ca_file)
        except OSError as error:  # the reports wait in the spool; the training does not wait
            log.warning("link: the certificates in %s cannot be used: %s", config.ca_file, error)
    return context


def _authorization(token_file: Path | None) -> dict[str, str]:
    """The header that shows the token. The token stands nowhere else: not in a config, a log or an error."""
    named = os.environ.get(f"{TOKEN_VARIABLE}_FILE")
    file = token_file or (Path(named) if named else None)
    if file is None:
        token = os.environ.get(TOKEN_VARIABLE, "").strip()
        return (
            {"Authorization": f"Bearer {token}"} if token.isascii() and token.isprintable() and token else {}
        )
    try:
        token = file.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise NotTaken(f"the token in {file} can't be read ({type(error).__name__})") from error
    return {"Authorization": f"Bearer {token}"}
