"""Runs the app on a socket until a signal asks it to end; then everybody who waits gets an answer first."""

import gc
import signal
import socket
import ssl
from types import FrameType

import uvicorn
from fastapi import FastAPI

from monitor_service.api.dependencies import Monitor
from monitor_service.errors import CertificateUnusable
from monitor_service.gathering import OneWriteProtocol
from monitor_service.settings import Settings

KEEP_ALIVE_S = 75
"""Longer than proxies and trainers keep a quiet connection: they, not the monitor, let go first."""

DRAIN_S = 5
"""What is not answered so long after the signal is dropped; the trainer sends it again."""


def check_certificate(settings: Settings) -> None:
    """Raises CertificateUnusable: TLS is asked for, and cannot be had."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_certificate, settings.tls_key)
    except OSError as error:  # an SSLError is one
        why = error.strerror or str(error)
        raise CertificateUnusable(str(settings.tls_certificate), str(settings.tls_key), why) from error


def run_until_signal(app: FastAPI, listening: socket.socket) -> None:
    """Serve; returns after SIGINT or SIGTERM when all is answered and stored."""
    settings: Settings = app.state.monitor.settings
    config = uvicorn.Config(
        app,
        http=OneWriteProtocol,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_S,
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies or None,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
    )
    server = _Server(config, app.state.monitor)
    for ending in (signal.SIGINT, signal.SIGTERM):
        # until uvicorn takes them over; at the end it raises them again, and that must end nothing
        signal.signal(ending, server.handle_exit)
    gc.collect()
    gc.freeze()  # what is built by now stays: a collection that walked all of it would hold every answer up
    server.run(sockets=[listening])


class _Server(uvicorn.Server):
    """Lets held replies and live streams go when it is asked to end."""

    def __init__(self, config: uvicorn.Config, monitor: Monitor) -> None:
        super().__init__(config)
        self._monitor = monitor

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._monitor.bell.close()
        self._monitor.newsroom.close()
        super().handle_exit(sig, frame)
