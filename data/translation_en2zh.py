"""Stage 2: English captions -> one Chinese description per image, by an LLM behind any OpenAI-compatible endpoint.

in:  [{"imged_id": "1.tif", "caption": English, ...}, ...]      out: the same records, `caption` in Chinese

An answer is paid for once: each distinct caption is asked once, and every answer is appended to <output>.journal.jsonl
({"source", "target", "model"}) and fsynced as it arrives, so a run that was killed continues where it stopped.
"""
import argparse
import asyncio
import json
import os
import re
import sys
from pathlib import Path

from tqdm import tqdm

from records import (StageError, add_path_options, caption_records, checked_records, resolve_paths, run_stage, text_problem,
                     write_records)

INSTRUCTION = """你是遥感影像解译专家。用户给出同一幅遥感图像的若干句（至多五句）英文描述，句子之间常有重复或语法错误。
请把它们合并成一段忠实、通顺的中文描述：涵盖各句的信息，相同的内容只说一次；
不得添加英文中没有的地物、数量、颜色、位置、用途或评价。只输出这段中文描述，不要解释、编号或引号。"""

OPENAI_URL = "https://api.openai.com/v1"
# 401 key, 402 balance (DeepSeek), 403 permission or region, 404 model or URL: the next text would fare no better
STOPS_THE_RUN = (401, 402, 403, 404)


class NoAnswer(Exception):
    """The endpoint replied, but not with a description."""


def same(text):
    """Captions that differ in white space only are one caption."""
    return " ".join(text.split())


def read_journal(path):
    """{caption: description} of earlier runs. A line torn by a kill is skipped: it costs one more question."""
    known = {}
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        try:
            entry = json.loads(line)
            known[same(entry["source"])] = entry["target"].strip()
        except (ValueError, KeyError, TypeError, AttributeError):
            if line.strip():
                print(f"translation_en2zh.py: skipped an unreadable line of {path}", file=sys.stderr)
    return known


def open_journal(path):
    journal = open(path, "ab+")
    if journal.tell():
        journal.seek(-1, os.SEEK_END)
        if journal.read(1) != b"\n":
            journal.write(b"\n")  # keeps what comes apart from a torn last line
    return journal


def read_memory(path):
    memory = checked_records(path, "source", lambda entry: text_problem(entry, "target"), unique=False)
    return {same(entry["source"]): entry["target"] for entry in memory}


async def ask(client, model, text):
    messages = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": text}]
    reply = await client.chat.completions.create(model=model, messages=messages)
    choices = getattr(reply, "choices", None)  # a web page under a wrong URL arrives as a plain str
    if not choices:
        raise NoAnswer("the reply is not a chat completion; does the base URL end in /v1?")
    # reasoning models behind a local server may put their thoughts before the answer
    target = re.sub(r"^\s*<think>.*?</think>", "", choices[0].message.content or "", flags=re.DOTALL).strip()
    if not target or choices[0].finish_reason == "length":
        raise NoAnswer(f"empty or cut answer (finish_reason {choices[0].finish_reason})")
    return target


async def ask_all(texts, args, key, journal, known):
    """Ask for each text once, `args.concurrency` at a time; adds to `journal` and `known`, returns the reasons of failures."""
    try:
        import openai  # here: a run that finds everything in journal and memory needs neither client nor key
        client = openai.AsyncOpenAI(api_key=key, base_url=args.base_url, timeout=args.timeout, max_retries=args.max_retries)
    except ImportError as error:  # no openai, or a SOCKS proxy in the environment and no socksio
        raise StageError(f"cannot start the client: {error}") from None
    failures, stopped, waiting = [], [], iter(texts)

    def reason(error):
        # endpoints quote the key in their messages: it must reach neither screen nor log
        text = f"{type(error).__name__}: {getattr(error, 'message', error)}".replace(key, "***")
        return " ".join(text.split())[:300]

    async def work():
        for text in waiting:  # the workers share one iterator
            if stopped:  # nothing new is asked; what is under way may be paid for, so it is waited for
                return
            try:
                target = await ask(client, args.model, text)
                entry = json.dumps({"source": text, "target": target, "model": args.model}, ensure_ascii=False).encode()
            except (openai.APIError, NoAnswer, ValueError) as error:  # ValueError: a reply that is not JSON or not Unicode
                out_of_quota = "insufficient_quota" in (getattr(error, "code", None), getattr(error, "type", None))
                if getattr(error, "status_code", None) in STOPS_THE_RUN or out_of_quota:
                    stopped.append(reason(error))
                    return
                failures.append(reason(error))
                bar.set_postfix(failed=len(failures))
            else:
                journal.write(entry + b"\n")
                journal.flush()
                os.fsync(journal.fileno())
                known[same(text)] = target
            bar.update()

    with tqdm(total=len(texts), unit="caption", disable=None) as bar:  # None: no bar in a log file
        async with client:
            await asyncio.gather(*(work() for _ in range(min(args.concurrency, len(texts)))))
    if stopped:
        raise StageError(f"stopped: {stopped[0]}; check OPENAI_API_KEY, --base-url and --model; answers so far are kept in "
                         f"{journal.name}, the same command continues")
    return failures


def translate(args):
    resolve_paths(args)
    journal_path = args.output.with_name(args.output.name + ".journal.jsonl")
    count, texts = 0, {}
    for count, record in enumerate(caption_records(args.input, args.limit), 1):
        texts.setdefault(same(record["caption"]), record["caption"])
    known = read_journal(journal_path)
    for path in args.memory:  # after the journal: a correction by hand wins over an answer
        known.update(read_memory(path))
    left = [text for name, text in texts.items() if name not in known]
    print(f"{args.input}: {count} records, {len(texts)} distinct captions, {len(texts) - len(left)} known, "
          f"{len(left)} to ask{f' {args.model}' if left else ''}", flush=True)
    if left:
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not key or not key.isascii():
            raise StageError(f"{len(left)} captions are left to ask: set OPENAI_API_KEY to a key in ASCII (any word for a "
                             "server without keys), and --base-url for an endpoint other than OpenAI's; or give --memory")
        with open_journal(journal_path) as journal:
            failures = asyncio.run(ask_all(left, args, key, journal, known))
        if failures:
            raise StageError(f"{len(failures)} of {len(left)} captions failed, first: {failures[0]}; the answers are kept in "
                             f"{journal_path}, {args.output} is not written; the same command asks for the rest")
    chinese = ({**record, "caption": known[same(record["caption"])]} for record in caption_records(args.input, args.limit))
    print(f"{args.output}: {write_records(args.output, chinese)} records{' (--limit)' if args.limit else ''}")


def at_least(kind, least):
    def number(text):
        value = kind(text)
        if not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not at least {least}")
        return value
    return number


def main(argv=None):
    parser = argparse.ArgumentParser(description="Merge the English sentences of each image into one Chinese description. "
                                     "The key is read from the environment variable OPENAI_API_KEY only.")
    add_path_options(parser, "en", "zh")
    parser.add_argument("--memory", type=Path, action="append", default=[], metavar="FILE", help="translation memory, JSON or "
                        '.jsonl of {"source": English caption, "target": Chinese}: needs no network; repeatable, the last wins')
    parser.add_argument("--limit", type=at_least(int, 1), metavar="N", help="the first N records only (default: all)")
    llm = parser.add_argument_group("endpoint")
    llm.add_argument("--base-url", default=os.environ.get("OPENAI_BASE_URL") or OPENAI_URL, help="any OpenAI-compatible "
                     f"endpoint, usually ending in /v1 (default: the variable OPENAI_BASE_URL, then {OPENAI_URL})")
    llm.add_argument("--model", default="gpt-4o-mini", help="model name at the endpoint (default: %(default)s)")
    llm.add_argument("--concurrency", type=at_least(int, 1), default=8, help="requests at a time (default: %(default)s)")
    llm.add_argument("--timeout", type=at_least(float, 0.1), default=60.0, help="seconds per request (default: %(default)s)")
    llm.add_argument("--max-retries", type=at_least(int, 0), default=5, help="further tries of a request after a rate limit, "
                     "a server error or a timeout, with growing pauses; 0: none (default: %(default)s)")
    args = parser.parse_args(argv)
    if not re.match("https?://[^/]", args.base_url):
        parser.error(f"base URL {args.base_url!r} does not start with http:// or https://")
    return run_stage(__file__, translate, args)


if __name__ == "__main__":
    sys.exit(main())
