"""OpenAI's protocol over HTTP: chat completions, models; health and metrics.

The app is made before the checkpoint is loaded: until then it answers 503.
"""

import asyncio
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route

from model.images import TOO_LARGE, ImageError
from model.images.reading import opened, pixels_of, read_opened
from model.rows import Sample
from model.running_batch import Question
from serving.protocol import (
    BASE,
    OWNER,
    ApiError,
    ChatRequest,
    dialogue_of,
    one_line,
    parse_request,
    sampling_of,
)
from serving.scheduler import CANCELLED, ERROR, LENGTH, TIME, QueueFull
from serving.served import Served
from serving.turns import Turns

MAX_BODY = 140 * 2**20  # bytes: an image of 100 MB in base64
MAX_BODIES = 4 * MAX_BODY  # of all requests, until their images are decoded
BODIES_SECONDS = 5.0  # after which there may be room for another body
IMAGES = 64  # that came with their request and are decoded, or wait for their turn
FAR_IMAGES = 16  # that are fetched by their address, which may take a minute
CHECK = 0.5  # seconds after which a client that waits is looked for
KEEP_ALIVE = 5.0  # seconds after which a silent stream gets a comment
EVERYTHING = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
PATHS = ("/metrics", "/v1", "/v1/{path:path}")  # that nobody enters without the key


@dataclass
class Api:
    """What the routes share. served: None while the checkpoint is loaded; name: of its model."""

    name: str
    key: str | None = None
    bands: tuple[int, ...] | None = None
    english: bool | None = None  # None: as the checkpoint was trained
    served: Served | None = None
    turns: Turns = field(default_factory=Turns)

    def __post_init__(self):
        self.created = int(time.time())
        self.images = CapacityLimiter(IMAGES)
        self.far_images = CapacityLimiter(FAR_IMAGES)
        self.bodies = 0  # bytes of them that are held

    @property
    def ready(self) -> Served:
        """Raises ApiError while it loads, and where the scheduler has ended."""
        if self.served is None:
            # A browser that came too early asks again
            wait = {"Retry-After": "5", "Refresh": "5"}
            raise ApiError(503, "the model is being loaded", headers=wait)
        if not self.served.scheduler.is_alive:
            raise ApiError(503, "the server is shutting down")
        return self.served

    @property
    def models(self) -> list[str]:
        """The checkpoint, and its base where it can be asked."""
        return [self.name, self.name + BASE] if self.ready.has_adapter else [self.name]

    def check_key(self, request: Request) -> None:
        """Raises ApiError without the key, where there is one."""
        if self.key is None:
            return
        given = request.headers.get("Authorization", "")
        scheme, _, token = given.partition(" ")
        # Starlette reads headers as Latin-1, clients send UTF-8
        is_right = hmac.compare_digest(token.strip().encode("latin-1"), self.key.encode())
        if scheme.lower() != "bearer" or not is_right:
            raise ApiError(
                401,
                "no or wrong API key; expected the header Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def create_app(api: Api, with_page: bool = False) -> FastAPI:
    """The API; with_page: a page will be mounted behind its routes."""
    app = FastAPI(title="RemoteGLM", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(ApiError, _error_response)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_exception_handler(Exception, _internal_error)
    # Whoever balances load asks with HEAD
    app.api_route("/health", methods=["GET", "HEAD"])(partial(_health, api))
    app.api_route("/health", methods=EVERYTHING)(_unknown)
    if not with_page:
        app.get("/")(partial(_front, api))

    locked = APIRouter(dependencies=[Depends(api.check_key)])
    locked.get("/metrics")(partial(_metrics, api))
    locked.get("/v1/models")(partial(_models, api))
    locked.get("/v1/models/{name:path}")(partial(_model, api))
    locked.post("/v1/chat/completions")(partial(_chat, api))
    for path in PATHS:
        locked.api_route(path, methods=EVERYTHING)(_unknown)
    app.include_router(locked)
    # What no route above takes would be Gradio's to answer beneath the page
    for path in ("/health", *PATHS):
        app.router.routes.append(Route(path, _OtherMethod()))
    return app


async def _error_response(request, error):
    return JSONResponse(error.body, error.status, headers=error.headers)


class _OtherMethod:
    """An ASGI app: Starlette asks one for every method, a function for GET alone."""

    async def __call__(self, scope, receive, send):
        raise HTTPException(405, headers={"Allow": ", ".join(EVERYTHING)})


async def _no_route(request, error):
    """Of what Starlette finds no route for; beneath the page that is Gradio's to answer."""
    told = f"no such endpoint: {request.method} {request.url.path}"
    said = ApiError(error.status_code, told, headers=error.headers)
    return await _error_response(request, said)


async def _internal_error(request, error):
    """The server's log has the traceback."""
    return await _error_response(request, ApiError(500, f"internal error: {one_line(error)}"))


async def _front(api: Api):
    return {"models": api.models, "api": "/v1", "health": "/health"}


async def _health(api: Api):
    running, waiting = api.ready.scheduler.load
    return {"status": "ok", "model": api.name, "running": running, "waiting": waiting}


async def _metrics(api: Api):
    scheduler = api.ready.scheduler
    return PlainTextResponse(scheduler.metrics.text(*scheduler.load))


def _card(api, name):
    """The protocol's, and what cli_demo.py --serve asks for."""
    served = api.ready
    told = {
        "prompt": served.first_question(api.english),
        "english": served.english if api.english is None else api.english,
        "fingerprint": served.fingerprint,
    }
    card = {"id": name, "object": "model", "created": api.created, "owned_by": OWNER}
    return card | {OWNER: told}


async def _models(api: Api):
    return {"object": "list", "data": [_card(api, name) for name in api.models]}


async def _model(api: Api, name: str):
    _check_model(api, name)
    return _card(api, name)


async def _unknown(request: Request):
    raise ApiError(404, f"no such endpoint: {request.method} {request.url.path}")


def _check_model(api, name):
    if name not in api.models:
        known = ", ".join(api.models)
        raise ApiError(
            404, f"no model {name!r} here; there is {known}", param="model", code="model_not_found"
        )


# A chat completion


async def _chat(api: Api, request: Request) -> Response:
    served = api.ready
    # OpenAI's clients send it; a form of a foreign web site cannot
    if "json" not in request.headers.get("Content-Type", ""):
        raise ApiError(415, "expected the header Content-Type: application/json")
    async with _body(api, request) as body:
        # In a thread: of 100 MB it takes a second
        chat = await run_sync(parse_request, body)
        _check_model(api, chat.model)
        question = await _question(api, served, chat)
        chat.messages.clear()  # the image among them, which would stay as long as the answer

    loop = asyncio.get_running_loop()
    events: asyncio.Queue = asyncio.Queue()

    def deliver(event):
        loop.call_soon_threadsafe(events.put_nowait, event)

    client = request.client.host if request.client else ""
    try:
        ticket = served.scheduler.submit(question, deliver, client=client, stop=chat.stops)
    except QueueFull as error:
        raise _busy(str(error), error.seconds) from None
    answer = _Answer(chat, ticket, events)
    if chat.stream:
        return _AnswerStream(answer, served.scheduler)
    try:
        return JSONResponse(await answer.whole(request))
    finally:
        served.scheduler.cancel(ticket)


def _busy(reason, seconds):
    wait = str(max(1, round(seconds)))
    return ApiError(429, reason, code="rate_limit_exceeded", headers={"Retry-After": wait})


@asynccontextmanager
async def _body(api, request):
    """A context with the body of a request, which takes its part of MAX_BODIES there."""
    announced = request.headers.get("Content-Length", "")
    _check_size(api, 0, int(announced) if announced.isdigit() else 0)
    content = bytearray()
    try:
        async for chunk in request.stream():
            _check_size(api, len(content), len(chunk))
            content += chunk
            api.bodies += len(chunk)
        yield content
    except ClientDisconnect:
        raise ApiError(400, "the client left before its request had ended") from None
    finally:
        api.bodies -= len(content)
        content.clear()  # whoever left the context may still name it


def _check_size(api, there, more):
    """Raises ApiError where more bytes are too many, of this body or of all."""
    if there + more > MAX_BODY:
        raise ApiError(413, f"the body has more than {MAX_BODY >> 20} MB")
    if api.bodies + more > MAX_BODIES:
        reason = f"the bodies of all requests have more than {MAX_BODIES >> 20} MB"
        raise _busy(f"{reason}; try again in a while", BODIES_SECONDS)


async def _question(api, served, chat):
    dialogue = dialogue_of(chat.messages)
    image = None
    if dialogue.address:
        is_here = dialogue.address[:5].lower() == "data:"
        threads = api.images if is_here else api.far_images
        image = await run_sync(_read, api, dialogue.address, limiter=threads)
    question = dialogue.question or served.first_question(api.english)
    return Question(
        Sample(None, question, None, dialogue.history),
        image,
        sampling_of(chat),
        served.english if api.english is None else api.english,
        chat.model.endswith(BASE) and chat.model != api.name,
    )


def _read(api, address):
    try:
        with opened(address, public_only=True) as file:
            with api.turns.take(pixels_of(file)):
                return read_opened(file, address, api.bands)
    except ImageError as error:
        status = 413 if error.kind == TOO_LARGE else 422
        raise ApiError(status, str(error), param="messages", code="invalid_image") from None


class _Answer:
    """One completion in OpenAI's form, whole or in chunks."""

    def __init__(self, chat: ChatRequest, ticket, events):
        self.chat = chat
        self.ticket = ticket
        self.events = events
        self.head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": chat.model,
        }

    async def whole(self, request: Request) -> dict:
        """Raises ApiError."""
        text, looked_at = "", time.monotonic()
        while True:
            event = await self._next(CHECK)
            if time.monotonic() - looked_at > CHECK:
                looked_at = time.monotonic()
                # Nobody reads this: the answer is dropped
                if await request.is_disconnected():
                    raise ApiError(499, "the client has left")
            if event is None:
                continue
            text += event.text
            if event.end:
                break
        _check_end(event)
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _reason(event)}
        body = {**self.head, "object": "chat.completion", "choices": [choice]}
        return {**body, "usage": self._usage(), **self._cut()}

    async def chunks(self) -> AsyncIterator[str]:
        """The lines of server-sent events: https://html.spec.whatwg.org/#server-sent-events"""
        yield self._chunk({"role": "assistant", "content": ""})
        while True:
            event = await self._next(KEEP_ALIVE)
            if event is None:
                yield ": waiting\n\n"
                continue
            if event.text:
                yield self._chunk({"content": event.text})
            if event.end:
                break
        try:
            _check_end(event)
        except ApiError as error:
            yield _data(error.body)
            return
        yield self._chunk({}, _reason(event), **self._cut())
        if self.chat.stream_options and self.chat.stream_options.include_usage:
            yield _data({**self._chunk_head, "choices": [], "usage": self._usage()})
        yield "data: [DONE]\n\n"

    async def _next(self, seconds):
        """The next event, or None after so many seconds without one."""
        try:
            return await asyncio.wait_for(self.events.get(), seconds)
        except TimeoutError:
            return None

    @property
    def _chunk_head(self):
        return {**self.head, "object": "chat.completion.chunk"}

    def _chunk(self, delta, reason=None, **more):
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _data({**self._chunk_head, "choices": [choice], **more})

    def _usage(self):
        """None where the family does not count tokens."""
        prompt, completion = self.ticket.prompt_tokens, self.ticket.tokens
        if prompt is None or completion is None:
            return None
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }

    def _cut(self):
        """Beyond the protocol: what of the dialogue was too long and not read."""
        rounds, tokens = self.ticket.cut
        return {"cut": {"rounds": rounds, "question_tokens": tokens}} if rounds or tokens else {}


class _AnswerStream(StreamingResponse):
    """Drops the answer as soon as the client has left."""

    def __init__(self, answer, scheduler):
        super().__init__(
            answer.chunks(),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )
        self.ticket = answer.ticket
        self.scheduler = scheduler

    async def __call__(self, scope, receive, send):
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.scheduler.cancel(self.ticket)


def _data(body):
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def _reason(event):
    return "length" if event.end in (LENGTH, TIME) else "stop"


def _check_end(event):
    """Raises ApiError for an end that is no answer."""
    if event.end == CANCELLED:
        raise ApiError(503, "the server is shutting down")
    if event.end == ERROR:
        raise ApiError(400 if event.is_users else 500, event.error)
