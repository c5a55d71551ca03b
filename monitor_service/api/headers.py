"""Header fields of a request, and what every answer tells a browser not to do.

Pages say more about themselves (``web/pages.py``).
"""

from collections.abc import Iterable, Mapping

from starlette.types import Scope

SECURITY = {
    "Content-Security-Policy": (
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
STRICT_TRANSPORT = {"Strict-Transport-Security": "max-age=31536000"}
"""Only over TLS, where a browser obeys it."""

Pairs = list[tuple[bytes, bytes]]
"""Fields as they travel, their names in lower case."""


def pairs_of(fields: Mapping[str, str]) -> Pairs:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in fields.items()]


def completed(pairs: Iterable[tuple[bytes, bytes]], more: Pairs) -> Pairs:
    """The fields of an answer, and those of ``more`` that it does not set itself."""
    own = list(pairs)
    names = {name.lower() for name, _ in own}
    return own + [pair for pair in more if pair[0] not in names]


def fields_of(scope: Scope) -> Mapping[str, str]:
    """The fields of a request by their names in lower case; of several of one name the first."""
    known: Mapping[str, str] | None = scope.get("fields")
    if known is None:
        pairs = reversed(list(scope["headers"]))
        known = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in pairs}
        scope["fields"] = known
    return known
