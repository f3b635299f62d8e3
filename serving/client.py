"""A server that speaks OpenAI's protocol, with the methods of model.Assistant. Needs no torch.

One of this project tells what it was trained on, and takes all settings; any other one is asked
with those of the protocol.
"""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from data.answers import NoAnswer, Refused
from data.connection import url_problem
from data.endpoint import (
    TRANSIENT,
    Endpoint,
    Failed,
    Settings,
    Stopped,
    asked_pause,
    explained,
    open_client,
    without_end,
    without_key,
)
from data.peel import without_thoughts
from data.replies import Reply
from model.errors import NoAnswerError, UserError
from model.images.encoding import data_uri
from model.questions import DEFAULT_PROMPT, first_question
from model.sampling import Sampling
from serving.protocol import BASE, OWNER

MAX_PIXELS = 2048 * 2048  # of an image that is sent; larger ones are refused or shrunk by servers
LIST_SECONDS = 20.0  # for the list of models
TRIES = 3  # of a question to a server that is busy
PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between them: by itself, and as the server asks
EXPECTED_TOKENS = 200  # of an answer without a limit, for --tpm
Pairs = Sequence[tuple[str, str]]


class RemoteAssistant:
    """settings: server, model ("": the first one that it lists), pace; key: "" for none;
    max_pixels: larger images are shrunk to so many; options: of the script that name server, model
    and key, for error lines. Asks for the list of models. Raises UserError.
    """

    is_remote = True

    def __init__(
        self, settings: Settings, key: str, *, max_pixels: int | None = None, options: str = ""
    ):
        settings.base_url = api_address(settings.base_url)
        self._settings = settings
        # Some servers want a key of any kind
        self._key = key or "none"
        self._direct = _is_this_machine(settings.base_url)
        self._max_pixels = max_pixels or MAX_PIXELS
        self._silence = settings.silence or settings.timeout
        self._client = self._open("OpenAI", timeout=self._silence)
        self._options = options
        self._is_untuned = False
        self._endpoint: Endpoint | None = None
        self._loop = _Loop()
        self._introduce()

    def _open(self, kind, timeout):
        # Tries are counted here: the client would try again after silence, which may be charged.
        # A proxy of the environment does not lead to this machine.
        return open_client(
            kind,
            self._key,
            self._settings.base_url,
            trust_env=not self._direct,
            timeout=timeout,
            max_retries=0,
        )

    def _patiently(self, ask):
        """Its result; a server that is busy is asked again."""
        import openai

        for tries_left in reversed(range(TRIES)):
            try:
                return ask()
            except openai.APIStatusError as error:
                is_busy = error.status_code in TRANSIENT or error.status_code >= 500
                pause = asked_pause(error.response.headers) or PAUSE
                if not (is_busy and tries_left and pause <= LONGEST_PAUSE):
                    raise
            time.sleep(pause)

    def _introduce(self):
        cards = {card["id"]: card for card in self._cards()}
        url = self._settings.base_url
        if not self._settings.model:
            if not cards:
                hint = "" if url.endswith("/v1") else f", or is its address {url}/v1?"
                raise UserError(f"{url} lists no models; name one with --model{hint}")
            self._settings.model = next(iter(cards))
        self.name = self._settings.model
        self._is_ours = any(card.get("owned_by") == OWNER for card in cards.values())
        if self._is_ours and self.name not in cards:
            raise UserError(f"{url} has no model {self.name!r}; there is {', '.join(cards)}")

        told = cards.get(self.name, {}).get(OWNER) or {}
        self.prompt = told.get("prompt") or DEFAULT_PROMPT
        self.english = bool(told.get("english"))
        self.has_adapter = self.name + BASE in cards
        self.is_base = not self._is_ours
        weights = told.get("fingerprint") or url
        self.fingerprint = json.dumps([weights, self._settings.extra_body], sort_keys=True)

    def _cards(self) -> list[dict]:
        """What the server lists; [] where it lists nothing. Raises UserError."""
        try:
            seconds = min(LIST_SECONDS, self._silence)
            client = self._client.with_options(timeout=seconds)
            listed = self._patiently(client.models.list)
            return [card.model_dump() for card in listed.data if card.id]
        except Exception as error:  # noqa: BLE001 -- the network, and whatever stands there
            status = getattr(error, "status_code", None)
            if _is_connection_error(error) or status in (401, 403, 429, 503):
                raise self._problem(error) from None
            return []

    def _problem(self, error) -> NoAnswerError:
        url = self._settings.base_url
        reason = without_end(error, self._silence)
        text = f"{url}: {reason}" if reason else explained(error, url)
        text = " ".join(text.split())[:300]
        if getattr(error, "status_code", None) in (401, 403):
            text += f"; check {self._options}"
        return NoAnswerError(without_key(text, self._key))

    def first_question(self, english: bool | None = None) -> str:
        """As Assistant.first_question."""
        return first_question(self.prompt, self.english, english)

    @contextmanager
    def untuned(self):
        """Context in which the base answers, as if nothing had been fine-tuned."""
        self._is_untuned = True
        try:
            yield
        finally:
            self._is_untuned = False

    @property
    def _model(self):
        return self.name + BASE if self._is_untuned else self.name

    # One answer, as it comes

    def stream(
        self,
        question: str,
        image: Image.Image | None = None,
        history: Pairs = (),
        sampling: Sampling | None = None,
        english: bool | None = None,
        on_cut: Callable[[int, int], None] | None = None,
    ) -> Generator[str, None, bool]:
        """As Assistant.stream, but the language is the server's, and on_cut is called at the end.

        Raises UserError.
        """
        ask = partial(
            self._client.chat.completions.create,
            model=self._model,
            messages=self._messages(question, image, history),
            stream=True,
            extra_body=self._fields(sampling or Sampling()),
        )
        ending = ""
        try:
            with self._patiently(ask) as events:
                for event in events:
                    _tell_cut((event.model_extra or {}).get("cut"), on_cut)
                    for choice in event.choices[:1]:
                        ending = (choice.finish_reason or ending).lower()
                        if choice.delta.content:
                            yield choice.delta.content
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 -- the network
            raise self._problem(error) from None
        if not ending:
            raise NoAnswerError(
                f"{self._settings.base_url} ended the stream without a finish_reason: the answer "
                "is not whole, or none"
            )
        if ending == "content_filter":
            raise NoAnswerError("refused: finish_reason content_filter", is_refused=True)
        return Reply("", ending, None).is_truncated

    # Many answers

    def answer_batch(
        self,
        questions: Sequence[str],
        images: Sequence[Image.Image | None],
        sampling: Sampling | None = None,
        english: bool | None = None,
        histories: Sequence[Pairs] | None = None,
        on_cut: Callable[[int, int, int], None] | None = None,
        on_truncated: Callable[[int], None] | None = None,
    ) -> list[str]:
        """As Assistant.answer_batch, from any thread; thoughts are left out of the answers.

        Raises NoAnswerError where one of them is not answered, UserError where none will be.
        """
        sampling = sampling or Sampling()
        fields = self._fields(sampling) | {"model": self._model}
        expected = sampling.max_new_tokens or EXPECTED_TOKENS
        under_way = []
        for question, image, history in zip(questions, images, histories or [()] * len(questions)):
            messages = self._messages(question, image, history)
            under_way.append(self._loop.run(self._ask(messages, expected, fields)))

        answers = []
        for index, future in enumerate(under_way):
            answer = _result(future)
            _tell_cut(answer.cut, on_cut and (lambda *cut, row=index: on_cut(row, *cut)))
            if answer.is_truncated and on_truncated:
                on_truncated(index)
            answers.append(answer.text)
        return answers

    async def _ask(self, messages, expected, fields):
        if self._endpoint is None:
            client = self._open("AsyncOpenAI", timeout=self._settings.silence)
            self._endpoint = Endpoint(client, self._settings, self._key, "questions", self._options)
        if self._endpoint.stopped:
            raise Stopped(self._endpoint.stopped)
        answer, _ = await self._endpoint.answer(messages, expected, fields, _taken)
        return answer

    @property
    def spent(self) -> str:
        """One line about what answer_batch has used."""
        return self._endpoint.used if self._endpoint else "0 requests"

    def close(self) -> None:
        """End what is under way."""
        self._loop.close()
        self._client.close()

    # What is sent

    def _fields(self, sampling):
        fields = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "seed": sampling.seed,
        }
        if self._is_ours:
            fields |= {
                "top_k": sampling.top_k,
                "repetition_penalty": sampling.repetition_penalty,
            }
        if sampling.greedy:
            fields |= {"temperature": 0, "top_p": None, "seed": None}
        return {name: value for name, value in fields.items() if value is not None}

    def _messages(self, question, image, history):
        messages = []
        for asked, answer in history:
            messages.append({"role": "user", "content": asked})
            messages.append({"role": "assistant", "content": answer})
        messages.append({"role": "user", "content": question})
        if image is not None:
            shown = {"type": "image_url", "image_url": {"url": sent_image(image, self._max_pixels)}}
            parts = [shown, {"type": "text", "text": messages[0]["content"]}]
            messages[0]["content"] = parts
        return messages


@dataclass
class _Answer:
    text: str
    is_truncated: bool
    cut: dict | None


def _taken(reply: Reply) -> _Answer:
    """Raises Refused, NoAnswer."""
    if reply.is_filtered:
        raise Refused(f"finish_reason {reply.ending}")
    if reply.ending and not (reply.is_whole or reply.is_truncated):
        raise NoAnswer(f"finish_reason {reply.ending}")
    text = without_thoughts(reply.text)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise NoAnswer("half a surrogate pair, which no file can store") from None
    return _Answer(text, reply.is_truncated, reply.cut)


def _result(future: Future) -> _Answer:
    try:
        return future.result()
    except Refused as error:
        raise NoAnswerError(f"refused: {error}", is_refused=True) from None
    except Failed as error:
        raise NoAnswerError(str(error)) from None
    except (Stopped, CancelledError) as error:
        raise UserError(f"stopped: {error or 'interrupted'}; the same command continues") from None


def _tell_cut(cut, on_cut):
    if isinstance(cut, dict) and on_cut:
        on_cut(cut.get("rounds", 0), cut.get("question_tokens", 0))


class _Loop:
    """An event loop in a thread of its own."""

    def __init__(self):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Future:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self):
        """Cancel whatever runs there."""
        if self._loop.is_closed():
            return
        self.run(_cancel_others()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancel_others():
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def api_address(url: str) -> str:
    """A server's address as the client wants it: without a path it is .../v1. Raises UserError."""
    problem = url_problem(url, ("http", "https"))
    if problem:
        raise UserError(f"{url!r} {problem}; expected an address such as http://127.0.0.1:7860")
    scheme, _, rest = url.rstrip("/").partition("://")
    return f"{scheme}://{rest}" if "/" in rest else f"{scheme}://{rest}/v1"


def _is_this_machine(url):
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_connection_error(error):
    import openai

    return isinstance(error, openai.APIConnectionError)


def sent_image(image: Image.Image, max_pixels: int = MAX_PIXELS) -> str:
    """An image as PNG in a data: URI, shrunk to at most so many pixels."""
    scale = (max_pixels / (image.width * image.height)) ** 0.5
    if scale < 1:
        size = max(1, int(image.width * scale)), max(1, int(image.height * scale))
        image = image.resize(size, Image.Resampling.BICUBIC)
    return data_uri(image)
