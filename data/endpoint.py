"""Asking an OpenAI-compatible endpoint: pace, retries, when to stop, tokens and cost.

For the translation, and for whatever else asks a server (serving/client.py). What a reply holds is
read by replies.py. Why retries and pace are
not left to a library (openai 3, tenacity, aiolimiter): every try is counted and priced before it
is sent; replies that are cut, empty or no JSON are tried again as well; a Retry-After holds back
all workers, not one request; a stop ends every pause; and --tpm is corrected by the tokens that a
reply has reported.
"""

import asyncio
import email.utils
import json
import random
import re
import time
from dataclasses import dataclass

from data.answers import NoAnswer, Refused, usable_text
from data.connection import check_settings, reach, without_markup
from data.replies import FILTERED, UnusableReply, parse
from data.usage import cost_of, estimated_tokens, prompt_tokens, reported_tokens
from model.errors import UserError

# 401 key, 402 balance (DeepSeek), 403 permission or region, 404 model or URL: no request would do
NON_RETRYABLE = (401, 402, 403, 404)
# what vendors call an empty account, under whatever status
UNPAID = re.compile(
    r"insufficient.?(?:quota|balance|funds)|arrear|overdue|billing|exceeded_current_quota|欠费|余额",
    re.IGNORECASE,
)
# these and 5xx: worth another try
TRANSIENT = (408, 409, 425, 429)
# seconds that the growing pauses end at
MAX_BACKOFF = 60
# seconds; a server that asks for more is asked again by another run
MAX_RETRY_AFTER = 600
# characters from which on a key is hidden; "x" and "none" are words for servers without keys
SECRET_LENGTH = 8
# requests in a row that fail until the run stops, or as many as there are workers
BREAKER = 10


class Stopped(Exception):
    """No further request makes sense, for the reason that is the message."""


class Failed(Exception):
    """One request was given up, for the reason that is the message."""


def asked_pause(headers):
    """Seconds that a reply asks to wait, or None.

    headers: Retry-After as seconds or as a date, or retry-after-ms
    """
    try:
        if headers.get("retry-after-ms"):
            return float(headers["retry-after-ms"]) / 1000
        value = headers.get("retry-after")
        if value is None:
            return None
        if re.fullmatch(r"[\d.]+", value.strip()):
            return float(value)
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


@dataclass
class Settings:
    """What an Endpoint is told; the translation's options have the same names.

    stream: ask for events; extra_body: a dict sent along, or None; timeout: seconds that a request
    may take in all; silence: seconds without a byte, or None; backoff: seconds; rpm and tpm: per
    minute or None; price_in and price_out: of a million tokens or None; max_cost: the same money or
    None.
    """

    base_url: str
    model: str
    stream: bool = False
    extra_body: dict | None = None
    timeout: float = 60.0
    silence: float | None = None
    max_retries: int = 5
    backoff: float = 1.0
    rpm: float | None = None
    tpm: float | None = None
    price_in: float | None = None
    price_out: float | None = None
    max_cost: float | None = None
    concurrency: int = 8


def open_client(make, key, base_url, *, is_bounded=True, trust_env=True, **options):
    """A client of the openai package. make: "AsyncOpenAI" or "OpenAI"; is_bounded: see bounded.py;
    trust_env: take the environment's proxy. Raises UserError.
    """
    check_settings()
    try:
        # here: a run that finds everything in journal and memory needs neither client nor key
        import openai

        from data.bounded import bound, bound_async

        connection, hook = {
            "OpenAI": (openai.DefaultHttpxClient, bound),
            "AsyncOpenAI": (openai.DefaultAsyncHttpxClient, bound_async),
        }[make]
        hooks = {"response": [hook]} if is_bounded else None
        http_client = connection(trust_env=trust_env, event_hooks=hooks)
        return getattr(openai, make)(
            api_key=key, base_url=base_url, http_client=http_client, **options
        )
    # no openai, a SOCKS proxy in the environment and no socksio, a certificate file that is none
    except Exception as error:  # noqa: BLE001 -- the client reads many variables on its own
        raise UserError(f"cannot start the client: {error}") from None


def without_key(text, key):
    """A text that may quote a key; short ones are words for servers without keys."""
    return text.replace(key, "***") if len(key) >= SECRET_LENGTH else text


def connect(args, key):
    """An Endpoint for Settings and a key. Raises UserError."""
    # no timeout, no retries: both are kept here
    client = open_client("AsyncOpenAI", key, args.base_url, timeout=None, max_retries=0)
    return Endpoint(client, args, key)


def without_end(error, silence):
    """What a server did that stayed silent for so many seconds, or did not stop; else ""."""
    import openai

    from data.bounded import TooLong

    if isinstance(error, TooLong):
        return str(error)
    if isinstance(error, openai.APITimeoutError) or type(error).__name__ == "ReadTimeout":
        return f"the server has sent nothing for {silence:g} s; --timeout waits longer"
    return ""


def explained(error, base_url):
    """The message of an error of the client, with its cause where the client names none."""
    import openai

    if getattr(error, "status_code", None):
        body = error.body
        # the client shows a "message" and nothing else
        if not body or (isinstance(body, dict) and body.get("message")):
            return str(error)
        text = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
        return f"{error} - {without_markup(text)}"
    message = getattr(error, "message", str(error))
    if not isinstance(error, openai.APIError):
        return message
    return f"{message} No connection to {reach(base_url, error)}"


class Endpoint:
    """`answer` asks for one answer; many may run at a time.

    client: an AsyncOpenAI that neither retries nor times out; args: see Settings; what: a word for
    what is asked; options: where a user can correct key, address and model.
    """

    def __init__(
        self,
        client,
        args,
        key,
        what="captions",
        options="OPENAI_API_KEY, --base-url and --model",
    ):
        self.client, self.args, self.key = client, args, key
        self.what, self.options = what, options
        self.requests = self.retries = self.tokens_in = self.tokens_out = 0
        self.cost = 0.0
        # (tokens in, tokens out) that each request in flight is expected to take
        self.in_flight = []
        # most tokens that an answer had; most that were counted per token estimated
        self.longest_answer, self.token_ratio = 0, 1.5
        # on the clock of time.monotonic(): by --rpm and --tpm, by Retry-After
        self.next_start = self.held_until = 0.0
        self.failed_in_a_row = 0
        # the reason, once there is one
        self.stopped = None
        self.stop_event = asyncio.Event()

    @property
    def used(self):
        """In words."""
        return (
            f"{self.requests} requests ({self.retries} of them retries), "
            f"{self.tokens_in} tokens in, {self.tokens_out} out"
        )

    def hide(self, text):
        """Endpoints quote the key in their messages: it must reach neither screen nor file."""
        return without_key(text, self.key)

    def cost_at_most(self, tokens_in, expected):
        """By what the answers so far have shown: each one revalues the requests in flight."""
        tokens_out = max(expected, self.longest_answer)
        return cost_of(self.args, tokens_in * self.token_ratio, tokens_out)

    def stop(self, reason):
        """Nothing new is asked from now on; what is in flight may be paid for, so it is awaited.

        Raises Stopped.
        """
        self.stopped = self.stopped or reason
        self.stop_event.set()
        raise Stopped(self.stopped)

    async def pause(self, seconds):
        """Sleep, but not beyond a stop. Raises Stopped."""
        if seconds > 0 and not self.stopped:
            try:
                await asyncio.wait_for(self.stop_event.wait(), seconds)
            except TimeoutError:
                pass
        if self.stopped:
            raise Stopped(self.stopped)

    async def wait_for_slot(self, tokens):
        """Wait until the limits per minute and Retry-After allow a request of so many tokens."""
        now = time.monotonic()
        start = max(now, self.next_start)
        by_requests = 60 / self.args.rpm if self.args.rpm else 0
        by_tokens = 60 * tokens / self.args.tpm if self.args.tpm else 0
        self.next_start = start + max(by_requests, by_tokens)
        await self.pause(start - now)

        while (left := self.held_until - time.monotonic()) > 0:
            # not all at the same moment
            await self.pause(left + random.uniform(0, 0.1 * left))

    async def answer(self, messages, expected, fields=None, take=usable_text):
        """What `take` makes of the reply, and (tokens in, tokens out).

        expected: tokens that the answer is expected to have; fields: sent along, unless extra_body
        has another value for them or None; take: Reply -> what is returned, may raise NoAnswer and
        Refused. Raises Refused where a filter refuses, Failed after the last retry or where none
        helps, Stopped where the run has to end.
        """
        request = (prompt_tokens(messages), expected)
        for attempt in range(self.args.max_retries + 1):
            await self.wait_for_slot(sum(request))
            self.check_budget(request)

            self.in_flight.append(request)
            self.requests += 1
            self.retries += attempt > 0
            try:
                return await self.ask(messages, fields or {}, take, *request)
            except (Failed, Refused, Stopped):
                raise
            # openai.APIError, NoAnswer, whatever the client makes of a reply: it is this request's
            except Exception as error:  # noqa: BLE001 -- the network
                seconds = self.seconds_to_retry(error, attempt)
            finally:
                self.in_flight.remove(request)
            await self.pause(seconds)

    def check_budget(self, request):
        """Raises Stopped where this request could exceed --max-cost, those in flight included."""
        if self.args.max_cost is None:
            return
        reserved = sum(self.cost_at_most(*other) for other in self.in_flight)
        this = self.cost_at_most(*request)
        if self.cost + reserved + this > self.args.max_cost:
            self.stop(
                f"--max-cost {self.args.max_cost:g} is reached: {self.cost:.4f} spent, "
                f"{reserved:.4f} in flight, {this:.4f} for the next request"
            )

    async def ask(self, messages, fields, take, tokens_in, expected):
        """One request; see `answer`. Raises NoAnswer, Refused, Stopped, openai.APIError."""
        body = await self.request(messages, fields, tokens_in, expected)
        try:
            reply = parse(body)
        except UnusableReply as error:
            # it may have been charged
            self.cost += self.cost_at_most(tokens_in, expected)
            self.check_message(str(error))
            raise NoAnswer(str(error)) from None

        used = self.account(reply.usage, reply.text, tokens_in, expected)
        reply.text = self.hide(reply.text)
        taken = take(reply)
        self.failed_in_a_row = 0
        return taken, used

    async def request(self, messages, fields, tokens_in, expected):
        """The body of the reply. Raises NoAnswer, openai.APIError."""
        completions = self.client.chat.completions.with_streaming_response
        options = {"stream": True} if self.args.stream else {}
        extra = fields | (self.args.extra_body or {})
        for name in fields:
            if extra[name] is None:
                del extra[name]
        if extra:
            options["extra_body"] = extra
        try:
            async with asyncio.timeout(self.args.timeout):
                async with completions.create(
                    model=self.args.model, messages=messages, **options
                ) as response:
                    return await response.text()
        except TimeoutError:
            # the server may have written, and charged, an answer
            self.cost += self.cost_at_most(tokens_in, expected)
            raise NoAnswer(f"no answer within {self.args.timeout:g} s") from None
        except Exception as error:  # noqa: BLE001 -- the client has errors of several packages
            reason = without_end(error, self.client.timeout)
            if not reason:
                raise
            # another try would be charged as well, and end no better
            self.cost += self.cost_at_most(tokens_in, expected)
            self.give_up(reason)

    def check_message(self, message):
        """Raises Refused or Stopped where a server's message says so."""
        if UNPAID.search(message):
            self.stop(f"{self.shortened(message)}; check the account, {self.options}")
        if FILTERED.search(message):
            raise Refused(self.shortened(message))

    def shortened(self, text):
        return " ".join(self.hide(text).split())[:300]

    def account(self, usage, text, tokens_in, expected):
        """Count what a reply has used and correct the pace; returns (tokens in, tokens out)."""
        used = reported_tokens(usage)
        if not any(used):
            used = (tokens_in, estimated_tokens(text))

        self.tokens_in += used[0]
        self.tokens_out += used[1]
        self.cost += cost_of(self.args, *used)
        self.longest_answer = max(self.longest_answer, used[1])
        self.token_ratio = max(self.token_ratio, used[0] / tokens_in)
        if self.args.tpm:
            self.next_start += 60 * (sum(used) - tokens_in - expected) / self.args.tpm
        return used

    def seconds_to_retry(self, error, attempt):
        """Seconds to wait before the next try; raises Failed or Stopped where there is none."""
        reason = self.shortened(f"{type(error).__name__}: {explained(error, self.args.base_url)}")
        status = getattr(error, "status_code", None)
        codes = [getattr(error, name, None) for name in ("code", "type")]
        codes = " ".join(str(code) for code in codes if code)
        if status:
            self.check_message(f"{codes} {reason}".strip() if status < 500 else codes)
        if status in NON_RETRYABLE:
            self.stop(f"{reason}; check {self.options}")
        if status and status < 500 and status not in TRANSIENT:
            self.give_up(reason)

        asked = asked_pause(error.response.headers) if status else None
        if asked and asked > MAX_RETRY_AFTER:
            self.stop(f"the endpoint asks to wait {asked:.0f} s: {reason}")
        if attempt == self.args.max_retries:
            if status == 429:
                reason += "; --rpm or --tpm keep the pace below the endpoint's limit"
            self.give_up(reason)

        if asked is None:
            longest = min(MAX_BACKOFF, self.args.backoff * 2**attempt)
            return random.uniform(0.5, 1) * longest
        self.held_until = max(self.held_until, time.monotonic() + asked)
        return asked

    def give_up(self, reason):
        """Raises Failed, or Stopped where too many requests in a row came to that."""
        self.failed_in_a_row += 1
        if self.failed_in_a_row >= max(BREAKER, self.args.concurrency):
            self.stop(
                f"{self.failed_in_a_row} {self.what} failed one after another, the last by {reason}"
            )
        raise Failed(reason)
