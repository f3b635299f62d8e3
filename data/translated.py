"""What a translation or a check writes: the output, what was rejected, and the report."""

import json
import math
from contextlib import suppress

from data import quality
from data.look import LOOK_STYLES
from data.records import record_writer
from data.texts import STYLES
from model.errors import UserError
from model.files import write_text


class NothingPassed(Exception):
    """There is not one row to write."""


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
    print_counts(args, report, rejected, shortened)


def print_counts(args, report, rejected, shortened):
    """What was written, as counts. Raises UserError where it is nothing."""
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
