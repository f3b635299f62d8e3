"""Stage 3: Chinese descriptions + images -> the rows that fine-tuning reads.

in:  [{"imged_id": "1.tif", "caption": Chinese, "split": optional}, ...] and the image folder;
     several such files are merged; or {"imged_id", "conversations", "split": optional}, whose
     questions and answers stay as they are
out: [{"img": "images/1.tif", "prompt": question, "label": Chinese}, ...] in one file and, where
     splits are known, the same rows in NAME-train, NAME-val and NAME-test beside it;
     other forms by --format, more questions by --tasks
"""

import os
import sys
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from command_line import Parser
from data import exports, instructions
from data.caption_sets import CAPTION_SETS, SPLITS
from data.conversation import rounds_of
from data.image_check import CACHE, Use, check_images, find
from data.packing import Packer, refuse_old_shards
from data.records import (
    Fault,
    caption_records,
    no_key,
    read_records,
    row_records,
    split_problem,
    text_problem,
)
from data.row_files import SUFFIXES, RowFiles, part_of
from data.row_options import FORMAT, PROMPT, add_image_options, add_row_options, contradictions
from data.stage import PROJECT, add_path_options, listed, resolve_inputs, run_stage
from data.transform import caption_set, image_problem, sentences_of
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


def warn(text):
    print(f"generate_prompt.py: warning: {text}", file=sys.stderr)


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


def folders_of(sources, args):
    """Where the images are looked for, in order."""
    absolute = [source.root for source in sources if os.path.isabs(source.root)]
    folders = [Path(root) for root in absolute]
    if len(absolute) < len(sources):
        folders += [args.output.parent.absolute(), PROJECT]
    return list(dict.fromkeys(folders))


def check(sources, folders, args):
    """The imgs whose rows are dropped because of their image.

    Raises UserError where an input has no image or all are dropped; with --strict, where any is.
    """
    uses_of = []
    for source in sources:
        uses_of.append([Use(img, source.dataset, split) for img, split, _ in source.records()])
    uses = [use for uses in uses_of for use in uses]
    cache = args.output.with_name(CACHE)
    problems, leaks = check_images(uses, folders, cache, args.keep_duplicates, args.bands)

    for split, other, names in leaks:
        print(
            f"leakage: {len(names)} {split} images have the bytes of {other} images: "
            f"{listed(names)}"
        )
    imgs = {use.img for use in uses}
    dropped = {img for bad in problems.values() for img in bad}
    if not dropped:
        print(f"{len(imgs)} images opened without an error (kept for the next run in {cache})")
        return dropped

    parts = _problem_texts(problems, len(imgs), folders)
    missing = problems["missing"]
    gone = []
    for source, own in zip(sources, uses_of):
        if all(use.img in missing for use in own):
            gone.append(source.root)
    if gone and len(sources) > 1:
        parts.append(f"not one image of {' and '.join(gone)} was found")
    if args.strict or gone or dropped == imgs:
        raise UserError("; ".join([*parts, "check --image-root, or replace the files"]))

    rows = sum(use.img in dropped for use in uses)
    kept = f" (checks are kept in {cache})" if cache.exists() else ""
    parts.append(f"--strict stops instead{kept}")
    warn("; ".join([f"{rows} rows dropped", *parts]))
    return dropped


def _problem_texts(problems, total, folders):
    """One text for each kind of problem that occurs, and where was looked for missing images."""
    parts = []
    for kind, bad in problems.items():
        if bad:
            shown = 5 if len(bad) == total else MOST_NAMED
            names = listed(list(bad.values()), shown)
            parts.append(f"{len(bad)} of {total} images {kind}: {names}")
    if problems["missing"]:
        places = ", then ".join(f"in {folder}" for folder in folders)
        parts.append(f"looked {places}")
        parts += _hints(next(iter(problems["missing"])), folders)
    return parts


def _hints(img, folders):
    """Where a missing image may be."""
    from model.images import nearby

    root, name = os.path.split(img)
    here = Path.cwd()
    if here not in folders and Path(img).is_file():
        return [f"{root} is in the current folder: give --image-root in full"]
    for folder in folders:
        other = nearby(folder / img)
        if other:
            return [f"there is {other} for {name}"]
    return []


def convert(sources, folders, dropped, args):
    """Write the images as PNG under --png; returns {img: img of its PNG}."""
    folder, names, images = args.output.parent / args.png, {}, {}
    for source in sources:
        # merged sets may have the same file names
        prefix = f"{source.path.stem.removesuffix('-zh')}/" if len(sources) > 1 else ""
        for img, _, record in source.records():
            if img in dropped or img in names:
                continue
            name = prefix + str(Path(record["imged_id"]).with_suffix(".png"))
            file = find(img, folders)
            other = images.setdefault(folder / name, file)
            if other != file:
                raise UserError(f"{file} and {other} would both be {name}: rename one of them")
            names[img] = f"{args.png}/{name}"

    converted = exports.convert(images, args.bands)
    print(f"{folder}: {converted} of {len(images)} images converted to PNG, the others were there")
    return names


class Leaks:
    """Descriptions of the validation and test set that also stand in an earlier split."""

    def __init__(self, evaluated):
        self.evaluated = evaluated
        self.repeated = {split: set() for split in evaluated}
        self.example = {}

    def add(self, split, record):
        """A record of `split`."""
        caption = hash(record["caption"])
        for other, captions in self.evaluated.items():
            if split in SPLITS[: SPLITS.index(other)] and caption in captions:
                self.repeated[other].add(caption)
                self.example.setdefault(other, f"{record['imged_id']}: {record['caption'][:20]}...")

    def report(self):
        for split, captions in self.repeated.items():
            if captions:
                count = sum(self.evaluated[split][caption] for caption in captions)
                print(
                    f"leakage: {count} of {sum(self.evaluated[split].values())} {split} "
                    "descriptions also stand in an earlier split, "
                    f"e.g. {self.example[split]}"
                )


def generate(args):
    sources = sources_of(args)
    if args.format == "llamafactory":
        # whether it can be read, before the work
        exports.read_dataset_info(args.output.parent)
    seen = survey(sources, args)
    folders = folders_of(sources, args)
    dropped = set() if args.no_image_check else check(sources, folders, args)
    names = convert(sources, folders, dropped, args) if args.png else {}

    leaks = Leaks(seen.evaluated)

    def file_of(img):
        return args.output.parent / names[img] if img in names else find(img, folders)

    written = write_rows(sources, dropped, (names, file_of), seen.statistics, leaks, args)

    leaks.report()
    for part, count in written.items():
        print(f"{part_of(args.output, part)}: {count} rows")
    if args.format == "llamafactory":
        registry = exports.register([part_of(args.output, part) for part in written])
        print(f"{registry}: {len(written)} data sets entered")
    if args.format != "hf":
        remove_stale(args.output, written)


def write_rows(sources, dropped, images, statistics, leaks, args):
    """Write all rows and those of each split; returns {split, None for all: rows}.

    dropped: imgs left out; images: ({img: img of its PNG}, a function img -> its file or member of
    a tar). Raises UserError where there is no row.
    """
    names, file_of = images
    with RowFiles(args.output, args.format) as rows, packer_of(sources, dropped, args) as packer:
        for img, split, records in images_of(sources, dropped):
            dialogues = []
            for source, record in records:
                if not source.has_rows:
                    leaks.add(split, record)
                dialogues += dialogues_of(source, record, statistics, args)
            name, file = names.get(img, img), file_of(img)
            if packer and dialogues:
                own = [exports.row("remoteglm", img, rounds) for rounds in dialogues]
                name = packer.add(split, img, file, own)
            for rounds in dialogues:
                rows.add(split, name, file, rounds)
        if not rows.written:
            raise UserError(
                "no rows: the captions say too little for these --tasks; add description=1"
            )
    return rows.written


def images_of(sources, dropped):
    """Yield (img, split, [(source, record), ...]) of what is not dropped, in order."""
    for source in sources:
        kept = (entry for entry in source.records() if entry[0] not in dropped)
        for (img, split), entries in groupby(kept, lambda entry: entry[:2]):
            yield img, split, [(source, record) for _, _, record in entries]


def packer_of(sources, dropped, args):
    """The context of --pack, or one of None without it."""
    if not args.pack:
        return nullcontext()
    refuse_old_shards(args.output, args.shards)
    counts = Counter(split for _, split, _ in images_of(sources, dropped))
    return Packer(args.output, args.shards, counts)


def dialogues_of(source, record, statistics, args):
    """[[(question, answer), ...], ...]: one inner list a row."""
    if source.has_rows:
        return [rounds_of(record["conversations"])]
    if not args.tasks:
        return [[(args.prompt, record["caption"])]]
    return instructions.dialogues(
        source.facts(record),
        statistics,
        args.tasks,
        args.seed,
        record["imged_id"],
        args.negatives,
    )


def remove_stale(output, written):
    """Remove split files of an earlier run that this one has not written."""
    for split in SPLITS:
        path = part_of(output, split)
        if split not in written and path.exists():
            path.unlink()
            print(
                f"{path}: removed; it was of an earlier run, {output} has no {split} rows any more"
            )


def make_parser():
    parser = Parser(__doc__)
    add_path_options(parser, "zh", "prompt", several=True)
    parser.add_argument(
        "--captions",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="the caption set as distributed (dataset.json), one per input: gives their split to "
        "records without one, and its English sentences to --tasks (default: records keep what "
        "they have)",
    )
    add_row_options(parser.add_argument_group("rows").add_argument)
    add_image_options(parser.add_argument_group("images"))
    return parser


def main(argv=None):
    parser = make_parser()
    args = parser.parse_args(argv)
    problems = contradictions(args)
    if problems:
        parser.error("; ".join(problems))
    if args.prompt is None:
        args.prompt = PROMPT
    if args.format != FORMAT:
        args.writes = args.format
    args.shards = args.shards or 1
    return run_stage(__file__, generate, args)


if __name__ == "__main__":
    sys.exit(main())
