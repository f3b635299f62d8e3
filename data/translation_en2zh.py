"""Stage 2: English captions -> one Chinese description per image, by an LLM behind any OpenAI-compatible endpoint.

in:  [{"imged_id": "1.tif", "caption": English, ...}, ...]      out: the same records, `caption` in Chinese

An answer is paid for once: each distinct caption is asked once, and every answer, good or bad, is appended to
<output>.journal.jsonl and fsynced before its worker asks the next one, so a run that was killed continues where it stopped.
An answer that quality.py finds fault with is asked again with the complaint; what stays bad goes to NAME-rejected and is
left out, or with --trim keeps its sound sentences. NAME-report.json counts the reasons. --check runs the same gate on a file that exists.
"""

import argparse
import asyncio
import json
import math
import os
import re
import reprlib
import sys
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data import quality
from data.endpoint import Endpoint, Failed, Stopped, estimated_tokens
from data.lexicon import language
from data.records import (
    DATA,
    DEFAULT_SET,
    StageError,
    add_path_options,
    caption_records,
    checked_records,
    listed,
    read_records,
    record_writer,
    resolve_paths,
    run_stage,
    text_problem,
    write_records,
)
from data.transform import image_problem

TASK = """你是遥感影像解译专家。用户给出同一幅遥感图像的若干句（至多五句）英文描述，句子之间常有重复或语法错误。
{}
不得添加英文中没有的地物、数量、颜色、位置、用途或评价。只输出这段中文描述，不要解释、编号或引号。"""
# style: (instruction, factor on the length that quality.py allows)
STYLES = {
    name: (TASK.format(text), allowance)
    for name, text, allowance in (
        (
            "concise",
            "请把它们概括成一句简短的中文描述（四十字以内），只说最主要的地物和它们的关系。",
            0.75,
        ),
        (
            "detailed",
            "请把它们合并成一段忠实、通顺的中文描述：涵盖各句的信息，相同的内容只说一次；",
            1,
        ),
        (
            "expanded",
            "请合并并扩写成三到五句中文：逐一交代每种地物及其数量、颜色、排列和相互位置；展开只限于英文已有的信息，",
            2,
        ),
        (
            "rewritten",
            "请合并后改写：信息不变，换用与直译不同的句式和词语，不用“这是一张遥感图像”一类的套话；",
            1,
        ),
    )
}
OPENAI_URL = "https://api.openai.com/v1"


def same(text):
    """Captions that differ in white space only are one caption."""
    return " ".join(text.split())


class Journal:
    """Answers on disk. `add` returns when its entry is fsynced; entries that arrive meanwhile share the next fsync."""

    def __init__(self, path):
        self.path, self.file, self.pending, self.flushing = path, None, [], None

    def read(self, style):
        """{caption: [answers of earlier runs in this style, in order]}; a line torn by a kill costs one more question."""
        answers = {}
        for line in self.path.read_bytes().split(b"\n") if self.path.exists() else ():
            try:
                entry = json.loads(line)
                if (
                    entry.get("style", "detailed") == style
                ):  # the journals of earlier versions knew one style
                    answers.setdefault(same(entry["source"]), []).append(entry["target"].strip())
            except (ValueError, KeyError, TypeError, AttributeError):
                if line.strip():
                    print(
                        f"translation_en2zh.py: skipped an unreadable line of {self.path}",
                        file=sys.stderr,
                    )
        return answers

    async def add(self, entry):
        done = asyncio.get_running_loop().create_future()
        self.pending.append((json.dumps(entry, ensure_ascii=False).encode() + b"\n", done))
        if self.flushing is None:
            self.flushing = asyncio.create_task(self.flush())
        await done

    async def flush(self):
        try:
            while self.pending:
                batch, self.pending = self.pending, []
                error = None
                try:
                    await asyncio.to_thread(self.write, [line for line, _ in batch])
                except OSError as full:  # for those who wait: they end the run
                    error = full
                for done in (done for _, done in batch if not done.done()):
                    done.set_exception(error) if error else done.set_result(None)
        finally:
            self.flushing = None

    def write(self, lines):
        if self.file is None:  # not before there is something to keep
            self.file = open(self.path, "ab+")
            if self.file.tell():
                self.file.seek(-1, os.SEEK_END)
                if self.file.read(1) != b"\n":
                    self.file.write(b"\n")  # keeps what comes apart from a torn last line
        self.file.write(b"".join(lines))
        self.file.flush()
        os.fsync(self.file.fileno())

    async def close(self):
        if self.flushing:  # keeps what an interrupt found between answer and disk
            await self.flushing
        if self.file:
            self.file.close()


class Texts:
    """The distinct captions and what is known of each: `known` {name: target}, `rejected` {name: (answer, problems)}."""

    def __init__(self, args, texts, answers):
        self.args, self.texts, self.answers, self.known, self.rejected = (
            args,
            texts,
            answers,
            {},
            {},
        )
        for path in (
            args.memory
        ):  # before the journal: a correction by hand wins over an answer, and the gate trusts it
            memory = checked_records(
                path, "source", lambda entry: text_problem(entry, "target"), unique=False
            )
            self.known.update(
                (name, entry["target"])
                for entry in memory
                if (name := same(entry["source"])) in texts
            )
        self.left = [name for name in texts if name not in self.known and not self.settled(name)]

    def problems(self, name, target):
        instruction, allowance = STYLES[self.args.style]
        return (
            []
            if self.args.no_gate
            else quality.problems(target, self.texts[name], instruction, allowance)
        )

    def settled(self, name):
        """True if an answer is good or no further one is wanted."""
        answers = self.answers.get(name, [])
        found = []
        for target in answers:
            found = self.problems(name, target)
            if not found:
                self.known[name] = target
                return True
        if len(answers) > self.args.reask:
            self.rejected[name] = (answers[-1], found)
            return True
        return False

    def messages(self, name):
        messages = [
            {"role": "system", "content": STYLES[self.args.style][0]},
            {"role": "user", "content": self.texts[name]},
        ]
        if self.answers.get(name):
            last = self.answers[name][-1]
            messages += [
                {"role": "assistant", "content": last},
                {"role": "user", "content": quality.complaint(self.problems(name, last))},
            ]
        return messages

    def expected(self, name):
        """Tokens that an answer is thought to have: half of what is allowed, a token per character."""
        return quality.most_characters(self.texts[name], STYLES[self.args.style][1]) // 2

    async def ask(self, endpoint, journal, name):
        while name not in self.known and name not in self.rejected:
            target, used = await endpoint.answer(self.messages(name), self.expected(name))
            await journal.add(
                {
                    "source": self.texts[name],
                    "target": target,
                    "model": self.args.model,
                    "style": self.args.style,
                    "tokens": used,
                }
            )
            self.answers.setdefault(name, []).append(target)
            self.settled(name)


async def ask_all(texts, args, key, journal):
    """Ask for each text left, `args.concurrency` at a time; returns the endpoint, for its counters, and why texts failed."""
    endpoint, failures, waiting = Endpoint(args, key), [], iter(texts.left)

    async def work():
        for name in waiting:  # the workers share one iterator
            try:
                await texts.ask(endpoint, journal, name)
            except Failed as error:
                failures.append(f"{error}, for {reprlib.repr(name)}")
            except Stopped:
                return
            cost = f", {endpoint.cost:.4f} spent" if args.price_in or args.price_out else ""
            bar.set_postfix_str(
                f"{endpoint.tokens_in} + {endpoint.tokens_out} tokens{cost}, {endpoint.retries} retries, "
                f"{len(texts.rejected)} rejected, {len(failures)} failed",
                refresh=False,
            )
            bar.update()

    with tqdm(
        total=len(texts.left), unit="caption", disable=None
    ) as bar:  # None: no bar in a log file
        try:
            async with endpoint.client:
                await asyncio.gather(
                    *(work() for _ in range(min(args.concurrency, len(texts.left))))
                )
        finally:
            await journal.close()
    return endpoint, failures


def translate(args):
    if args.check:
        return check(args)
    resolve_paths(args)
    if args.memory_out and not args.memory_out.absolute().parent.is_dir():
        raise StageError(
            f"folder of --memory-out {args.memory_out} does not exist: make it, or name another file"
        )
    journal = Journal(args.output.with_name(args.output.name + ".journal.jsonl"))
    count, captions = 0, {}
    for count, record in enumerate(caption_records(args.input, args.limit), 1):
        captions.setdefault(same(record["caption"]), record["caption"])
    texts = Texts(args, captions, journal.read(args.style))
    left = len(texts.left)
    print(
        f"{args.input}: {count} records, {len(captions)} distinct captions, {len(texts.known)} known, "
        + (f"{len(texts.rejected)} rejected, " if texts.rejected else "")
        + f"{left} to ask{f' {args.model}' if left else ''}",
        flush=True,
    )
    if args.dry_run:
        tokens_in = sum(
            estimated_tokens(m["content"]) + 4 for name in texts.left for m in texts.messages(name)
        )
        tokens_out = sum(map(texts.expected, texts.left))
        cost = (tokens_in * (args.price_in or 0) + tokens_out * (args.price_out or 0)) / 1e6
        print(
            f"dry run: about {tokens_in} tokens in and {tokens_out} out, answers asked again not counted"
            + (f"; about {cost:.4f} at these prices" if args.price_in or args.price_out else "")
        )
        return
    if left:
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not key or not key.isascii():
            raise StageError(
                f"{left} captions are left to ask: set OPENAI_API_KEY to a key in ASCII (any word for a "
                "server without keys), and --base-url for an endpoint other than OpenAI's; or give --memory"
            )
        endpoint, failures = asyncio.run(ask_all(texts, args, key, journal))
        cost = f", {endpoint.cost:.4f} spent" if args.price_in or args.price_out else ""
        print(
            f"{endpoint.requests} requests ({endpoint.retries} of them retries), {endpoint.tokens_in} tokens in, "
            f"{endpoint.tokens_out} out{cost}",
            flush=True,
        )
        kept = (
            f"answers so far are kept in {journal.path}, {args.output} is not written; the same command asks for the "
            "rest, --memory takes translations by hand"
        )
        if endpoint.stopped:
            raise StageError(f"stopped: {endpoint.stopped}; {kept}")
        if failures:
            raise StageError(
                f"{len(failures)} of {left} captions failed, first: {failures[0]}; {kept}"
            )

    def rows():
        for record in caption_records(args.input, args.limit):
            name = same(record["caption"])
            yield (
                record,
                record["caption"],
                *((texts.known[name], []) if name in texts.known else texts.rejected[name]),
            )

    write_results(args, rows(), gated=bool(texts.answers) and not args.no_gate)
    if args.memory_out:
        pairs = (
            {"source": text, "target": texts.known[name]}
            for name, text in captions.items()
            if name in texts.known
        )
        print(
            f"{args.memory_out}: {write_records(args.memory_out, pairs)} pairs of translation memory"
        )


def write_results(args, rows, gated):
    """Write output, NAME-rejected and NAME-report.json and print the report. rows: (record, its English, Chinese, problems)."""
    rejected = args.output.with_name(f"{args.output.stem}-rejected{args.output.suffix}")
    path = args.output.with_name(f"{args.output.stem}-report.json")
    report = quality.Report()
    with record_writer(args.output) as good, record_writer(rejected) as bad:
        for record, english, target, problems in rows:
            trim = args.trim and (problems or args.trim < math.inf)
            sound = quality.trimmed(target, english, *STYLES[args.style], args.trim) if trim else ""
            report.add(record["imged_id"], target, problems, trimmed=bool(problems and sound))
            if problems and not sound:
                bad({**record, "answer": target, "problems": problems})
            else:
                good({**record, "caption": sound or target})
    if not report.rejected:
        rejected.unlink()
    if gated:
        path.write_text(
            json.dumps(report.as_dict(), ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
        )
        print(report)
    else:
        path.unlink(missing_ok=True)  # of an earlier run
    print(
        f"{args.output}: {report.passed + report.trimmed} records{' (--limit)' if args.limit else ''}"
    )
    if report.rejected:
        print(
            f"{rejected}: {report.rejected} rows left out, with their reasons"
            + ("" if args.check else "; a correction goes in by --memory")
        )


def english_of(path):
    """{image name: English} of what transform writes, or of a caption set as distributed."""
    first = next((record for _, record in read_records(path)), None)
    if isinstance(first, dict) and "sentences" in first:
        images = checked_records(path, "filename", image_problem)
        return {
            image["filename"]: "  ".join(sentence["raw"] for sentence in image["sentences"])
            for image in images
        }
    return {record["imged_id"]: record["caption"] for record in caption_records(path)}


def check(args):
    """Run the gate on an existing file: the rows that pass go to --output, by default NAME-checked."""
    if (
        args.input is None
        and not (DATA / (name := args.dataset or DEFAULT_SET) / f"{name}-en.json").exists()
    ):
        args.reads = "captions"
    args.output = args.output or args.check.with_name(
        f"{args.check.stem}-checked{args.check.suffix}"
    )
    if args.output.exists() and args.check.exists() and args.output.samefile(args.check):
        raise StageError(
            f"output {args.output} is the file that is checked: name another by --output"
        )
    resolve_paths(args)
    english = english_of(args.input)
    if all(language(text) == "zh" for text in english.values()):
        raise StageError(
            f"{args.input} is Chinese: --input takes the English sentences of the pictures, --check the Chinese file"
        )
    allowance = STYLES[args.style][1]
    missing = [
        record["imged_id"]
        for record in caption_records(args.check, args.limit)
        if record["imged_id"] not in english
    ]
    if missing:
        raise StageError(
            f"{len(missing)} images of {args.check} are not in {args.input}: {listed(missing)}; check --input"
        )
    write_results(
        args,
        (
            (
                record,
                source := english[record["imged_id"]],
                record["caption"],
                quality.problems(record["caption"], source, "", allowance),
            )
            for record in caption_records(args.check, args.limit)
        ),
        gated=True,
    )


def at_least(kind, least):
    def number(text):
        value = kind(text)
        if not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not at least {least}")
        return value

    return number


def main(argv=None):
    parser = argparse.ArgumentParser(
        description="Merge the English sentences of each image into one Chinese description. "
        "The key is read from the environment variable OPENAI_API_KEY only."
    )
    add_path_options(parser, "en", "zh")
    parser.add_argument(
        "--memory",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help='translation memory, JSON or .jsonl of {"source": English caption, "target": Chinese}: needs '
        "no network; repeatable, the last wins",
    )
    parser.add_argument(
        "--memory-out",
        type=Path,
        metavar="FILE",
        help="write such a memory of everything this run used",
    )
    parser.add_argument(
        "--limit",
        type=at_least(int, 1),
        metavar="N",
        help="the first N records only (default: all)",
    )
    parser.add_argument(
        "--style",
        choices=STYLES,
        default="detailed",
        help="concise: one sentence; detailed: one paragraph with what the sentences say; "
        "expanded (扩写): three to five sentences; rewritten (改写): other words and sentence forms "
        "(default: %(default)s)",
    )
    gate = parser.add_argument_group("quality gate")
    gate.add_argument(
        "--reask",
        type=at_least(int, 0),
        default=2,
        metavar="N",
        help="how often a bad answer is asked again with the complaint before it is rejected; what an earlier "
        "run rejected is asked again only by a larger N (default: %(default)s)",
    )
    gate.add_argument("--no-gate", action="store_true", help="take every answer as it is")
    gate.add_argument(
        "--trim",
        type=at_least(int, 1),
        nargs="?",
        const=math.inf,
        metavar="N",
        help="of a description that stays bad keep the sentences with which nothing is wrong; rejected is only what then has "
        "none left. With N, keep of every description the first N of them",
    )
    gate.add_argument(
        "--check",
        type=Path,
        metavar="FILE",
        help="translate nothing: run the gate on this Chinese file against --input (English records or a "
        "caption set as distributed); writes NAME-checked or --output",
    )
    llm = parser.add_argument_group("endpoint")
    llm.add_argument(
        "--base-url",
        default=os.environ.get("OPENAI_BASE_URL") or OPENAI_URL,
        help="any OpenAI-compatible "
        f"endpoint, usually ending in /v1 (default: the variable OPENAI_BASE_URL, then {OPENAI_URL})",
    )
    llm.add_argument(
        "--model", default="gpt-4o-mini", help="model name at the endpoint (default: %(default)s)"
    )
    llm.add_argument(
        "--concurrency",
        type=at_least(int, 1),
        default=8,
        help="requests at a time (default: %(default)s)",
    )
    llm.add_argument(
        "--rpm",
        type=at_least(float, 0.01),
        metavar="N",
        help="at most so many requests per minute (default: no limit)",
    )
    llm.add_argument(
        "--tpm",
        type=at_least(float, 1),
        metavar="N",
        help="at most so many tokens per minute, in and out, estimated before and corrected after each "
        "request (default: no limit)",
    )
    llm.add_argument(
        "--timeout",
        type=at_least(float, 0.1),
        default=60.0,
        help="seconds per request (default: %(default)s)",
    )
    llm.add_argument(
        "--max-retries",
        type=at_least(int, 0),
        default=5,
        help="further tries of a request after a rate limit, a server error, a timeout or a broken reply; "
        "0: none (default: %(default)s)",
    )
    llm.add_argument(
        "--backoff",
        type=at_least(float, 0),
        default=1.0,
        metavar="SECONDS",
        help="pause before the first retry, doubled for each further one, up to half of it at random; the "
        "server's Retry-After wins (default: %(default)s)",
    )
    money = parser.add_argument_group("cost")
    money.add_argument(
        "--dry-run",
        action="store_true",
        help="ask nothing: print distinct captions, estimated tokens and cost",
    )
    money.add_argument(
        "--price-in",
        type=at_least(float, 0),
        metavar="PRICE",
        help="of a million tokens sent, in any currency",
    )
    money.add_argument(
        "--price-out", type=at_least(float, 0), metavar="PRICE", help="of a million tokens answered"
    )
    money.add_argument(
        "--max-cost",
        type=at_least(float, 0),
        metavar="SUM",
        help="stop this run before it could spend more, requests under way included; needs the prices "
        "(default: no limit)",
    )
    args = parser.parse_args(argv)
    problems = []
    if not re.match("https?://[^/]", args.base_url):
        problems.append(f"base URL {args.base_url!r} does not start with http:// or https://")
    if args.max_cost is not None and not (args.price_in or args.price_out):
        problems.append("--max-cost needs --price-in and --price-out")
    if args.check and (args.memory or args.memory_out or args.dry_run or args.no_gate):
        problems.append(
            "--check asks nothing: it does not go with --memory, --memory-out, --dry-run or --no-gate"
        )
    if args.trim and args.no_gate:
        problems.append("--trim cuts what the gate finds: leave --no-gate out")
    if problems:
        parser.error("; ".join(problems))
    return run_stage(__file__, translate, args)


if __name__ == "__main__":
    sys.exit(main())
