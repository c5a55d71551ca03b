"""Which names a request may be for. A page elsewhere can make its own name lead here (DNS rebinding)."""

import socket
from ipaddress import ip_address

from monitor_service.errors import WrongHost

ANY = "*"


class Hosts:
    """Names of this monitor: ``localhost``, this machine's name, where it listens, and what is configured.

    An address in numbers always passes: to rebind, one needs a name.
    """

    def __init__(self, host: str, allowed: str) -> None:
        configured = (name.strip().lower() for name in allowed.split(","))
        own = ("localhost", socket.gethostname().lower(), host.lower())
        self._names = frozenset({*filter(None, configured), *own})
        self._seen: set[str] = set()

    def check(self, header: str) -> None:
        """Raises WrongHost: ``header`` is no name of ours."""
        if header in self._seen or ANY in self._names:
            return
        name = name_in(header)
        if name not in self._names and not _is_address(name):
            raise WrongHost(header)
        if len(self._seen) < 64:
            self._seen.add(header)


def name_in(header: str) -> str:
    """The name in a ``Host`` header, without its port."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].rstrip(".").lower()


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
