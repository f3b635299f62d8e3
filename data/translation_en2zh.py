"""Stage 2: English captions -> one Chinese description per image, by an LLM behind any
OpenAI-compatible endpoint.

in:  [{"imged_id": "1.tif", "caption": English, ...}, ...]
out: the same records, `caption` in Chinese

An answer is paid for once: each distinct caption is asked once, and every answer, good or bad, is
appended to <output>.journal.jsonl and fsynced before its worker asks the next one, so a run that
was killed continues where it stopped. An answer that quality.py finds fault with is asked again
with the complaint; what stays bad goes to NAME-rejected and is left out, or with --trim keeps the
sentences that pass. NAME-report.json counts the reasons. --check runs the same gate on a file that
exists. Captions that are Chinese already are not asked but judged as well. The key is read from the
environment variable OPENAI_API_KEY only.
"""

import asyncio
import itertools
import json
import math
import os
import reprlib
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from command_line import Parser
from data import batch, look, quality, seen_questions
from data.batch_rounds import ask_in_batches
from data.connection import is_header, url_problem
from data.endpoint import Failed, Stopped, connect, cost_of, prompt_tokens
from data.endpoint_options import add_cost_options, add_endpoint_options, at_least
from data.journal import Journal, normalized
from data.layouts.content import Content
from data.lexicon import language
from data.look import LOOK_STYLES
from data.records import caption_records, record_writer, write_records
from data.stage import DATA, DEFAULT_SET, add_path_options, listed, resolve_paths, run_stage
from data.texts import STYLES, open_texts
from data.transform import caption_set, sentences_of
from model.errors import UserError
from model.files import write_text

# captions rejected without one that passes, after which a run stops
EARLY = 20


class NothingPassed(Exception):
    """There is not one row to write."""


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
            bar.set_postfix_str(
                f"{endpoint.tokens_in} + {endpoint.tokens_out} tokens{spent(args, endpoint)}, "
                f"{endpoint.retries} retries, {len(texts.rejected)} rejected, "
                f"{len(failures)} failed",
                refresh=False,
            )
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


def translate(args):
    resolve_paths(args)
    if args.memory_out and not args.memory_out.absolute().parent.is_dir():
        raise UserError(
            f"folder of --memory-out {args.memory_out} does not exist: make it, or name another "
            "file"
        )
    args.in_files = bool(args.export_batch or args.import_batch)
    path = args.output.with_name(args.output.name + ".journal.jsonl")
    if args.look:
        texts, journal = looked_texts(args, path)
    else:
        journal = Journal(path)
        count, captions = distinct_captions(args)
        texts = open_texts(args, captions, journal.read(args.style))
        texts.records = f"{count} records, "
        receive_batches(texts, args, journal)
    if texts is None or not go_on(texts, args, journal):
        return

    write_results(args, results(texts, args), texts.is_gated, texts.record)
    if args.memory_out:
        pairs = []
        for name, text in texts.texts.items():
            if name in texts.known:
                pairs.append({"source": text, "target": texts.known[name]})
        count = write_records(args.memory_out, pairs)
        print(f"{args.memory_out}: {count} pairs of translation memory")


def looked_texts(args, path):
    """(LookedTexts, their journal) once every image was looked at; (None, None) before that."""
    pictures = look.Pictures(args)
    journal = Journal(path)
    seen = look.Sightings(args, pictures, journal.read(look.SEEN))
    # files of results are of one kind of requests; which, the journal knows
    own = [file for file in args.import_batch if batch.answers_some(file, journal)]
    if seen.left:
        own = args.import_batch
    seen.args.import_batch = own
    receive_batches(seen, seen.args, journal)
    if (seen.left or seen.waiting) and not go_on(seen, seen.args, journal):
        return None, None

    args.import_batch = [file for file in args.import_batch if file not in own]
    journal = Journal(path)
    texts = look.LookedTexts(args, pictures, seen, journal.read(args.style))
    receive_batches(texts, args, journal)
    return texts, journal


def go_on(texts, args, journal):
    """Say what is known, and ask for the rest; returns whether all of it is settled.

    Raises UserError.
    """
    print(
        f"{args.input}: {texts.records}{len(texts.texts)} distinct {texts.what}, "
        f"{texts.counts(args.model)}",
        flush=True,
    )
    if args.dry_run:
        print_estimate(texts, args)
        return False
    return settle(texts, args, journal)


def receive_batches(texts, args, journal):
    """Store the answers of --import-batch, and sort out what is out. Raises UserError."""
    if args.lost_batch:
        journal.give_up(list(journal.out), args.style, "lost, by --lost-batch")
    for path in args.import_batch:
        imported = batch.import_results(path, texts, journal, args.style)
        print(f"{path}: {imported}", flush=True)
    texts.refresh(journal.out)


def settle(texts, args, journal):
    """Ask for what is left, by files or by requests; returns whether every caption is settled.

    Raises UserError.
    """
    if args.in_files and texts.left:
        path = args.export_batch or next_requests(args.output)
        for file in batch.export(path, texts, journal, args):
            print(f"{file}: requests of the next round; their results go to --import-batch")
        texts.refresh(journal.out)
    elif args.batch_api:
        left = len(texts.left) + len(texts.waiting)
        if left:
            ask_in_batches(texts, args, journal, key_of_environment(left))
    elif texts.left:
        ask_what_is_left(texts, args, journal)

    if not texts.waiting:
        return True
    text = (
        f"{len(texts.waiting)} {texts.what} are out in files of requests: {args.output} is written "
        "once --import-batch has their results; --lost-batch asks for them again"
    )
    if not args.in_files:
        raise UserError(text)
    print(text)
    return False


def next_requests(output):
    """The first NAME-requests-N.jsonl that is not there."""
    for number in itertools.count(2):
        path = output.with_name(f"{output.stem}-requests-{number}.jsonl")
        if not path.exists():
            return path


def distinct_captions(args):
    """(number of records, {normalized caption: caption}) of the input. Raises UserError."""
    count, captions, foreign = 0, {}, []
    for record in caption_records(args.input, args.limit):
        caption = record["caption"]
        captions.setdefault(normalized(caption), caption)
        if quality.written_in(caption) == "other":
            foreign.append(f"record {count} ({record['imged_id']}: {reprlib.repr(caption)})")
        count += 1
    if foreign:
        raise UserError(
            f"{args.input}: {len(foreign)} of {count} captions are neither English nor Chinese: "
            f"{listed(foreign)}; take them out, or translate them first"
        )
    return count, captions


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
    print(
        f"{endpoint.used}{spent(args, endpoint)}",
        flush=True,
    )

    kept = f"{args.output} is not written; --memory takes translations by hand"
    if journal.path.exists():
        kept = (
            f"answers so far are kept in {journal.path}, {args.output} is not written; the same "
            "command asks for the rest, --memory takes translations by hand"
        )
    if endpoint.stopped:
        raise UserError(f"stopped: {endpoint.stopped}; {kept}")
    if failures:
        raise UserError(f"{len(failures)} of {left} captions failed, first: {failures[0]}; {kept}")


def results(texts, args):
    """Yield (record, its English or None, Chinese, problems) of every record."""
    for record in caption_records(args.input, args.limit):
        name = texts.name_of(record)
        if name in texts.known:
            target, problems = texts.known[name], []
        else:
            target, problems = texts.rejected[name]
        is_english = quality.written_in(record["caption"]) != "zh"
        yield record, texts.source(name) if is_english else None, target, problems


def write_results(args, rows, gated, made):
    """Write output, NAME-rejected and NAME-report.json and print the report. Raises UserError.

    rows: (record, its English or None, Chinese, problems); gated: whether there is something to
    report; made(record, Chinese): what is written.
    """
    rejected = args.output.with_name(f"{args.output.stem}-rejected{args.output.suffix}")
    path = args.output.with_name(f"{args.output.stem}-report.json")
    report = quality.Report()
    shortened = 0
    with record_writer(rejected) as bad, suppress(NothingPassed):
        # an earlier output is not replaced by nothing
        with record_writer(args.output) as good:
            for record, english, target, problems in rows:
                kept = kept_part(args, english, target, problems)
                trimmed = bool(problems) and kept is not None
                report.add(record["imged_id"], target, problems, trimmed)
                shortened += kept is not None and kept != target
                if kept is None:
                    bad({**record, "answer": target, "problems": problems})
                else:
                    good(made(record, kept))
            if report.rejected == report.total:
                raise NothingPassed
    if not report.rejected:
        rejected.unlink()

    if gated:
        write_text(path, json.dumps(report.as_dict(), ensure_ascii=False, indent=2) + "\n")
        print(report)
    else:
        # of an earlier run
        path.unlink(missing_ok=True)
    if report.rejected == report.total:
        raise UserError(
            f"not one description passed: {rejected} has the answers and the reasons, "
            f"{args.output} is not written"
        )
    limited = " (--limit)" if args.limit else ""
    trimmed = f", {shortened} of them with sentences left out (--trim)" if shortened else ""
    print(f"{args.output}: {report.passed + report.trimmed} records{limited}{trimmed}")
    if report.rejected:
        hint = "" if args.check else "; a correction goes in by --memory"
        print(f"{rejected}: {report.rejected} rows left out, with their reasons{hint}")


def kept_part(args, english, target, problems):
    """What of a description goes to the output: all, with --trim a part, or None."""
    if args.trim and (problems or args.trim < math.inf):
        instruction, allowance = (LOOK_STYLES if args.look else STYLES)[args.style]
        part = quality.trimmed(target, english, instruction, allowance, args.trim)
        if part:
            return part
    return None if problems else target


def english_of(path):
    """{image name: English} of what transform writes, or of a caption set as distributed."""
    if "imged_id" in Content(path).first:
        return {record["imged_id"]: record["caption"] for record in caption_records(path)}
    found = {}
    for image in caption_set(path):
        found[image["filename"]] = "  ".join(sentences_of(image))
    return found


def check(args):
    """Run the gate on an existing file: rows that pass go to --output, by default NAME-checked."""
    dataset = args.dataset or DEFAULT_SET
    if args.input is None and not (DATA / dataset / f"{dataset}-en.json").exists():
        args.reads = "captions"
    if args.output is None:
        args.output = args.check.with_name(f"{args.check.stem}-checked{args.check.suffix}")
    if args.output.exists() and args.check.exists() and args.output.samefile(args.check):
        raise UserError(
            f"output {args.output} is the file that is checked: name another by --output"
        )
    resolve_paths(args)

    english = english_of(args.input)
    if all(language(text) == "zh" for text in english.values()):
        raise UserError(
            f"{args.input} is Chinese: --input takes the English sentences of the images, "
            "--check the Chinese file"
        )
    missing = []
    for record in caption_records(args.check, args.limit):
        if record["imged_id"] not in english:
            missing.append(record["imged_id"])
    if missing:
        raise UserError(
            f"{len(missing)} images of {args.check} are not in {args.input}: {listed(missing)}; "
            "check --input"
        )

    _, allowance = STYLES[args.style]

    def rows():
        for record in caption_records(args.check, args.limit):
            source, target = english[record["imged_id"]], record["caption"]
            yield record, source, target, quality.problems(target, source, "", allowance)

    def made(record, text):
        return {**record, "caption": text}

    write_results(args, rows(), True, made)


def make_parser():
    parser = Parser(__doc__)
    add_path_options(parser, "en", "zh")
    parser.add_argument(
        "--memory",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help='translation memory, JSON or .jsonl of {"source": English caption, "target": '
        "Chinese}: needs no network; repeatable, the last wins",
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
        choices=LOOK_STYLES,
        default="detailed",
        help="concise: one sentence; detailed: one paragraph with what the sentences say; "
        "expanded (扩写): three to five sentences; rewritten (改写): other words and sentence "
        "forms; with --look also questions: about what is seen, with answers, and absent: about "
        "what is not there, which give rows for generate_prompt.py (default: %(default)s)",
    )
    parser.add_argument(
        "--look",
        type=Path,
        metavar="DIR",
        help="the model sees the images, which lie in this folder: first it says in English what "
        "it sees of each, then it describes it (or asks, see --style) by that and the caption",
    )
    add_gate_options(parser.add_argument_group("quality gate").add_argument)
    add_endpoint_options(parser.add_argument_group("endpoint").add_argument)
    add_cost_options(parser.add_argument_group("cost").add_argument)
    add_batch_options(parser.add_argument_group("batches").add_argument)
    return parser


def add_batch_options(add):
    add(
        "--export-batch",
        type=Path,
        metavar="FILE.jsonl",
        help="ask nothing: write the requests to this file in OpenAI's Batch form, which `vllm "
        f"run-batch` and Ray read as well; at most {batch.MOST_REQUESTS:,} requests and "
        f"{batch.MOST_BYTES // 10**6} MB a file, then FILE-2.jsonl and so on",
    )
    add(
        "--import-batch",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="store the answers of these files of results, judge them, and write the requests of "
        "the next round for what was rejected or failed (to --export-batch, else to "
        "NAME-requests-N.jsonl beside the output)",
    )
    add(
        "--batch-api",
        action="store_true",
        help="the same in one go: upload the files, wait and download, round after round",
    )
    add(
        "--poll",
        type=at_least(float, 0.01),
        default=60.0,
        metavar="SECONDS",
        help="of --batch-api: pause between two looks at a batch (default: %(default)s)",
    )
    add(
        "--lost-batch",
        action="store_true",
        help="take the requests that are out in files for lost: ask for them again",
    )


def add_gate_options(add):
    add(
        "--reask",
        type=at_least(int, 0),
        default=2,
        metavar="N",
        help="how often a bad answer is asked again with the complaint before it is rejected; what "
        "an earlier run rejected is asked again only by a larger N (default: %(default)s)",
    )
    add("--no-gate", action="store_true", help="take every answer as it is")
    add(
        "--trim",
        type=at_least(int, 1),
        nargs="?",
        const=math.inf,
        metavar="N",
        help="of a description that stays bad keep the sentences that pass; rejected is only what "
        "then has none left. With N, keep of every description the first N of them",
    )
    add(
        "--check",
        type=Path,
        metavar="FILE",
        help="translate nothing: run the gate on this Chinese file against --input (English "
        "records or a caption set as distributed); writes NAME-checked or --output",
    )


def contradictions(args):
    """What is wrong with the options, each in one text."""
    problems = []
    problem = url_problem(args.base_url, ("http", "https"))
    if problem:
        problems.append(f"base URL {args.base_url!r} {problem}")
    if args.max_cost is not None and not (args.price_in or args.price_out):
        problems.append("--max-cost needs --price-in and --price-out")
    if args.check and (args.memory or args.memory_out or args.dry_run or args.no_gate):
        problems.append(
            "--check asks nothing: it does not go with --memory, --memory-out, --dry-run or "
            "--no-gate"
        )
    in_files = args.export_batch or args.import_batch
    if args.batch_api and in_files:
        problems.append("--batch-api does all: leave --export-batch and --import-batch out")
    if (args.batch_api or in_files) and (args.check or args.stream or args.max_cost is not None):
        problems.append("batches do not go with --check, --stream or --max-cost")
    if args.export_batch and args.export_batch.suffix != ".jsonl":
        problems.append(f"--export-batch {args.export_batch}: expected a name ending in .jsonl")
    problems += look_problems(args)
    if args.trim and args.no_gate:
        problems.append("--trim cuts what the gate finds: leave --no-gate out")
    return problems


def look_problems(args):
    """The same of --look."""
    problems = []
    if args.style in seen_questions.INSTRUCTIONS:
        if not args.look:
            problems.append(f"--style {args.style} is about images: name their folder by --look")
        if args.trim or args.no_gate:
            problems.append(f"--style {args.style} keeps what the gate passes: leave --trim and "
                            "--no-gate out")  # fmt: skip
    if not args.look:
        return problems
    if args.check or args.memory or args.memory_out:
        problems.append("--look does not go with --check, --memory or --memory-out")
    if not args.look.is_dir():
        problems.append(f"--look {args.look}: no such folder")
    return problems


def main(argv=None):
    parser = make_parser()
    args = parser.parse_args(argv)
    problems = contradictions(args)
    if problems:
        parser.error("; ".join(problems))
    return run_stage(__file__, check if args.check else translate, args)


if __name__ == "__main__":
    sys.exit(main())
