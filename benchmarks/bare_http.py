"""A bare HTTP/1.1 connection, and a server in a process of its own: cheap, so that the server is measured."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


class Connection:
    """One connection that is kept; requests are bytes made beforehand."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 30)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.settimeout(60)
        self._read = b""

    def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body of the answer."""
        self.send(request)
        return self.receive()

    def send(self, request: bytes) -> None:
        self._socket.sendall(request)

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive(self) -> tuple[int, bytes]:
        """The next answer."""
        head = self._until(b"\r\n\r\n")
        status, fields = int(head[9:12]), head.lower()
        if b"transfer-encoding: chunked" in fields:
            return status, self._chunks()
        begin = fields.find(b"content-length:")
        length = 0 if begin < 0 else int(fields[begin + 15 :].split(b"\r\n", 1)[0])
        return status, self._exactly(length)

    def close(self) -> None:
        self._socket.close()

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self._until(b"\r\n").split(b";")[0], 16):
            parts.append(self._exactly(size))
            self._until(b"\r\n")
        self._until(b"\r\n")
        return b"".join(parts)

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._read:
            self._more()
        found, self._read = self._read.split(mark, 1)
        return found

    def _exactly(self, length: int) -> bytes:
        found, self._read = self._read[:length], self._read[length:]
        if len(found) == length:
            return found
        whole = bytearray(length)  # a body is read in place: adding to bytes copies all of it again and again
        whole[: len(found)] = found
        rest = memoryview(whole)[len(found) :]
        while rest:
            size = self._socket.recv_into(rest)
            if not size:
                raise ConnectionError("the server closed the connection")
            rest = rest[size:]
        return whole

    def _more(self) -> None:
        some = self._socket.recv(1 << 18)
        if not some:
            raise ConnectionError("the server closed the connection")
        self._read += some


def request(method: str, path: str, body: bytes = b"", kind: str = "application/json", **more: str) -> bytes:
    """A whole request; ``more`` are header fields, with _ for -."""
    fields = {"Host": "127.0.0.1", "Content-Type": kind, "Content-Length": str(len(body))}
    fields |= {name.replace("_", "-"): value for name, value in more.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


class Server:
    """A program that listens on ``port``, with all processes that it starts; ended with ``stop``."""

    def __init__(self, command: Sequence[str], port: int, log: Path, **environment: str) -> None:
        self.port = port
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._log = log

    def wait_until(self, path: str, within_s: float = 120) -> None:
        """Until ``path`` answers with 200."""
        deadline = time.monotonic() + within_s
        while True:
            try:
                connection = Connection(self.port)
                status, _ = connection.ask(request("GET", path))
                connection.close()
                if status == 200:
                    return
            except (OSError, ConnectionError):
                pass
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no server: {self._log.read_text()[-2000:]}")
            time.sleep(0.1)

    def memory_mib(self) -> float:
        """Memory of its processes; what several share counts once."""
        return sum(map(_pss_kib, _group(self._process.pid))) / 1024

    def cpu_s(self) -> float:
        """Processor seconds of all its processes so far."""
        return sum(_cpu_s(pid) for pid in _group(self._process.pid))

    def signal(self, number: signal.Signals) -> None:
        """To the process itself."""
        self._process.send_signal(number)

    def stop(self) -> None:
        with suppress(ProcessLookupError):  # all of them have ended
            os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def _group(leader: int) -> list[int]:
    """The processes of a group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.getpgid(int(entry.name)) == leader:
                    found.append(int(entry.name))
            except ProcessLookupError:
                continue
    return found


def _pss_kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS
