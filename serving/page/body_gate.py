"""Refuses uploads for which the disk has no room, and other bodies that no page sends."""

from contextlib import suppress
from typing import Any

from fastapi.concurrency import run_in_threadpool
from fastapi.responses import PlainTextResponse
from gradio.route_utils import GradioMultiPartParser
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request

from serving.page.words import WORDS, WordedError
from serving.space import Space

UPLOAD = "/gradio_api/upload"
OF_API = "/v1/"  # the bodies there have limits of their own, see serving/api.py
MOST = 8 * 2**20  # bytes of any other: a question that is far too long is told so by the page
LANGUAGE = "remoteglm-language"  # a cookie, see language.js
_Parser: Any = GradioMultiPartParser
_read_headers = _Parser.on_headers_finished


def refuse_fields() -> None:
    """Trap: Gradio keeps in memory what an upload has beside its files, however large."""
    _Parser.on_headers_finished = _files_only


def _files_only(parser):
    _read_headers(parser)
    if parser._current_part.file is None:
        raise MultiPartException("an upload has files only")


class BodyGate:
    """An ASGI app around the page's. It keeps the room that an upload will take.

    english: the language of who tells none.
    """

    def __init__(self, app: Any, space: Space, english: bool = False):
        self.app = app
        self.space = space
        self.english = english

    async def __call__(self, scope, receive, send):
        is_posted = scope["type"] == "http" and scope["method"] == "POST"
        if not is_posted or scope["path"].startswith(OF_API):
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        without = "" if "Transfer-Encoding" in request.headers else "0"
        length = request.headers.get("Content-Length", without)
        if not length.isdecimal():
            refusal = PlainTextResponse("expected the header Content-Length", 411)
            await refusal(scope, receive, send)
        elif scope["path"].endswith(UPLOAD):
            await self._upload(request, int(length), send)
        elif int(length) > MOST:
            refusal = PlainTextResponse(f"the body has more than {MOST >> 20} MB", 413)
            await refusal(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _upload(self, request, length, send):
        scope, receive = request.scope, request.receive
        try:
            await run_in_threadpool(self.space.take, length)
        except WordedError as error:
            # A browser reads no answer before it has sent everything
            with suppress(ClientDisconnect):
                async for _ in request.stream():
                    pass
            refusal = PlainTextResponse(error.said(WORDS[self._is_english(request)]), 507)
            await refusal(scope, receive, send)
            return
        try:
            with suppress(ClientDisconnect):
                await self.app(scope, receive, send)
        finally:
            self.space.give_back(length)

    def _is_english(self, request):
        chosen = request.cookies.get(LANGUAGE) or request.headers.get("Accept-Language", "")
        return not chosen.lower().startswith("zh") if chosen else self.english
