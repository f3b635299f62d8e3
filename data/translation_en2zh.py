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

import itertools
import reprlib
import sys
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data import batch, look, quality
from data.asking import ask_what_is_left, key_of_environment, print_estimate
from data.batch_rounds import ask_in_batches
from data.existing import check
from data.journal import SUFFIX, Journal, held, normalized
from data.records import caption_records, write_records
from data.stage import listed, resolve_paths, run_stage
from data.texts import open_texts
from data.translated import write_results
from data.translation_options import check_files, contradictions, make_parser
from model.errors import UserError


def translate(args):
    resolve_paths(args)
    path = args.output.with_name(args.output.name + SUFFIX)
    check_files(args, path)
    args.in_files = bool(args.export_batch or args.import_batch)
    # a dry run writes nothing
    with nullcontext() if args.dry_run else held(path):
        pictures = look.Pictures(args) if args.look else None
        ask_and_write(args, path, pictures)
    if pictures and pictures.broken:
        raise UserError(
            f"{len(pictures.broken)} records have no image that can be read, see above: they are "
            f"not in {args.output}; repair the images, the same command asks for the rest"
        )


def ask_and_write(args, path, pictures):
    """Ask for what is not known, and write the output once all is settled. Raises UserError."""
    if pictures:
        texts, journal = looked_texts(args, path, pictures)
    else:
        journal = Journal(path, args.dry_run)
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


def looked_texts(args, path, pictures):
    """(LookedTexts, their journal) once every image was looked at; (None, None) before that."""
    looks, journal = Journal(path, args.dry_run), Journal(path, args.dry_run)
    answers = journal.read(args.style)
    seen = look.Sightings(args, pictures, look.sightings(looks, pictures))
    # files of results are of one kind of requests; which, the journal knows
    own = [file for file in args.import_batch if batch.answers_some(file, looks)]
    if seen.left:
        own = args.import_batch
    others = [file for file in args.import_batch if file not in own]
    # before the answers of the first kind are stored
    for file in others:
        batch.check_results(file, journal)
    seen.args.import_batch = own
    receive_batches(seen, seen.args, looks)
    if (seen.left or seen.waiting) and not go_on(seen, seen.args, looks):
        return None, None

    args.import_batch = others
    texts = look.LookedTexts(args, pictures, seen, answers)
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
    # all of them before anything is stored
    for path in args.import_batch:
        batch.check_results(path, journal)
    for path in args.import_batch:
        imported = batch.import_results(path, texts, journal, args.style)
        note = ", not stored in a dry run" if args.dry_run else ""
        print(f"{path}: {imported}{note}", flush=True)
    # what has just come is not lost, nor is what --batch-api can still fetch
    if args.lost_batch and not args.batch_api:
        journal.give_up(list(journal.out), args.style, batch.LOST)
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
    """The first NAME-requests-N.jsonl of which nothing is there."""
    for number in itertools.count(2):
        path = output.with_name(f"{output.stem}-requests-{number}.jsonl")
        if not batch.shards(path):
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


def results(texts, args):
    """Yield (record, its English or None, Chinese, problems) of every record."""
    for record in caption_records(args.input, args.limit):
        if texts.leaves_out(record):
            continue
        name = texts.name_of(record)
        if name in texts.known:
            target, problems = texts.known[name], []
        else:
            target, problems = texts.rejected[name]
        is_english = quality.written_in(record["caption"]) != "zh"
        yield record, texts.source(name) if is_english else None, target, problems


def main(argv=None):
    parser = make_parser(__doc__)
    args = parser.parse_args(argv)
    problems = contradictions(args)
    if problems:
        parser.error("; ".join(problems))
    return run_stage(__file__, check if args.check else translate, args)


if __name__ == "__main__":
    sys.exit(main())
