"""Asking the endpoint for all captions of a run that are left, or estimating what that costs."""

import asyncio
import os
import reprlib
from collections import Counter
from contextlib import suppress

from tqdm import tqdm

from data.connection import is_header
from data.endpoint import Failed, Stopped, connect
from data.usage import cost_of, prompt_tokens
from model.errors import UserError

# captions rejected without one that passes, after which a run stops
EARLY = 20


async def ask_all(texts, args, key, journal):
    """Ask for each text left, `args.concurrency` at a time.

    Returns the endpoint, for its counters, and why texts failed: [text, ...].
    """
    endpoint, failures = connect(args, key), []
    # the workers share one iterator
    waiting = iter(texts.left)

    async def work():
        for name in waiting:
            try:
                await texts.ask(endpoint, journal, name)
                if len(texts.rejected) - texts.unfit >= EARLY and not texts.passed:
                    endpoint.stop(all_rejected(texts))
            except Failed as error:
                failures.append(f"{error}, for {reprlib.repr(name)}")
            except Stopped:
                return
            except BaseException:
                # of the disk: what the others have under way is awaited, nothing new is asked
                with suppress(Stopped):
                    endpoint.stop("an answer could not be stored")
                raise
            bar.set_postfix_str(progress(args, endpoint, texts, failures), refresh=False)
            bar.update()

    # disable=None: no bar in a log file
    with tqdm(total=len(texts.left), unit="caption", disable=None) as bar:
        workers = [work() for _ in range(min(args.concurrency, len(texts.left)))]
        try:
            async with endpoint.client:
                results = await asyncio.gather(*workers, return_exceptions=True)
        finally:
            await journal.close()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return endpoint, failures


def progress(args, endpoint, texts, failures):
    return (
        f"{endpoint.tokens_in} + {endpoint.tokens_out} tokens{spent(args, endpoint)}, "
        f"{endpoint.retries} retries, {len(texts.rejected)} rejected, {len(failures)} failed"
    )


def all_rejected(texts):
    """Why it makes no sense to go on: nothing passes."""
    answer, problems = next(reversed(texts.rejected.values()))
    reasons = Counter(reason for _, found in texts.rejected.values() for reason, _ in found)
    [(common, _)] = reasons.most_common(1)
    return (
        f"the first {EARLY} captions have no answer that passes the quality gate, mostly for "
        f"{common}, the last {answer[:60]!r} ({problems[0][1][:80]}); try another --model, or "
        "--no-gate to take the answers as they are"
    )


def spent(args, endpoint):
    """The cost as the end of a text, "" without prices."""
    if args.price_in or args.price_out:
        return f", {endpoint.cost:.4f} spent"
    return ""


def print_estimate(texts, args):
    tokens_in = sum(prompt_tokens(texts.messages(name)) for name in texts.left)
    tokens_out = sum(map(texts.expected, texts.left))
    cost = ""
    if args.price_in or args.price_out:
        cost = f"; about {cost_of(args, tokens_in, tokens_out):.4f} at these prices"
    print(
        f"dry run: about {tokens_in} tokens in and {tokens_out} out, "
        f"answers asked again not counted{cost}"
    )


def key_of_environment(left):
    """The key that `left` captions are asked with. Raises UserError."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not is_header(key or " "):
        raise UserError(
            f"{left} captions are left to ask: set OPENAI_API_KEY to a key in ASCII (any word for "
            "a server without keys), and --base-url for an endpoint other than OpenAI's; or give "
            "--memory"
        )
    return key


def ask_what_is_left(texts, args, journal):
    """Ask the endpoint for all texts left. Raises UserError where any of them has no answer."""
    left = len(texts.left)
    key = key_of_environment(left)
    endpoint, failures = asyncio.run(ask_all(texts, args, key, journal))
    print(f"{endpoint.used}{spent(args, endpoint)}", flush=True)

    kept = f"{args.output} is not written; --memory takes translations by hand"
    if journal.path.stat().st_size:
        kept = (
            f"answers so far are kept in {journal.path}, {args.output} is not written; the same "
            "command asks for the rest, --memory takes translations by hand"
        )
    if endpoint.stopped:
        raise UserError(f"stopped: {endpoint.stopped}; {kept}")
    if failures:
        raise UserError(f"{len(failures)} of {left} captions failed, first: {failures[0]}; {kept}")
