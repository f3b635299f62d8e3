"""--batch-api: rounds of batches until every caption is settled; after a kill the same rounds.

What has to be known after a kill is on disk: the files of requests beside the output, and in the
journal which request went to which file, and which batch has which file.
"""

import json
from itertools import count

from data import batch_api
from data.batch import LOST, check_results, export, import_results, shards
from model.errors import UserError


def ask_in_batches(texts, args, journal, key):
    """Ask for all texts left, and for what earlier runs handed in. Raises UserError, OSError."""
    api = batch_api.connect(args, key, lambda line: print(line, flush=True))
    if args.lost_batch:
        in_reach = set().union(*_requests_out(args.output, journal).values())
        journal.give_up(journal.out.keys() - in_reach, args.style, LOST)
        texts.refresh(journal.out)
    while True:
        if texts.left:
            export(_free_name(args.output, journal), texts, journal, args)
            texts.refresh(journal.out)
        requests = _requests_out(args.output, journal)
        if not requests:
            return
        batches = [(path, _batch_of(path, api, journal, args)) for path in requests]
        answers, lost = 0, {}
        for path, number in batches:
            try:
                answers += _fetch(path, number, requests[path], api, texts, journal, args)
            # after the others, whose answers are there
            except batch_api.LostBatch as error:
                lost[path] = str(error)
        _give_up_lost(lost, requests, journal, args)
        texts.refresh(journal.out)
        if not answers and not lost:
            raise UserError(
                f"a whole round of batches brought no answer, the last {number}; the reasons "
                "stand above; nothing is lost, the same command tries again"
            )


def _give_up_lost(lost, requests, journal, args):
    """Raises UserError unless --lost-batch gives up the batches whose answers cannot be had."""
    if not lost:
        return
    text = "; ".join(lost.values())
    if not args.lost_batch:
        raise UserError(text)
    print(text, flush=True)
    for path in lost:
        journal.give_up(requests[path], args.style, LOST)


def _free_name(output, journal):
    """One that no file has and none ever had: the journal knows batches by these names."""
    for number in count(1):
        path = output.with_name(f"{output.stem}-batch-{number}.jsonl")
        if path.name not in journal.files and not shards(path):
            return path


def _requests_out(output, journal):
    """{file of requests of this script: ids of those that are out}.

    Only files that this journal names: others of such names are of other runs, perhaps of another
    model, and may have the same ids. The file of a batch may have been removed.
    """
    found = _requests_without_name(output, journal)
    for number in journal.out:
        name = journal.sent[number].file
        if not name:
            continue
        path = output.with_name(name)
        if journal.batches.get(name) or (_is_own(path, output) and path.exists()):
            found.setdefault(path, set()).add(number)
    return dict(sorted(found.items()))


def _requests_without_name(output, journal):
    """The same from journals of earlier versions, which do not name the files."""
    found = {}
    numbers = {number for number in journal.out if not journal.sent[number].file}
    if not numbers:
        return found
    for path in output.parent.glob("*.jsonl"):
        if _is_own(path, output) and not path.stem.endswith("-results"):
            found[path] = _ids(path) & numbers
    return {path: ids for path, ids in found.items() if ids}


def _is_own(path, output):
    """Whether a file has a name that _free_name gives, or a shard of it."""
    return path.name.startswith(f"{output.stem}-batch-")


def _batch_of(path, api, journal, args):
    number = journal.batches.get(path.name)
    if number is None:
        number = api.submit(path)
        journal.store([{"style": args.style, "batch": number, "requests": path.name}])
        print(f"{path}: handed in as batch {number}", flush=True)
    return number


def _fetch(path, number, requests, api, texts, journal, args):
    """Wait for a batch and store its answers; returns how many there are."""
    results = path.with_name(f"{path.stem}-results.jsonl")
    batch = api.fetch(number, results)
    answers = 0
    if results.stat().st_size:
        check_results(results, journal)
        imported = import_results(results, texts, journal, args.style)
        print(f"{results}: {imported}", flush=True)
        answers = imported.answers
    reason = batch_api.failure_of(batch)
    if reason:
        print(f"batch {number} {reason}", flush=True)
    journal.give_up(requests & journal.out.keys(), args.style, reason or batch.status)
    return answers


def _ids(path):
    """The ids of a file of requests."""
    with open(path, encoding="utf-8") as file:
        return {json.loads(line)["custom_id"] for line in file}
