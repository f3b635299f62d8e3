"""Options of the scripts that ask an OpenAI-compatible endpoint."""

import argparse
import math
import os
from functools import partial

from model.files import parse_json

OPENAI_URL = "https://api.openai.com/v1"


def at_least(kind, least):
    """A type of argparse: a finite number of this kind, not below `least`."""

    def number(text):
        value = kind(text)
        if not least <= value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not at least {least}")
        return value

    return number


def json_object(text, own):
    """A type of argparse: a JSON object without the keys of `own`, which these options set."""
    try:
        value = parse_json(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected an object such as {{}}, got {text!r}")
    for name in own.keys() & value.keys():
        raise argparse.ArgumentTypeError(f"{name} is set by {own[name]}")
    return value


def add_request_options(add, own):
    """What is sent along, pace and retries. own: see json_object."""
    add(
        "--extra-body",
        type=partial(json_object, own=own),
        metavar="JSON",
        help="sent along with every request, what a vendor needs: '{\"enable_thinking\": false}', "
        "temperature, max_tokens",
    )
    add(
        "--rpm",
        type=at_least(float, 0.01),
        metavar="N",
        help="at most so many requests per minute (default: no limit)",
    )
    add(
        "--tpm",
        type=at_least(float, 1),
        metavar="N",
        help="at most so many tokens per minute, in and out, estimated before and corrected after "
        "each request (default: no limit)",
    )
    add(
        "--timeout",
        type=at_least(float, 0.1),
        default=60.0,
        help="seconds per request (default: %(default)s)",
    )
    add(
        "--max-retries",
        type=at_least(int, 0),
        default=5,
        help="further tries of a request after a rate limit, a server error, a timeout or a broken "
        "reply; 0: none (default: %(default)s)",
    )
    add(
        "--backoff",
        type=at_least(float, 0),
        default=1.0,
        metavar="SECONDS",
        help="pause before the first retry, doubled for each further one, up to half of it at "
        "random; the server's Retry-After wins (default: %(default)s)",
    )


def add_endpoint_options(add):
    """Of translation_en2zh.py: whom to ask, and what add_request_options adds."""
    add(
        "--base-url",
        default=os.environ.get("OPENAI_BASE_URL") or OPENAI_URL,
        help="any OpenAI-compatible endpoint, usually ending in /v1 (default: the variable "
        f"OPENAI_BASE_URL, then {OPENAI_URL})",
    )
    add(
        "--stream",
        action="store_true",
        help="ask for the answer as a stream, for endpoints that know nothing else",
    )
    add("--model", default="gpt-4o-mini", help="model name at the endpoint (default: %(default)s)")
    add(
        "--concurrency",
        type=at_least(int, 1),
        default=8,
        help="requests at a time (default: %(default)s)",
    )
    own = {"model": "--model", "messages": "--input", "stream": "--stream"}
    add_request_options(add, own)


def add_cost_options(add):
    add(
        "--dry-run",
        action="store_true",
        help="ask nothing: print distinct captions, estimated tokens and cost",
    )
    add(
        "--price-in",
        type=at_least(float, 0),
        metavar="PRICE",
        help="of a million tokens sent, in any currency",
    )
    add(
        "--price-out",
        type=at_least(float, 0),
        metavar="PRICE",
        help="of a million tokens answered",
    )
    add(
        "--max-cost",
        type=at_least(float, 0),
        metavar="SUM",
        help="stop this run before it could spend more, requests in flight included; needs the "
        "prices (default: no limit)",
    )
