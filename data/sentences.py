"""The images of a caption set in any layout, and what their sentences say."""

from data.caption_sets import CAPTIONS_UNDER, listed_sentences
from data.faults import Fault, got, has_words, no_key, split_problem
from data.layouts import open_files
from data.records import image_records
from model.errors import UserError


def image_problem(image):
    """What is wrong with an image of a caption set, or None; `empty` where it has no sentences."""
    expected = "expected 'sentences' [{\"raw\": text}, ...]"
    sentences, key = listed_sentences(image), image.get(CAPTIONS_UNDER, "sentences")
    # they may stand under another name
    others = [name for name in image if name != CAPTIONS_UNDER]
    if "sentences" not in image and sentences is None and set(others) - {"filename", "split"}:
        return no_key(others, key)
    if sentences is None or sentences == []:
        return split_problem(image) or Fault(f"no caption (none in {key!r})", empty=True)
    if not isinstance(sentences, list):
        return Fault(expected, f", got {type(sentences).__name__}")

    for sentence in sentences:
        problem = sentence_problem(sentence)
        if problem:
            return problem
    return split_problem(image)


def sentence_problem(sentence):
    """What is wrong with a sentence, or None; one without words is none of it."""
    if sentence is None:
        return None
    if not isinstance(sentence, dict):
        return Fault('expected a sentence {"raw": text}', f", got {type(sentence).__name__}")
    if "raw" not in sentence:
        if "tokens" not in sentence:
            return no_key(sentence, "raw")
        if sentence["tokens"] is not None and not are_tokens(sentence["tokens"]):
            return got("a list of words in 'tokens'", sentence["tokens"])
    elif sentence["raw"] is not None and not isinstance(sentence["raw"], str):
        return got("text in 'raw'", sentence["raw"])
    return None


def are_tokens(value):
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def sentences_of(image):
    """The texts of those of its sentences that have words, as they stand but for what files add.

    That is a BOM and the line breaks of Windows.
    """
    texts = map(text_of, listed_sentences(image) or [])
    return [text for text in texts if has_words(text)]


def text_of(sentence):
    """Its `raw`, or its tokens separated by spaces; "" for null."""
    if sentence is None:
        return ""
    text = sentence["raw"] if "raw" in sentence else " ".join(sentence["tokens"] or [])
    return (text or "").replace("\ufeff", "").replace("\r\n", "\n").replace("\r", "\n")


def caption_set(path, problem_of=image_problem, notes=None):
    """The images of a caption set in any layout; `sentences_of` gives what they say.

    See image_records. Raises UserError.
    """
    files = open_files([path], notes=notes)
    if not files.has_captions:
        raise UserError(f"{path} has questions and answers, no captions: name a caption set")
    return images_of(files, problem_of, notes)


def images_of(files, problem_of=image_problem, notes=None):
    """The images of CaptionFiles, checked; see image_records. Raises UserError."""
    if not files.has_captions:
        problem_of = split_problem
    return image_records(
        files.name,
        "filename",
        problem_of,
        unique=files.has_captions,
        notes=notes,
        read=files.read,
        within=files.has_captions,
    )
