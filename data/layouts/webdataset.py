"""WebDataset shards: tars of key.jpg beside key.json or key.txt, one key a sample.

The images stay where they are: a sample is named shard-000.tar/key.jpg. The JSON holds captions, a
dialogue, or {"rows": [dialogue, ...]} as generate_prompt.py --pack writes it.
"""

from itertools import groupby

from data.caption_sets import CAPTIONS_UNDER
from data.faults import Fault, no_key, object_problem
from data.layouts import conversations
from data.layouts.classes import IMAGES
from data.layouts.content import Content, with_captions
from data.records import encoding_of, parsed
from model.errors import UserError

# bytes of a text or JSON: more is no caption
MOST_TEXT = 2**20
TEXTS = {".json", ".txt"}
NEIGHBOURS = (
    "the members of a key, their name up to the first dot, stand one after the other in a tar "
    "(tar --sort=name)"
)


def shards_of(path):
    return sorted(path.glob("*.tar")) if path.is_dir() else [path]


def recognises(content):
    if content.path.is_dir():
        return bool(shards_of(content.path))
    return content.path.suffix.lower() == ".tar"


def has_captions(content):
    """Whether the first sample that can be read holds captions rather than dialogues."""
    unnoted = Content(content.path, content.image_key, content.caption_key)
    images = (image for _, image in read(unnoted) if not isinstance(image, Fault))
    return "conversations" not in next(images, {})


def read(content):
    shards = shards_of(content.path)
    if not shards:
        raise UserError(f"{content.path} holds no .tar")
    for shard in shards:
        try:
            yield from _samples(content, shard)
        except UserError as error:
            # the faults of the others are said as well
            if len(shards) == 1:
                raise
            yield shard.name, Fault("no tar that can be read", f": {error}")


def _samples(content, shard):
    # only here: it loads numpy
    from model.images import members

    seen = set()
    with open(shard, "rb") as file:
        for key, entries in groupby(members(shard), lambda entry: _key(entry[1].name)):
            entries = list(entries)
            first, faults = entries[0][0], _faults(key, entries)
            if key in seen and not faults:
                kind = f"a key that came before: {NEIGHBOURS}"
                faults.append((first, Fault(kind, f", {key!r}")))
            seen.add(key)
            for number, fault in faults:
                yield f"{shard.name} member {number}", fault
            if not faults:
                parts = {_extension(info.name).lower(): info for _, info, _ in entries}
                for image in _images(content, shard, key, parts, file):
                    yield f"{shard.name} member {first}", _in_member(image, parts)


def _in_member(image, parts):
    """An image as it is; a Fault with the name of the text, or image, that it is of."""
    if not isinstance(image, Fault):
        return image
    told = [parts[one].name for one in (".json", ".txt", *parts) if one in parts]
    return image._replace(seen=f"{image.seen}, in {told[0]!r}")


def _key(name):
    """A name up to the first dot after its folder: what WebDataset takes for one sample."""
    return name.removesuffix(_extension(name))


def _extension(name):
    _, dot, extension = name.rpartition("/")[2].partition(".")
    return dot + extension


def _faults(key, entries):
    """[(number of a member, its Fault), ...]"""
    faults, seen = [], set()
    for number, info, fault in entries:
        extension = _extension(info.name).lower()
        if extension in seen:
            fault = fault or "is there twice"
        seen.add(extension)
        if extension in TEXTS and info.size > MOST_TEXT:
            fault = fault or f"has more than {MOST_TEXT} bytes, too many for a text"
        if fault:
            faults.append((number, Fault(f"a member that {fault}", f", {info.name!r}")))
    if not faults and len(_image_extensions(seen)) != 1:
        fault = Fault(f"expected one image of a key: {NEIGHBOURS}", f", {key!r} has {sorted(seen)}")
        faults.append((entries[0][0], fault))
    return faults


def _image_extensions(extensions):
    return [one for one in extensions if f".{one.rpartition('.')[2].lower()}" in IMAGES]


def _images(content, shard, key, parts, file):
    """The images of one key, of which each dialogue is one; or its Fault."""
    [extension] = _image_extensions(parts)
    name = f"{shard.name}/{parts[extension].name}"
    texts = {}
    for one in TEXTS & parts.keys():
        file.seek(parts[one].offset_data)
        texts[one] = file.read(parts[one].size)
    try:
        record = parsed(texts.get(".json", b"{}"))
        text = texts.get(".txt")
        if text is not None:
            text = text.decode(encoding_of(text)).strip()
    except ValueError as error:
        return [Fault("a text that cannot be read", f", of {key!r}: {error}")]
    problem = object_problem(record)
    if problem:
        return [problem]

    rows = record.get("rows") or [record]
    if rows == [record] and not conversations.is_dialogue(record):
        return [_captioned(content, name, record, text)]
    return [_dialogue(content, name, row) for row in rows]


def _dialogue(content, name, row):
    return object_problem(row) or conversations.image_of(content, row, name)


def _captioned(content, name, record, text):
    if text is None and not record:
        return Fault(f"no .json or .txt with the caption beside an image: {NEIGHBOURS}")
    _, keys = content.keys(record)
    if not keys and text is None:
        return no_key(record, content.caption_key or "caption")
    image = with_captions({"filename": name}, record, keys)
    if isinstance(image, Fault):
        return image
    if not keys:
        image[CAPTIONS_UNDER] = ".txt"
    # img2dataset writes the caption into both
    if text and text not in _stripped(image):
        image["sentences"].append({"raw": text})
    return image


def _stripped(image):
    return [(sentence["raw"] or "").strip() for sentence in image["sentences"]]
