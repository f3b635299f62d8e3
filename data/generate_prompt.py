"""Stage 3: Chinese descriptions + images -> the rows that fine-tuning reads.

in:  [{"imged_id": "1.tif", "caption": Chinese, "split": optional}, ...] and the image folder;
     several such files are merged; or {"imged_id", "conversations", "split": optional}, whose
     questions and answers stay as they are
out: [{"img": "images/1.tif", "prompt": question, "label": Chinese}, ...] in one file and, where
     splits are known, the same rows in NAME-train, NAME-val and NAME-test beside it;
     other forms by --format, more questions by --tasks
"""

import sys
from collections import Counter
from contextlib import nullcontext
from itertools import groupby
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from command_line import Parser
from data import exports, instructions
from data.caption_sets import SPLITS
from data.conversation import rounds_of
from data.image_check import find
from data.packing import Packer, refuse_old_shards
from data.row_files import RowFiles, part_of
from data.row_images import check, convert, folders_of, warn_of_tiffs, without_machine
from data.row_options import FORMAT, PROMPT, add_image_options, add_row_options, contradictions
from data.row_sources import sources_of, survey
from data.stage import add_path_options, run_stage
from model.errors import UserError


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

    if args.format == "evalscope":
        warn_of_tiffs({file_of(img) for img, _, _ in images_of(sources, dropped)})
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
    if args.format == "hf":
        used = {img: names.get(img, img) for img, _, _ in images_of(sources, dropped)}
        shortened = without_machine(used.values(), [source.root for source in sources])
        names = {img: shortened(name) for img, name in used.items()}
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
