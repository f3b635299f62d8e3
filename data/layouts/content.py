"""A file or folder of a caption set, opened as far as it takes to recognise its layout."""

import ast
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from posixpath import normpath

from data.caption_sets import CAPTIONS_UNDER, SPLITS, split_of
from data.faults import Fault, Tally, got
from data.records import parsed, read_content, read_records, records_in
from data.stage import RECORD_FILES
from model.errors import UserError

# a word of a file name that says which split it holds: captions_train2014.json, x-val.csv
SPLIT_IN_NAME = re.compile(r"(?<![a-z])(train|val|valid|validation|test)(?![a-z])", re.I)
# names of columns and keys, lower case without _, - and spaces; the first that is there counts
IMAGE_KEYS = (
    *("filename", "filepath", "imagepath", "imgpath", "path", "imagename", "imgname", "imagefile"),
    *("image", "img", "images", "file", "picture", "photo", "url", "imageurl", "imgurl"),
)
CAPTION_KEYS = ("caption", "sentence", "text", "description")
# records by which a file's layout is recognised
LOOKED_AT = 20
# a list of texts as Python, NumPy and pandas print it into a cell
QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.S)
PRINTED_LIST = re.compile(r"\[\s*['\"]")


SAME_ENDING = (
    "an address that ends in the file name of an earlier one: download the images under names of "
    "their own, and name those in place of the addresses"
)


@dataclass
class Content:
    """image_key, caption_key: the columns or keys that --image-column and --caption-column name.

    notes: what was read although it is not said outright.
    """

    path: Path
    image_key: str | None = None
    caption_key: str | None = None
    notes: Tally = field(default_factory=Tally)

    @cached_property
    def data(self):
        """What a .json holds, None of anything else. Raises UserError."""
        if self.path.is_dir() or self.path.suffix.lower() != ".json":
            return None
        return read_content(self.path)

    def records(self):
        """Yield (where, record) of a .json or .jsonl. Raises UserError."""
        if self.data is None:
            return read_records(self.path)
        return records_in(self.path, self.data)

    @cached_property
    def first(self):
        """The first record of a .json or .jsonl that names an image, or is an object, or {}.

        Of the first few: the others may be of any kind. Raises UserError.
        """
        if self.path.is_dir() or self.path.suffix.lower() not in RECORD_FILES:
            return {}
        records = [one for _, one in islice(self.records(), LOOKED_AT) if isinstance(one, dict)]
        named = (record for record in records if self.keys(record)[0])
        return next(named, records[0] if records else {})

    def keys(self, names):
        """(the key of the image, those of the captions) among these; None, [] for none."""
        plain = {}
        for name in names:
            plain.setdefault(re.sub(r"[\W_]", "", name).lower(), name)
        image = next((plain[key] for key in IMAGE_KEYS if key in plain), None)
        if self.image_key:
            image = self.image_key if self.image_key in names else None
        if self.caption_key:
            return image, [self.caption_key] if self.caption_key in names else []
        for word in CAPTION_KEYS:
            found = [plain[key] for key in plain if re.fullmatch(rf"{word}s?\d*", key)]
            if found:
                return image, found
        return image, []

    def with_split(self, image):
        """An image without a split with that of its folder or of this file's name, if they say."""
        name = image["filename"]
        folder, slash, _ = name.partition("/")
        if slash and split_of(folder) in SPLITS:
            self.notes.add("the split that their folder names", repr(name))
            return {**image, "split": split_of(folder)}
        file = self.path.name
        if self.path.is_dir():
            # the shard's; a class folder says nothing, whatever its name
            file = folder if folder.endswith(".tar") else ""
        split = split_in(file)
        if split is None:
            return image
        self.notes.add(f"the split that {file} names", repr(name))
        return {**image, "split": split}


def check_names(path, names):
    """Raises UserError where a table has no names of columns, or one twice."""
    if not any(name.strip() for name in names):
        raise UserError(
            f"{path} has no columns: it is empty, or its first line is, where their names stand"
        )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{path}: columns of the same name, rename one: {', '.join(twice)}")


def checked_columns(content, names, image_key, caption_keys):
    """(column of the images, those of the captions). Raises UserError where one is not known."""
    caption_keys = [key for key in caption_keys if key != image_key]
    missing = []
    if not image_key:
        missing.append(f"images by --image-column {content.image_key or ''}".rstrip())
    if not caption_keys:
        missing.append(f"captions by --caption-column {content.caption_key or ''}".rstrip())
    if missing:
        raise UserError(
            f"{content.path}: its columns are {', '.join(names)}; name the one of "
            f"{' and of '.join(missing)}"
        )
    return image_key, caption_keys


def split_in(name):
    """The one split that the words of a file name say, or None."""
    found = {split_of(word) for word in SPLIT_IN_NAME.findall(name)}
    return found.pop() if len(found) == 1 else None


def stated_split(image, record):
    """The image with the split under that key of its record, if there is one."""
    if record.get("split") in (None, ""):
        return image
    return {**image, "split": record["split"]}


def named_image(value, key):
    """{"filename"} of a path, {"filename", "address"} of an address; the Fault of anything else."""
    if isinstance(value, list) and len(value) == 1:
        [value] = value
    if isinstance(value, dict):
        value = value.get("path") or value.get("url") or value
    in_address = isinstance(value, str) and value.startswith("data:")
    if in_address or (isinstance(value, dict) and value.get("bytes")):
        return Fault(f"the image itself under {key!r}: save the images as files, and their names")
    if not isinstance(value, str) or not value.strip():
        return got(f"a path or an address in {key!r}", value)
    if "://" not in value:
        # ./a.jpg and x//a.jpg are a.jpg and x/a.jpg; a \ is read later
        return {"filename": normpath(value.strip(" \ufeff"))}
    name = re.split(r"[?#]", value)[0].rpartition("/")[2]
    if not name:
        return got(f"an address that ends in a file name in {key!r}", value)
    return {"filename": name, "address": value}


def sentences_in(value, key):
    """[{"raw": text}, ...] of a text, a list of texts or one printed into a cell; or a Fault."""
    if isinstance(value, str) and _is_printed_list(value):
        texts = _printed_texts(value)
        if texts is None:
            return got(f"a whole list of texts in {key!r}", value)
        value = texts
    if not isinstance(value, list):
        value = [value]
    # Karpathy's sentences in a table
    texts = [one.get("raw", one) if isinstance(one, dict) else one for one in value]
    for text in texts:
        if text is not None and not isinstance(text, str):
            return got(f"a text or a list of texts in {key!r}", text)
    return [{"raw": text} for text in texts]


def _is_printed_list(text):
    """Whether it is a list, perhaps cut off; not a text that begins with something in brackets."""
    return PRINTED_LIST.match(text) and (text.rstrip().endswith("]") or "]" not in text)


def _printed_texts(value):
    """The texts of a list as JSON, Python, NumPy or pandas print it; None where it has others."""
    try:
        texts = parsed(value)
        if all(isinstance(text, str) for text in texts):
            return texts
    except ValueError:
        pass
    # NumPy has no commas
    if not re.fullmatch(r"\[[\s,]*\]\s*", QUOTED.sub("", value)):
        return None
    quoted = [text.replace("\n", "\\n") for text in QUOTED.findall(value)]
    try:
        return [ast.literal_eval(text) for text in quoted]
    except (ValueError, SyntaxError):
        return None


def with_captions(image, record, keys):
    """An image with its captions, under these keys of its record, and its split; or a Fault."""
    image = {**image, "sentences": [], CAPTIONS_UNDER: next(iter(keys), "caption")}
    for key in keys:
        sentences = sentences_in(record.get(key), key)
        if isinstance(sentences, Fault):
            return sentences
        image["sentences"] += sentences
    return stated_split(image, record)


def by_image(rows):
    """Rows of which several may be about one image -> one image each, all its sentences together.

    rows(): yields (where, image or Fault), the same each time. Memory holds the sentences of images
    that come several times.
    """
    seen, repeated = set(), set()
    for _, image in rows():
        if isinstance(image, Fault):
            continue
        name = hash(image["filename"])
        if name in seen:
            repeated.add(name)
        seen.add(name)
    return _grouped(rows, repeated) if repeated else rows()


def _grouped(rows, repeated):
    """repeated: hashes of the names that come several times."""
    sentences = defaultdict(list)
    for _, image in rows():
        if not isinstance(image, Fault) and hash(image["filename"]) in repeated:
            sentences[image["filename"]] += image["sentences"]

    # {name: what all its rows say of it}
    first = {}
    for where, image in rows():
        if isinstance(image, Fault) or image["filename"] not in sentences:
            yield where, image
            continue
        name = image["filename"]
        facts = {key: image.get(key) for key in ("split", "address")}
        if name not in first:
            first[name] = facts
            yield where, {**image, "sentences": sentences[name]}
            continue
        if facts["split"] != first[name]["split"]:
            yield where, Fault(f"another 'split' than an earlier row of {name}")
        elif facts["address"] != first[name]["address"]:
            yield where, Fault(SAME_ENDING, f", {facts['address']} and {first[name]['address']}")
