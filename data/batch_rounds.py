"""--batch-api: rounds of batches until every caption is settled; after a kill the same rounds.

What has to be known after a kill is on disk: the files of requests beside the output, and in the
journal which requests are out and which batch has which file.
"""

import json
from itertools import count

from data import batch_api
from data.batch import export, import_results
from model.errors import UserError


def ask_in_batches(texts, args, journal, key):
    """Ask for all texts left, and for what earlier runs handed in. Raises UserError, OSError."""
    api = batch_api.connect(args, key, lambda line: print(line, flush=True))
    while True:
        if texts.left:
            export(_free_name(args.output), texts, journal, args)
            texts.refresh(journal.out)
        files = _files_out(args.output, journal)
        if not files:
            return
        batches = [(path, _batch_of(path, api, journal, args)) for path in files]
        answers = 0
        for path, number in batches:
            answers += _fetch(path, number, api, texts, journal, args)
        texts.refresh(journal.out)
        if not answers:
            raise UserError(
                f"a whole round of batches brought no answer, the last {number}; the reasons "
                "stand above; nothing is lost, the same command tries again"
            )


def _free_name(output):
    for number in count(1):
        path = output.with_name(f"{output.stem}-batch-{number}.jsonl")
        if not path.exists():
            return path


def _files_out(output, journal):
    """Those of this script's files of requests of which some are out."""
    paths = sorted(output.parent.glob(f"{output.stem}-batch-*.jsonl"))
    requests = [path for path in paths if not path.stem.endswith("-results")]
    return [path for path in requests if _ids(path) & journal.out.keys()]


def _batch_of(path, api, journal, args):
    number = journal.batches.get(path.name)
    if number is None:
        number = api.submit(path)
        journal.store([{"style": args.style, "batch": number, "requests": path.name}])
        print(f"{path}: handed in as batch {number}", flush=True)
    return number


def _fetch(path, number, api, texts, journal, args):
    """Wait for a batch and store its answers; returns how many there are."""
    batch = api.wait(number)
    results = path.with_name(f"{path.stem}-results.jsonl")
    api.download(batch, results)
    answers = 0
    if results.stat().st_size:
        imported = import_results(results, texts, journal, args.style)
        print(f"{results}: {imported}", flush=True)
        answers = imported.answers
    reason = batch_api.failure_of(batch)
    if reason:
        print(f"batch {number} {reason}", flush=True)
    journal.give_up(_ids(path) & journal.out.keys(), args.style, reason or batch.status)
    return answers


def _ids(path):
    """The ids of a file of requests."""
    with open(path, encoding="utf-8") as file:
        return {json.loads(line)["custom_id"] for line in file}
