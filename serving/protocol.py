"""OpenAI's chat protocol: a request's JSON -> a question; what is wrong with it -> an error.

Source: https://platform.openai.com/docs/api-reference/chat. `top_k` and `repetition_penalty` go
beyond it, as in vLLM's server. What the protocol has and this server has not is refused, not
ignored, where an answer would differ.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from model.errors import UserError
from model.sampling import LIMITS, Sampling

OWNER = "remoteglm"  # of the models that are listed, by which a client knows this server
BASE = ":base"  # behind a model's name: it answers as before fine-tuning
MAX_CHARACTERS = 100_000  # of all messages; a network here reads 2048 tokens
MAX_PARTS = 10_000  # messages and parts of them
KIND = re.compile(r"(str|list\[.*\])$")  # how pydantic names the kinds of a field
ADDRESSES = ("data:", "http://", "https://")


class ApiError(Exception):
    """An answer of OpenAI's form to a request that fails. param: the field that is at fault."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class ImageUrl(BaseModel):
    url: str


class Part(BaseModel):
    type: Literal["text", "image_url"]
    text: str = ""
    image_url: ImageUrl | None = None

    @model_validator(mode="after")
    def has_what_its_type_says(self):
        """Raises ValueError."""
        if self.type == "image_url" and self.image_url is None:
            raise ValueError("a part of type image_url without image_url")
        if self.type == "text" and ("text" not in self.model_fields_set or self.image_url):
            raise ValueError("a part of type text has the field text and no other")
        return self


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content.strip()
        return "\n".join(part.text for part in self.content if part.type == "text").strip()

    @property
    def addresses(self) -> list[str]:
        if isinstance(self.content, str):
            return []
        return [part.image_url.url for part in self.content if part.image_url]


class StreamOptions(BaseModel, strict=True):
    include_usage: bool = False


class ChatRequest(BaseModel, strict=True):
    """The fields that are read. None and absent are the same; numbers in quotes are no numbers."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None  # -1, as 0: no limit
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=LIMITS["seed"][0], le=LIMITS["seed"][1])] | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None

    @property
    def stops(self) -> list[str]:
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in given if stop]


# Field -> the values that change no answer; the last ones are vLLM's
REFUSED: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "web_search_options": (None,),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "best_of": (None, 1),
    "use_beam_search": (None, False),
    "length_penalty": (None, 1),
    "min_p": (None, 0),
    "min_tokens": (None, 0),
    "ignore_eos": (None, False),
    "stop_token_ids": (None, []),
    "bad_words": (None, []),
    "echo": (None, False),
    "guided_json": (None,),
    "guided_regex": (None,),
    "guided_choice": (None,),
    "guided_grammar": (None,),
    "structured_outputs": (None,),
}


def parse_request(content: bytes | bytearray) -> ChatRequest:
    """A request's body -> its fields. Raises ApiError."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON in UTF-8: {one_line(error)}") from None
    if not isinstance(body, dict):
        raise ApiError(400, f"the body is a JSON {type(body).__name__}, expected an object")
    _check_parts(body.get("messages"))
    for name, harmless in REFUSED.items():
        value = body.get(name)
        # In Python True is 1
        if value is True or value not in harmless:
            raise ApiError(
                400, f"{name} is not supported here; leave it out", param=name, code="unsupported"
            )
    try:
        request = ChatRequest.model_validate(body)
    except ValidationError as error:
        # Of a field that may be of two kinds, what was wrong with the nearer one
        found = error.errors(include_url=False)
        deepest = max(reversed(found), key=lambda one: len(one["loc"]))
        names = [str(name) for name in deepest["loc"] if not KIND.match(str(name))]
        where, given = ".".join(names), repr(deepest["input"])[:80]
        raise ApiError(400, f"{where}: {deepest['msg']}, got {given}", param=where) from None
    _check_text(request)
    return request


def _check_parts(messages):
    """Before each is looked at, which takes long. Raises ApiError."""
    if not isinstance(messages, list):
        return
    contents = [one.get("content") for one in messages if isinstance(one, dict)]
    parts = len(messages) + sum(len(content) for content in contents if isinstance(content, list))
    if parts > MAX_PARTS:
        raise ApiError(
            400,
            f"{parts} messages and parts of them, at most {MAX_PARTS} are read",
            param="messages",
            code="context_length_exceeded",
        )


def _check_text(request):
    texts = [message.text for message in request.messages] + request.stops
    addresses = [address for message in request.messages for address in message.addresses]
    length = sum(map(len, texts))
    if length > MAX_CHARACTERS:
        raise ApiError(
            400,
            f"{length} characters in the messages, at most {MAX_CHARACTERS} are read",
            param="messages",
            code="context_length_exceeded",
        )
    try:
        "".join(texts + addresses).encode()
    except UnicodeEncodeError:
        raise ApiError(
            400,
            "the messages have half of a surrogate pair; send whole characters",
            param="messages",
        ) from None


@dataclass(frozen=True)
class Dialogue:
    """question: "" where the last message is an image alone; history: (question, answer) pairs."""

    question: str
    history: tuple[tuple[str, str], ...]
    address: str | None  # of the image


def dialogue_of(messages: Sequence[Message]) -> Dialogue:
    """Messages -> rounds. Raises ApiError.

    Instructions of the system stand before the question that follows them: the networks here know
    no other place. All rounds are about one image, wherever it was sent.
    """
    history, asked, addresses = [], [], []
    has_user = False
    for message in messages:
        addresses += message.addresses
        if message.role != "assistant":
            has_user = has_user or message.role == "user"
            asked.append(message.text)
            continue
        if not has_user:
            raise ApiError(400, "an assistant's message follows no user's", param="messages")
        history.append(("\n".join(filter(None, asked)), message.text))
        asked, has_user = [], False
    if not has_user:
        raise ApiError(400, "the last message must be a user's", param="messages")
    question = "\n".join(filter(None, asked))
    address = _single(addresses)
    if not question and not address:
        raise ApiError(400, "the last message has neither text nor an image", param="messages")
    return Dialogue(question, tuple(history), address)


def _single(addresses):
    """The one image of a dialogue, which clients may send with every round; or None."""
    for address in addresses:
        if not address[:8].lower().startswith(ADDRESSES):
            raise ApiError(
                400,
                f"image_url {address[:40]!r}: expected a data:, http:// or https:// address",
                param="messages",
            )
    if len(set(addresses)) > 1:
        raise ApiError(
            400,
            f"{len(set(addresses))} images in one dialogue; this model reads one",
            param="messages",
            code="too_many_images",
        )
    return addresses[0] if addresses else None


def sampling_of(request: ChatRequest) -> Sampling:
    """Absent settings are the project's own. Raises ApiError."""
    given: dict[str, Any] = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k and max(0, request.top_k),
        "repetition_penalty": request.repetition_penalty,
        "seed": request.seed,
        "max_new_tokens": request.max_completion_tokens or request.max_tokens,
    }
    try:
        return Sampling(**{name: value for name, value in given.items() if value is not None})
    except UserError as error:
        raise ApiError(400, str(error)) from None


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
