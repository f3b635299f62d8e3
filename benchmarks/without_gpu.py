"""VisualGLM-6B's size on a CPU: what a user's commands take, for benchmarks/train.py."""

import json
import shutil
import sys
from functools import partial

from networks import PROJECT, kernel_bytes, parameters, rendered, table
from processes import POLL_INTERVAL, as_words, gigabytes, watch

STEPS = 2
ANSWERS = 2  # the first one's time has the loading in it
TOKENS = 30  # of an answer
# Of the base's size: its head is drawn in float32; the export stands beside it on the disk.
MEMORY_NEEDED, DISK_NEEDED = 1.25, 1.6


def check_room(folder, config):
    """Exit where the base would not fit into this machine's memory, or the files into a folder."""
    size = 2 * parameters(config)  # float16
    memory = kernel_bytes("/proc/meminfo", "MemAvailable")
    disk = shutil.disk_usage(folder).free
    for name, free, needed in (
        ("memory", memory, MEMORY_NEEDED * size),
        (f"room for files in {folder} (another folder: TMPDIR)", disk, DISK_NEEDED * size),
    ):
        if free < needed:
            sys.exit(
                f"benchmarks/train.py: error: --full-size takes {gigabytes(needed)} GB of {name}, "
                f"{gigabytes(free)} GB are free"
            )


def without_gpu(bench):
    """Train, export and answer by the project's scripts; print a row for each."""
    base, int4 = bench.folder / "base", bench.folder / "int4"
    rows = [
        row(f"LoRA, bfloat16: {STEPS} steps", partial(trained, bench, "lora")),
        row(f"QLoRA, bfloat16: {STEPS} steps", partial(trained, bench, "qlora")),
        row("export to int4", partial(exported, bench, base, int4)),
    ]
    file = bench.rows("asked", ANSWERS, ANSWERS)
    for bits in (8, 4):
        part = partial(answered, bench, file, base, {"--quant": bits})
        rows.append(row(f"{ANSWERS} answers, --quant {bits}", part))
    if int4.exists():
        part = partial(answered, bench, file, int4, {})
        rows.append(row(f"{ANSWERS} answers of the int4 export", part))
    table(rows)
    machine_memory = gigabytes(kernel_bytes("/proc/meminfo", "MemTotal"))
    print(
        f"\n{parameters(bench.config) / 1e9:.2f} B random weights: the base takes "
        f"{gigabytes(folder_size(base))} GB on the disk in float16, its int4 export "
        f"{gigabytes(folder_size(int4))} GB. Batch 1, answers of {TOKENS} tokens. Each row is a "
        "command from its start to its end; one step or answer is the last one, an answer's image "
        "and prompt included, loading not; tokens/s of a step are those of a mean row. Memory: "
        "the greatest RssAnon, and resident size with mapped files; the machine has "
        f"{machine_memory} GB."
    )


def row(what, measure):
    """A row of the table; measure: () -> (Run, tokens of one step or answer)."""
    cells = {
        "what": what,
        "seconds": "",
        "one step or answer": "",
        "tokens/s": "",
        "RssAnon GB": "",
        "resident GB": "",
    }
    print(f"{what} ...", file=sys.stderr, flush=True)
    try:
        run, tokens = measure()
    except MemoryError as error:
        return cells | {"seconds": str(error)}

    cells["seconds"] = f"{run.total:.0f}"
    cells["RssAnon GB"] = gigabytes(run.anonymous)
    cells["resident GB"] = gigabytes(run.memory)
    if run.seconds:
        last = max(run.seconds)
        # No finer than it was looked
        seconds = max(run.seconds[last] - run.seconds[last - 1], POLL_INTERVAL)
        cells["one step or answer"] = f"{seconds:.1f}"
        cells["tokens/s"] = f"{tokens / seconds:.1f}"
    return cells


def trained(bench, method):
    file = bench.rows(method, STEPS, STEPS)
    run = bench.ours(file, 1, 1, "bfloat16", {"--train-iters": STEPS}, method)
    return run, bench.work(file).tokens


def exported(bench, base, output):
    options = {"--from_pretrained": base, "--format": "int4", "--output": output}
    command = [sys.executable, PROJECT / "export_RemoteGLM.py"]
    return watch(command + as_words(options), bench.threads), None


def answered(bench, file, checkpoint, loading):
    length = prompt_length(bench, file)
    return answers(bench, file, checkpoint, loading, 1, length, TOKENS), TOKENS


def answers(bench, file, checkpoint, loading, batch_size, prompt, tokens):
    """Greedy answers, ended by the length limit, to rows whose prompts have a length -> Run.

    Its steps are answers. loading: options of cli_demo.py.
    """
    name = "-".join(map(str, [checkpoint.name, batch_size, *loading.values()]))
    output = bench.folder / f"answers-{name}.jsonl"
    options = {
        "--from_pretrained": checkpoint,
        "--device": bench.device,
        "--input": file,
        "--output": output,
        "--batch-size": batch_size,
        "--max_length": prompt + tokens,
        "--temperature": 0,
    }
    command = [sys.executable, PROJECT / "cli_demo.py"] + as_words(options | loading)
    run = watch(command, bench.threads, partial(numbers_of_lines, output))
    entries = list(map(json.loads, output.read_text(encoding="utf-8").splitlines()))
    if not all("truncated" in entry for entry in entries):
        sys.exit(f"{sys.argv[0]}: error: an answer ended before {tokens} tokens")
    return run


def prompt_length(bench, file):
    """Tokens up to `<sop>` of the rows, whose questions are all the same."""
    return rendered(file, bench.tokenizer, bench.config)[0].prefix + 1


def numbers_of_lines(file):
    """1, 2, ... up to the number of whole lines in a file; none where there is no file."""
    if not file.exists():
        return ()
    return range(1, file.read_bytes().count(b"\n") + 1)


def folder_size(folder):
    """Bytes of the files in a folder; 0 where there is none."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
