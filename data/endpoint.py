"""Asking an OpenAI-compatible endpoint: pace, retries, when to stop, tokens and cost. Nothing here knows of captions."""

import asyncio
import email.utils
import math
import random
import re
import time

from data.records import StageError

# 401 key, 402 balance (DeepSeek), 403 permission or region, 404 model or URL: the next request would fare no better
HOPELESS = (401, 402, 403, 404)
PASSING = (408, 409, 425, 429)  # and 5xx: worth another try
LONGEST_PAUSE = 60  # seconds that the growing pauses end at
LONGEST_WAIT = 600  # seconds; a server that asks for more is asked again by another run
SECRET = (
    8  # characters from which on a key is hidden; "x" and "none" are words for servers without keys
)


class Stopped(Exception):
    """No further request makes sense, for the reason that is the message."""


class Failed(Exception):
    """One request was given up, for the reason that is the message."""


class NoAnswer(Exception):
    """The endpoint replied, but with no usable text, or not in time."""


def estimated_tokens(text):
    """About as many as common tokenizers make: one per Chinese character, four per three English words."""
    chinese = len(re.findall("[\u4e00-\u9fff，。：、；“”]", text))
    return chinese + math.ceil(4 / 3 * len(re.findall(r"[A-Za-z0-9]+", text)))


def asked_pause(headers):
    """Seconds that a reply asks to wait (Retry-After as seconds or as a date, retry-after-ms), or None."""
    try:
        if headers.get("retry-after-ms"):
            return float(headers["retry-after-ms"]) / 1000
        value = headers.get("retry-after")
        if value is None or re.fullmatch(r"[\d.]+", value.strip()):
            return None if value is None else float(value)
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


class Endpoint:
    """`answer` asks for one text; many may run at a time. Counters: requests, retries, tokens_in, tokens_out, cost.

    args: base_url, model, timeout (seconds a request may take in all), max_retries, backoff (seconds), rpm and tpm (per
    minute or None), price_in and price_out (per million tokens or None), max_cost (same money or None), concurrency.
    """

    def __init__(self, args, key):
        try:
            import openai  # here: a run that finds everything in journal and memory needs neither client nor key

            self.client = openai.AsyncOpenAI(
                api_key=key, base_url=args.base_url, timeout=None, max_retries=0
            )
        except (
            ImportError
        ) as error:  # no openai, or a SOCKS proxy in the environment and no socksio
            raise StageError(f"cannot start the client: {error}") from None
        self.api_error, self.args, self.key = openai.APIError, args, key
        self.requests = self.retries = self.tokens_in = self.tokens_out = 0
        self.cost, self.under_way = (
            0.0,
            [],
        )  # (tokens in, tokens out) that each request under way is thought to take
        self.longest, self.ratio = (
            0,
            1.5,
        )  # most tokens that an answer had; most that were counted per token estimated
        self.next_start = 0.0  # by --rpm and --tpm, on the clock of time.monotonic()
        self.held_until = 0.0  # by Retry-After
        self.failed_in_a_row = 0
        self.stopped, self.stop_event = None, asyncio.Event()

    def hide(self, text):
        """Endpoints quote the key in their messages: it must reach neither screen nor file."""
        return text.replace(self.key, "***") if len(self.key) >= SECRET else text

    def price(self, tokens_in, tokens_out):
        return (
            tokens_in * (self.args.price_in or 0) + tokens_out * (self.args.price_out or 0)
        ) / 1e6

    def price_at_most(self, tokens_in, expected):
        """By what the answers so far have shown: each one that arrives revalues the requests under way."""
        return self.price(tokens_in * self.ratio, max(expected, self.longest))

    def stop(self, reason):
        """Nothing new is asked from now on; what is under way may be paid for, so it is waited for."""
        self.stopped = self.stopped or reason
        self.stop_event.set()
        raise Stopped(self.stopped)

    async def pause(self, seconds):
        """Sleep, but not beyond a stop."""
        if seconds > 0 and not self.stopped:
            try:
                await asyncio.wait_for(self.stop_event.wait(), seconds)
            except TimeoutError:
                pass
        if self.stopped:
            raise Stopped(self.stopped)

    async def turn(self, tokens):
        """Wait until the limits per minute and the server's Retry-After allow a request of so many tokens."""
        now = time.monotonic()
        start = max(now, self.next_start)
        self.next_start = start + max(
            60 / self.args.rpm if self.args.rpm else 0,
            60 * tokens / self.args.tpm if self.args.tpm else 0,
        )
        await self.pause(start - now)
        while (left := self.held_until - time.monotonic()) > 0:
            await self.pause(left + random.uniform(0, 0.1 * left))  # not all at the same moment

    async def answer(self, messages, expected):
        """The text of the answer and (tokens in, tokens out). expected: tokens that the answer is thought to have.

        Raises Failed after the last retry or where none helps, Stopped where the run has to end.
        """
        tokens_in = sum(estimated_tokens(message["content"]) + 4 for message in messages)
        for attempt in range(self.args.max_retries + 1):
            await self.turn(tokens_in + expected)
            reserved = sum(self.price_at_most(*request) for request in self.under_way)
            most, this = self.args.max_cost, self.price_at_most(tokens_in, expected)
            if most is not None and self.cost + reserved + this > most:
                self.stop(
                    f"--max-cost {most:g} is reached: {self.cost:.4f} spent, {reserved:.4f} under way, "
                    f"{this:.4f} for the next request"
                )
            self.under_way.append((tokens_in, expected))
            self.requests += 1
            self.retries += attempt > 0
            try:
                return await self.ask(messages, tokens_in, expected)
            except (
                self.api_error,
                NoAnswer,
                ValueError,
            ) as error:  # ValueError: half a surrogate pair
                seconds = self.judge(error, attempt)
            finally:
                self.under_way.remove((tokens_in, expected))
            await self.pause(seconds)

    async def ask(self, messages, tokens_in, expected):
        try:
            async with asyncio.timeout(self.args.timeout):
                reply = await self.client.chat.completions.create(
                    model=self.args.model, messages=messages
                )
        except (TimeoutError, ValueError) as error:  # ValueError: a reply that is not JSON
            self.cost += self.price_at_most(
                tokens_in, expected
            )  # the server may have written, and charged, an answer
            late = f"no answer within {self.args.timeout:g} s"
            raise NoAnswer(
                late if isinstance(error, TimeoutError) else f"a reply that is not JSON: {error}"
            ) from None
        choices = getattr(
            reply, "choices", None
        )  # a web page under a wrong URL arrives as a plain str
        if not choices:
            raise NoAnswer("the reply is not a chat completion; does the base URL end in /v1?")
        # reasoning models behind a local server may put their thoughts before the answer
        text = re.sub(
            r"^\s*<think>.*?</think>", "", choices[0].message.content or "", flags=re.DOTALL
        ).strip()
        used = (
            getattr(reply.usage, "prompt_tokens", 0) or 0,
            getattr(reply.usage, "completion_tokens", 0) or 0,
        )
        if not any(used):  # some servers count nothing
            used = tokens_in, estimated_tokens(text)
        self.tokens_in, self.tokens_out = self.tokens_in + used[0], self.tokens_out + used[1]
        self.cost += self.price(*used)
        self.longest, self.ratio = max(self.longest, used[1]), max(self.ratio, used[0] / tokens_in)
        if self.args.tpm:
            self.next_start += 60 * (sum(used) - tokens_in - expected) / self.args.tpm
        if not text or choices[0].finish_reason == "length":
            raise NoAnswer(f"empty or cut answer (finish_reason {choices[0].finish_reason})")
        text.encode()  # no file can store half a surrogate pair
        self.failed_in_a_row = 0
        return self.hide(text), used

    def judge(self, error, attempt):
        """Seconds to wait before the request is tried again; raises Failed or Stopped where it is not."""
        text = f"{type(error).__name__}: {getattr(error, 'message', error)}"
        reason = " ".join(self.hide(text).split())[:300]
        status = getattr(error, "status_code", None)
        if status in HOPELESS or "insufficient_quota" in (
            getattr(error, "code", None),
            getattr(error, "type", None),
        ):
            self.stop(f"{reason}; check OPENAI_API_KEY, --base-url and --model")
        if status and status < 500 and status not in PASSING:
            raise Failed(reason)
        asked = asked_pause(error.response.headers) if status else None
        if asked and asked > LONGEST_WAIT:
            self.stop(f"the endpoint asks to wait {asked:.0f} s: {reason}")
        if attempt == self.args.max_retries:
            self.failed_in_a_row += 1
            if self.failed_in_a_row >= max(10, self.args.concurrency):
                self.stop(
                    f"{self.failed_in_a_row} captions failed one after another, the last by {reason}"
                )
            raise Failed(reason)
        if asked is not None:
            self.held_until = max(self.held_until, time.monotonic() + asked)
            return asked
        return random.uniform(0.5, 1) * min(LONGEST_PAUSE, self.args.backoff * 2**attempt)
