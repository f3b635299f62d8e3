"""The inputs of generate_prompt.py, and what one reading of all their records shows."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from data import instructions
from data.caption_sets import CAPTION_SETS, SPLITS
from data.conversation import rounds_of
from data.faults import Fault, no_key, split_problem, text_problem
from data.records import caption_records, read_records, row_records
from data.row_files import SUFFIXES, part_of
from data.sentences import caption_set, image_problem, sentences_of
from data.stage import listed, resolve_inputs
from model.errors import UserError

# images named of a kind of problem: enough to fix a damaged download in one go
MOST_NAMED = 100


@dataclass(frozen=True)
class Source:
    """One input file and what belongs to it."""

    path: Path
    # stands before its file names
    root: str
    # the known set that it is, or None
    dataset: str | None
    # what --captions adds: {file name: split}, {file name: its English sentences}
    splits: dict
    sentences: dict
    # whether its records bring their questions, in place of captions
    has_rows: bool = False

    def records(self, checked=True):
        """(img, split or None, record) of each.

        checked: an earlier reading found no name twice.
        """
        if self.has_rows:
            records = row_records(self.path, conversation_problem)
        else:
            records = caption_records(self.path, unique=not checked)
        for record in records:
            name = record["imged_id"]
            img = name if self.root == "." else f"{self.root}/{name}"
            yield img, record.get("split") or self.splits.get(name), record

    def facts(self, record):
        return instructions.facts(record["caption"], self.sentences.get(record["imged_id"], ()))


def conversation_problem(record):
    """The Fault of a record's dialogue, or None."""
    if "conversations" not in record:
        return no_key(record, "conversations")
    rounds = rounds_of(record["conversations"])
    return rounds if isinstance(rounds, Fault) else None


def has_rows(path):
    """Whether the first record of a file brings its questions. Raises UserError."""
    first = next((record for _, record in read_records(path)), None)
    return isinstance(first, dict) and "conversations" in first


def read_captions(path, sentences):
    """({file name: split}, {file name: English sentences}) of a caption set.

    sentences: whether they are wanted; else the latter is empty. Raises UserError.
    """
    problem_of = image_problem if sentences else split_problem

    def problem(image):
        return text_problem(image, "split") or problem_of(image)

    splits, english = {}, {}
    for image in caption_set(path, problem):
        splits[image["filename"]] = image["split"]
        if sentences:
            english[image["filename"]] = sentences_of(image)
    return splits, english


def sources_of(args):
    """The inputs, each with what belongs to it; fills in args.output."""
    default_output = args.output is None
    paths = resolve_inputs(args, args.input, to_folder=args.format == "hf")
    if default_output and args.format in SUFFIXES:
        args.output = args.output.with_suffix(SUFFIXES[args.format])

    for split in SPLITS:
        part = part_of(args.output, split)
        if any(part.exists() and part.samefile(path) for path in paths):
            raise UserError(
                f"input {part} would be overwritten by the split files of {args.output}: "
                "name another --output"
            )

    sources = []
    for number, path in enumerate(paths):
        name = args.dataset or path.stem.removesuffix("-zh")
        dataset = name if name in CAPTION_SETS else None
        splits, sentences = {}, {}
        if args.captions:
            splits, sentences = read_captions(args.captions[number], bool(args.tasks))
        own = has_rows(path)
        sources.append(Source(path, args.image_root[number], dataset, splits, sentences, own))
    if args.tasks and all(source.has_rows for source in sources):
        raise UserError(
            f"{' and '.join(map(str, paths))}: the records bring their own questions: leave "
            "--tasks out"
        )
    return sources


class Survey:
    """What one reading of all records shows, before anything is written."""

    def __init__(self):
        # images per split
        self.counts = Counter()
        # names of the first records without a split
        self.unsplit = []
        # {split: Counter of hashes of its descriptions}, of the validation and the test set
        self.evaluated = {split: Counter() for split in SPLITS[1:]}
        self.statistics = instructions.Statistics()


def survey(sources, args):
    """Read everything once: all that is wrong with the records is found here. Raises UserError."""
    seen = Survey()
    for source in sources:
        for _, split, record in source.records(checked=False):
            if "problems" in record:
                raise UserError(
                    f"{source.path} holds what the quality gate rejected (record "
                    f"{record['imged_id']} has 'problems'): its captions are no labels; name the "
                    "file beside it, without -rejected"
                )
            seen.counts[split] += 1
            if split is None and len(seen.unsplit) < MOST_NAMED:
                seen.unsplit.append(record["imged_id"])
            if source.has_rows:
                continue
            if split in seen.evaluated:
                seen.evaluated[split][hash(record["caption"])] += 1
            if args.tasks:
                seen.statistics.add(source.facts(record).present)

    total, unsplit = sum(seen.counts.values()), seen.counts[None]
    # some without: they would silently be in none of the split files
    if unsplit and (args.captions or unsplit < total):
        hint = "give --captions"
        if args.captions:
            hint = f"{' and '.join(map(str, args.captions))} does not name them"
        names = listed(seen.unsplit)
        raise UserError(f"{unsplit} of {total} records have no split: {names}; {hint}")
    return seen
