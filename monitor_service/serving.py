"""Runs the app on a socket until a signal asks it to end; then everybody who waits gets an answer first."""

import signal
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from monitor_service.bell import Bell

KEEP_ALIVE_S = 75
"""Longer than proxies and trainers keep a quiet connection: they, not the monitor, let go first."""

DRAIN_S = 5
"""What is not answered so long after the signal is dropped; the trainer sends it again."""


def run_until_signal(app: FastAPI, listening: socket.socket) -> None:
    """Serve; returns after SIGINT or SIGTERM when all is answered and stored."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_S,
    )
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.SIG_IGN)  # uvicorn takes them over and raises them again at the end
    _Server(config, app.state.monitor.bell).run(sockets=[listening])


class _Server(uvicorn.Server):
    """Lets held replies go when it is asked to end."""

    def __init__(self, config: uvicorn.Config, bell: Bell) -> None:
        super().__init__(config)
        self._bell = bell

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._bell.close()
        super().handle_exit(sig, frame)
