"""Keeps foreign web sites away from a server that a person's browser can reach.

A site's script may send requests to any address that the browser reaches. It can neither choose the
header Origin, nor, where its own name was made to lead here (DNS rebinding), the header Host.
"""

import ipaddress
import socket
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse

from serving.protocol import ApiError


class Guard:
    """An ASGI app around another one. trusted: further names under which it is reached."""

    def __init__(self, app: Any, trusted: Iterable[str] = ()):
        self.app = app
        own = socket.gethostname().lower()
        self.trusted = {"localhost", own, f"{own}.local", *(name.lower() for name in trusted)}

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            headers = {name.decode("latin-1"): v.decode("latin-1") for name, v in scope["headers"]}
            problem = self._problem(headers)
            if problem:
                refused = ApiError(403, problem)
                await JSONResponse(refused.body, refused.status)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _problem(self, headers):
        """One line, or None for a request that may pass."""
        host = headers.get("host", "")
        if not self._is_trusted(host):
            return f"host {host!r} is not known here; start the server with --trusted-host"
        origin = headers.get("origin")
        if origin is None or self._is_same(origin, host, headers.get("x-forwarded-host")):
            return None
        return f"origin {origin!r} is another web site; start the server with --trusted-host"

    def _is_trusted(self, host):
        name = _hostname(f"//{host}")
        if name in self.trusted:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _is_same(self, origin, *hosts):
        return origin.partition("://")[2] in hosts or _hostname(origin) in self.trusted


def _hostname(address):
    try:
        return (urlsplit(address).hostname or "").lower()
    except ValueError:
        return ""
