"""Serve an app in the background, and another one in its place when that is ready."""

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi.responses import JSONResponse
from uvicorn.lifespan.on import LifespanOn
from uvicorn.protocols.http.h11_impl import H11Protocol

from serving.protocol import ApiError

GRACE = 3  # seconds that requests under way have when the server ends
HEAD_SECONDS = 20  # in which the head of a request must have arrived
BODY_SECONDS = 120  # in which its body must have arrived
BODY_RATE = 10**6  # bytes that add a second to them


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


class PunctualBodies:
    """An ASGI app around another one: a request whose body comes too slowly ends as status 408.

    Time that an app takes to answer does not count.
    """

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = asyncio.timeout(None)
        try:
            async with limit:
                await self.app(scope, _limited(receive, limit), send)
        except TimeoutError:
            if not limit.expired():
                raise
            late = ApiError(408, f"the body did not arrive within {BODY_SECONDS} s")
            await JSONResponse(late.body, late.status, {"Connection": "close"})(
                scope, receive, send
            )


def _limited(receive, limit):
    """`receive` within a limit, which goes while it waits for a body and with every byte moves."""
    left = BODY_SECONDS
    is_whole = False

    async def received():
        nonlocal left, is_whole
        if is_whole:
            return await receive()
        now = asyncio.get_running_loop().time
        began = now()
        limit.reschedule(began + left)
        message = await receive()
        limit.reschedule(None)
        left += len(message.get("body", b"")) / BODY_RATE - (now() - began)
        is_whole = not message.get("more_body")
        return message

    return received


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError where the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=128)
    # Trap: a copy of a blocking socket makes all others blocking, too, and an event loop that
    # accepts connections then stands still until the next one comes.
    listener.setblocking(False)
    return listener


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


class _Stage:
    """An ASGI app that plays others, one after another."""

    def __init__(self, app):
        self._app = app
        self._lifespans = []
        self._loop = None

    async def __call__(self, scope, receive, send):
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        self._loop = asyncio.get_running_loop()
        await receive()  # the server starts
        await self._begin(self._app)
        await send({"type": "lifespan.startup.complete"})
        await receive()  # it ends
        for lifespan in self._lifespans:
            await lifespan.shutdown()
        await send({"type": "lifespan.shutdown.complete"})

    async def _begin(self, app):
        lifespan = LifespanOn(uvicorn.Config(app, log_config=None))
        await lifespan.startup()
        if lifespan.should_exit:
            raise RuntimeError("the app did not start; see above")
        self._lifespans.append(lifespan)
        self._app = app

    def show(self, app):
        asyncio.run_coroutine_threadsafe(self._begin(app), self._loop).result()


class Server:
    """An app in a thread; the listening socket stays open."""

    def __init__(self, app: Any, listener: socket.socket):
        self._stage = _Stage(app)
        config = uvicorn.Config(
            PunctualBodies(self._stage),
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

    def show(self, app: Any) -> None:
        """Answer by another app from now on. What is under way ends as it began.

        Returns when that app has started; until then the one before answers.
        """
        self._stage.show(app)

    def close(self, verbose: bool = False) -> None:
        """End it, whatever is under way."""
        with _silenced("uvicorn.error", "asyncio"):
            self._server.should_exit = True
            self._thread.join()

    def wait(self) -> None:
        """Until the server has ended, or the main thread gets a signal."""
        while self._thread.is_alive():
            self._thread.join(1)


@contextmanager
def _silenced(*loggers: str) -> Iterator[None]:
    """A context in which requests that are cut off print no tracebacks."""
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in loggers}
    for logger in levels:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
