"""Serve an app in the background, on a port that is taken from the beginning."""

import socket
import threading
import time
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

GRACE = 3  # seconds that requests under way have when the server ends
HEAD_SECONDS = 20  # in which the head of a request must have arrived


class PatientProtocol(H11Protocol):
    """Closes connections that begin no request (slow loris); uvicorn knows no such limit."""

    _BUSY = object()

    def connection_made(self, transport):
        super().connection_made(transport)
        self.loop.call_later(HEAD_SECONDS, self._look, self.cycle)

    def _look(self, idle_since):
        """idle_since: the last request, if it was answered at the look before; else _BUSY."""
        if self.transport.is_closing() or self.transport.get_protocol() is not self:
            return
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self.cycle is idle_since:
            self.transport.close()
            return
        self.loop.call_later(HEAD_SECONDS, self._look, self.cycle if is_idle else self._BUSY)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError where the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=128)


def address(host: str, port: int) -> str:
    """What a browser on this machine opens."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{shown}]:{port}/" if ":" in shown else f"http://{shown}:{port}/"


def network_address(port: int) -> str | None:
    """What a browser in the local network opens, or None without a network. Sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # reserved for documentation: RFC 5737
        except OSError:
            return None
        return address(probe.getsockname()[0], port)


class Server:
    """An app in a thread; several may share a listening socket, which stays open."""

    def __init__(self, app: Any, listener: socket.socket):
        config = uvicorn.Config(
            app,
            http=PatientProtocol,
            log_level="warning",
            timeout_graceful_shutdown=GRACE,
            server_header=False,
        )
        self.port = listener.getsockname()[1]
        self.local_url = address(listener.getsockname()[0], self.port)
        self._server = uvicorn.Server(config)
        # A copy: uvicorn closes what it was given
        self._thread = threading.Thread(
            target=self._server.run, args=([listener.dup()],), name="server", daemon=True
        )

    def start(self) -> "Server":
        """Returns when it answers."""
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.01)
        return self

    def close(self, verbose: bool = False) -> None:
        """End it, whatever is under way."""
        self._server.should_exit = True
        self._thread.join()

    def wait(self) -> None:
        """Until the server has ended, or the main thread gets a signal."""
        while self._thread.is_alive():
            self._thread.join(1)
