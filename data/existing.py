"""--check: the quality gate on a Chinese file that exists."""

from data import quality
from data.layouts.content import Content
from data.lexicon import language
from data.records import caption_records
from data.sentences import caption_set, sentences_of
from data.stage import DATA, DEFAULT_SET, listed, resolve_paths
from data.texts import STYLES
from data.translated import write_results
from model.errors import UserError


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
