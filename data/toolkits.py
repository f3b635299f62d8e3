"""The same rows in the forms that evaluation toolkits and Hugging Face datasets load.

evalscope    EvalScope's general_vqa, one row a line: {"messages", "answer"}; the image as its path
vlmevalkit   VLMEvalKit's TSV of index, image (PNG in base64), question, answer
hf           a folder for datasets.load_dataset("imagefolder"): train/metadata.jsonl and the images

Images of tars are written out: no toolkit reads members of a tar.
"""

import csv
import itertools
import shutil
from contextlib import ExitStack, contextmanager

from data.conversation import turns_of
from data.exports import inside, row
from data.records import record_writer
from model.errors import UserError
from model.files import naming, replacing, replacing_folder

# {form: ending of its file, "" for a folder}
SUFFIXES = {"evalscope": ".jsonl", "vlmevalkit": ".tsv", "hf": ""}
METADATA = "metadata.jsonl"
# what datasets calls the splits
HF_SPLITS = {"train": "train", "val": "validation", "test": "test", None: "train"}


def _png(file, encode="as_base64"):
    """An image as training reads it, as PNG by a function of model.images.encoding. UserError."""
    # only here: it loads numpy
    from model.images import encoding, read_image

    return getattr(encoding, encode)(read_image(file))


@contextmanager
def evalscope(path):
    """A context whose value writes a row: write(img, file, rounds, split)."""
    with record_writer(path) as write:

        def write_row(img, file, rounds, split):
            url = str(file.absolute()) if file.is_file() else _png(file, "data_uri")
            *history, (question, answer) = rounds
            messages = turns_of([*history, (question, answer)])[:-1]
            shown = {"type": "image_url", "image_url": {"url": url}}
            text = {"type": "text", "text": messages[0]["content"]}
            messages[0]["content"] = [shown, text]
            write({"messages": messages, "answer": answer})

        yield write_row


@contextmanager
def vlmevalkit(path):
    """The same; an image that was written before is named by the index of that row."""
    with replacing(path) as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(["index", "image", "question", "answer"])
        # {img: index of its first row}
        first, indexes = {}, itertools.count()

        def write_row(img, source, rounds, split):
            if len(rounds) > 1:
                raise UserError(
                    f"--format vlmevalkit asks one question a row, {img} has {len(rounds)}: leave "
                    "dialogues out"
                )
            index = next(indexes)
            image = str(first[img]) if img in first else _png(source)
            first.setdefault(img, index)
            table.writerow([index, image, *rounds[0]])

        yield write_row


@contextmanager
def hf(folder):
    """The same; a folder of its own, whole or not at all. Raises UserError for another's folder."""
    if folder.exists() and not list(folder.glob(f"*/{METADATA}")):
        raise UserError(f"{folder} is there and no earlier --format hf made it: name another")
    with replacing_folder(folder) as new, ExitStack() as tables:
        # written: {(split, name in the folder): file}
        writers, written = {}, {}

        def write_row(img, file, rounds, split):
            part = new / HF_SPLITS[split]
            if split not in writers:
                part.mkdir()
                writers[split] = tables.enter_context(record_writer(part / METADATA))
            name = _inside(img)
            other = written.get((split, name))
            if other is None:
                written[split, name] = file
                _copy(file, part / name)
            elif other != file:
                raise UserError(f"{file} and {other} would both be {name}: rename one of them")
            own = row("remoteglm", img, rounds)
            del own["img"]
            writers[split]({"file_name": name, **own})

        yield write_row


def _inside(img):
    """The path of an image within the folder: no folder above it, no tar."""
    parts = inside(img)
    return "/".join([*(part.replace(".tar", "") for part in parts[:-1]), parts[-1]])


def _copy(file, target):
    # only here: it loads numpy
    from model.images import open_file

    target.parent.mkdir(parents=True, exist_ok=True)
    with open_file(file) as source, naming(target), open(target, "wb") as copy:
        shutil.copyfileobj(source, copy)


WRITERS = {"evalscope": evalscope, "vlmevalkit": vlmevalkit, "hf": hf}
