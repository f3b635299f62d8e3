"""How fast the data stages are, and how much memory they take: a table in Markdown.

    python benchmarks/data.py [translation transform stream tars rows ...] [--images DIR]

Measured on this machine: stages run as a user runs them, each in a process of its own, start
included, on files written to a temporary folder. The time is the best of several runs, the memory
the greatest resident set size (ru_maxrss).
"""

import asyncio
import json
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from command_line import Parser

DATA = Path(__file__).resolve().parents[1] / "data"
WORDS = (
    "There are many white planes parked near the long gray terminal building of the airport "
    "beside some green trees"
).split()
# as many captions as Sydney and UCM have
CAPTIONS = 2713
# of these, how many one by one
SAMPLE = 100
# steps of a training
STEPS = 200


class Run(NamedTuple):
    """What a process took; on a busy machine its CPU time says more."""

    seconds: float
    cpu: float
    # peak resident MB
    memory: float

    def __str__(self):
        return f"{self.seconds:.1f} s ({self.cpu:.1f} s of CPU), {self.memory:.0f} MB"


def run(*command):
    """Run a stage; returns a Run. Exits where the stage fails."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.PIPE)
    process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[0]} ended with {process.returncode}")
    seconds = time.perf_counter() - start
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def image_objects(count):
    """`count` image objects as in caption sets: five sentences with tokens, splits 8 : 1 : 1."""
    for i in range(count):
        sentences = []
        for k in range(5):
            tokens = WORDS[: 10 + (i + k) % 9] + [str(i + k)]
            sentences.append(
                {"tokens": tokens, "raw": " ".join(tokens) + " .", "imgid": i, "sentid": 5 * i + k}
            )
        split = {8: "val", 9: "test"}.get(i % 10, "train")
        yield {"filename": f"airport_{i}.jpg", "imgid": i, "sentences": sentences, "split": split}


def transform(folder, args):
    """RSICD's size: 10,921 images, 54,605 sentences."""
    source, output = folder / "dataset.json", folder / "en.json"
    source.write_text(json.dumps({"images": list(image_objects(10921)), "dataset": "rsicd"}))
    runs = []
    for _ in range(3):
        runs.append(run(DATA / "transform.py", "--input", source, "--output", output))
    best, memory = min(run.seconds for run in runs), max(run.memory for run in runs)
    yield "transform, 10,921 images (JSON)", f"{best:.2f} s, {memory:.0f} MB", "<= 1 s"


def stream(folder, args):
    """A million image objects, one a line, through transform and generate_prompt (no images)."""
    source, english, count = folder / "big.jsonl", folder / "big-en.jsonl", args.records
    with open(source, "w") as file:
        for image in image_objects(count):
            file.write(json.dumps(image) + "\n")
    size = source.stat().st_size / 1e9
    took = run(DATA / "transform.py", "--input", source, "--output", english)
    yield (
        f"transform, {count:,} images (JSONL, {size:.1f} GB)",
        str(took),
        "<= 150 MB",
    )

    source.unlink()
    files = ("--input", english, "--output", folder / "rows.jsonl")
    took = run(DATA / "generate_prompt.py", *files, "--no-image-check")
    yield (
        f"generate_prompt, {count:,} records (JSONL)",
        str(took),
        "<= 150 MB",
    )


def images(folder, args):
    """The image check, decoding alone in as many threads, and a second run from the cache."""
    from PIL import Image

    from data.image_check import CACHE, examine_all

    paths = sorted(path for path in args.images.iterdir() if path.is_file())

    def decode(path):
        with Image.open(path) as image:
            image.load()

    def decode_all():
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(decode, paths))

    def rate(work, before=lambda: None):
        best = float("inf")
        for _ in range(3):
            before()
            start = time.perf_counter()
            work()
            best = min(best, time.perf_counter() - start)
        return f"{len(paths) / best:,.0f} images/s"

    cache, what = folder / CACHE, f"{len(paths):,} images"
    decode_all()  # the files are in the system's cache from here on
    yield f"decoding alone, {what}", rate(decode_all), ""
    yield (
        f"image check, {what}",
        rate(lambda: examine_all(paths, cache), lambda: cache.unlink(missing_ok=True)),
        ">= 300 images/s",
    )
    yield f"image check again, {what}", rate(lambda: examine_all(paths, cache)), ""


async def serve(delay, port):
    """An OpenAI-compatible server that answers after `delay` seconds; sends its port by a pipe."""
    message = {"role": "assistant", "content": "图中有一座机场，停着飞机。"}
    reply = json.dumps(
        {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "stub",
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 150, "completion_tokens": 12, "total_tokens": 162},
        }
    ).encode()
    reply = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
        len(reply),
        reply,
    )

    async def client(reader, writer):
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
                await asyncio.sleep(delay)
                writer.write(reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async with await asyncio.start_server(client, "127.0.0.1", 0) as server:
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()


def serve_in_process(delay, port):
    asyncio.run(serve(delay, port))


def translation(folder, args):
    """Distinct captions against a server that takes 200 ms for each answer."""
    here, there = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve_in_process, args=(0.2, there), daemon=True)
    server.start()
    os.environ |= {
        "OPENAI_API_KEY": "none",
        "OPENAI_BASE_URL": f"http://127.0.0.1:{here.recv()}/v1",
    }
    source, rows = folder / "en.json", []
    for k in range(CAPTIONS):
        rows.append({"imged_id": f"{k}.tif", "caption": f"Airplanes at airport number {k} ."})
    source.write_text(json.dumps(rows))

    def translate(concurrency, name, *more):
        files = ("--input", source, "--output", folder / name)
        return run(DATA / "translation_en2zh.py", *files, "--concurrency", concurrency, *more)

    start = translate(1, "start.json", "--limit", 1).seconds
    alone = translate(1, "alone.json", "--limit", SAMPLE + 1).seconds
    each = (alone - start) / SAMPLE
    runs = [translate(64, f"together{k}.json") for k in range(3)]
    server.terminate()

    best, memory = min(run.seconds for run in runs), max(run.memory for run in runs)
    faster = (start + each * (CAPTIONS - 1)) / best
    yield (
        f"translation one by one, 200 ms server, {SAMPLE} captions",
        f"{1000 * each:.0f} ms each",
        "",
    )
    yield (
        f"translation, {CAPTIONS:,} captions, --concurrency 64",
        f"{best:.1f} s, {CAPTIONS / best:.0f} captions/s, {memory:.0f} MB: "
        f"{faster:.0f} times as fast",
        ">= 25 times",
    )


def batches(folder, args):
    """Requests and results of 100,000 distinct captions as files, without any endpoint."""
    count, source = 100_000, folder / "en.jsonl"
    with open(source, "w") as file:
        for k in range(count):
            row = {"imged_id": f"{k}.tif", "caption": f"Airplanes at airport number {k} ."}
            file.write(json.dumps(row) + "\n")
    script, output = DATA / "translation_en2zh.py", folder / "zh.jsonl"
    files = ("--input", source, "--output", output)
    took = run(script, *files, "--export-batch", folder / "requests.jsonl")
    yield f"batch export, {count:,} captions", str(took), ""

    results, journal = folder / "results.jsonl", output.with_name("zh.jsonl.journal.jsonl")
    write_results(sorted(folder.glob("requests*.jsonl")), results)
    exported = journal.read_bytes()
    importing = (script, *files, "--import-batch", results)
    yield f"batch import, {count:,} answers", str(run(*importing)), ""

    whole = output.read_bytes()
    output.unlink()
    journal.write_bytes(exported)
    killed_at = kill_half_way(importing, journal, count // 2)
    took = run(*importing)
    ids = Counter(answered(journal))
    lost, twice = count - len(ids), sum(ids.values()) - len(ids)
    same = "the same" if output.read_bytes() == whole else "ANOTHER"
    yield (
        f"import killed (-9) after {killed_at:,} answers, then repeated",
        f"{took}; {lost} answers lost, {twice} stored twice, {same} output",
        "0 lost, 0 twice",
    )


def write_results(requests, path):
    """An answer to every request of these files, in the form of the Batch API."""
    message = {"role": "assistant", "content": "图中有一座机场，停着飞机。"}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    response = {"status_code": 200, "body": {"choices": [choice]}}
    with open(path, "w") as file:
        for source in requests:
            for line in open(source):
                number = json.loads(line)["custom_id"]
                file.write(json.dumps({"custom_id": number, "response": response}) + "\n")


def kill_half_way(command, journal, answers):
    """Kill a stage (-9) once its journal has so many answers; returns how many it then has."""
    before = journal.stat().st_size
    process = subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.DEVNULL)
    with open(journal, "rb") as file:
        file.seek(before)
        seen = 0
        while seen < answers and process.poll() is None:
            time.sleep(0.01)
            seen += file.read().count(b"\n")
    process.kill()
    process.wait()
    return len(answered(journal))


def answered(journal):
    """The ids of the requests that a journal has answers to, once for each line."""
    ids = []
    for line in open(journal, "rb"):
        # a kill may have torn the last line
        if b'"target"' in line and line.endswith(b"}\n"):
            ids.append(json.loads(line)["id"])
    return ids


# argv: a tar; prints nothing, so that the time of `run` is its own
READ_TAR = """
import random, sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from model.images import exists, open_file
path, count = Path(sys.argv[2]), int(sys.argv[3])
assert exists(path / "0.jpg")
for number in random.Random(0).choices(range(count), k=int(sys.argv[4])):
    assert open_file(path / f"{number}.jpg").read() == b"%d" % number
"""


def tars(folder, args):
    """One tar of a million members: its index, and members read at random."""
    import tarfile
    from io import BytesIO

    path, count, reads = folder / "shard.tar", args.records, 100_000
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            info = tarfile.TarInfo(f"{number}.jpg")
            content = b"%d" % number
            info.size = len(content)
            tar.addfile(info, BytesIO(content))
            tar.members.clear()

    def read(number):
        return run("-c", READ_TAR, DATA.parent, path, count, number)

    yield f"index of a tar of {count:,} members", str(read(0)), ""
    start, took = read(0), read(reads)
    rate = reads / (took.cpu - start.cpu)
    yield f"members read at random, {count:,}", f"{took}: {rate:,.0f} members/s of CPU", ""


# argv: a .jsonl; prints a line after the index and one after the plan
INDEX_ROWS = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from model.row_store import StoredSamples
from model.training.sampler import plan_epoch
def say():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
samples = StoredSamples(sys.argv[2])
say()
plan_epoch(samples.characters, 4, 0, 0)
say()
"""


def rows(folder, args):
    """The index of rows that stay on the disk, and the plan of an epoch: what a training holds."""

    def taken(count):
        command = (sys.executable, "-c", INDEX_ROWS, DATA.parent, write_rows(folder, count))
        lines = subprocess.check_output(command, text=True).splitlines()
        return [tuple(map(float, line.split())) for line in lines]

    (start, _), _ = taken(1)
    for count in (10_000, args.records):
        (index, memory), (plan, more) = taken(count)
        each = 1000 * (index - start) / count
        yield (
            f"index of {count:,} rows (JSONL)",
            f"{index:.1f} s of CPU ({each:.3f} ms a row), {memory:.0f} MB",
            "",
        )
        yield (
            f"the same and the plan of an epoch, {count:,} rows",
            f"{plan:.1f} s of CPU, {more:.0f} MB",
            "<= 2,000 MB",
        )


def training(folder, args):
    """The tiny base on rows in memory and on rows that stay on the disk: start, rate, memory."""
    for count, more in ((10_000, ()), (10_000, ("--stream",)), (args.records, ("--stream",))):
        name = f"{count}{''.join(more)}"
        files = ("--train-data", write_rows(folder, count), "--save", folder)
        options = ("--experiment-name", name, "--vision_cache", "off", "--device", "cpu")
        options += ("--train-iters", STEPS, "--log-interval", 1, *more)
        base = ("--from_pretrained", DATA.parent / "model" / "tiny" / "base")
        took = run(DATA.parent / "finetune_RemoteGLM.py", *base, *files, *options)

        lines = (folder / name / "metrics.jsonl").read_text().splitlines()
        steps = [json.loads(line) for line in lines if '"loss"' in line]
        rate = (STEPS - 1) / (steps[-1]["seconds"] - steps[0]["seconds"])
        where = "from the disk" if more else "in memory"
        moments = (steps[0], steps[STEPS // 2], steps[-1])
        first, half, end = (step["memory_gb"] for step in moments)
        yield (
            f"training of {count:,} rows {where}",
            f"first step after {steps[0]['seconds']:.0f} s, {rate:.1f} steps/s; {took}; peak so "
            f"far {first:.2f} GB at step 1, {half:.2f} half-way, {end:.2f} at the end",
            "",
        )


def write_rows(folder, count):
    """A .jsonl of so many rows over 100 members of a tar."""
    import tarfile
    from io import BytesIO

    from PIL import Image

    with tarfile.open(folder / "images.tar", "w") as tar:
        for number in range(100):
            content = BytesIO()
            Image.new("RGB", (64, 64), (number, 99, 200)).save(content, "PNG")
            info = tarfile.TarInfo(f"{number}.png")
            info.size = content.tell()
            tar.addfile(info, BytesIO(content.getvalue()))
    path = folder / f"rows-{count}.jsonl"
    with open(path, "w") as file:
        for number in range(count):
            row = {
                "img": f"images.tar/{number % 100}.png",
                "prompt": "这张遥感图像展现了什么场景？",
            }
            row["label"] = f"图中有{number}架飞机。"
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


BENCHMARKS = {
    "translation": translation,
    "transform": transform,
    "stream": stream,
    "images": images,
    "batches": batches,
    "tars": tars,
    "rows": rows,
    "training": training,
}


def main():
    parser = Parser(__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"what to measure: {', '.join(BENCHMARKS)} (default: all; images only with --images)",
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="folder of images to check, such as data/UCM/images",
    )
    parser.add_argument(
        "--records",
        type=int,
        default=1_000_000,
        help="of stream, rows and training, and members of tars (default: %(default)s)",
    )
    args = parser.parse_args()
    names = args.names or [name for name in BENCHMARKS if name != "images" or args.images]
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}")
    if "images" in names and not (args.images and args.images.is_dir()):
        parser.error("images needs a folder: --images DIR")

    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print("| what | measured | wanted |\n| --- | --- | --- |")
    for name in names:
        folder = Path(tempfile.mkdtemp(prefix="remoteglm-"))
        try:
            for row in BENCHMARKS[name](folder, args):
                print(f"| {' | '.join(row)} |", flush=True)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
