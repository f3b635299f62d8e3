"""--look: a vision-language model sees the image of every caption.

Two requests an image. The first shows it alone and asks what is seen, in English; its answer joins
the caption's sentences, and by both the second answer is judged: a description, or questions about
the image. All is kept in the journal of captions, by the bytes of the image.
"""

import argparse
import hashlib
import re

from data import quality, seen_questions
from data.image_check import CACHE, examine_all, find
from data.journal import SUFFIX, Journal, normalized
from data.peel import without_thoughts
from data.records import caption_records
from data.stage import listed
from data.texts import STYLES, Texts
from model.errors import UserError

BULLET = re.compile(r"^[\s*#>•–—-]*(?:\d{1,2}[.)、:]\s*)?")
# pixels of the longer side that is sent
SIDE = 768
# of the first request, in the journal
SEEN = "seen"
# of an answer to it, at least so many and at most so many words
LEAST_WORDS, MOST_WORDS = 5, 200

SEE = (
    "You look at one aerial or satellite image, seen from above. List what is visible in plain "
    "English, one short sentence per line, at most eight: the scene, each kind of object with its "
    "number where it can be counted, colours, and where things are. Write only what can be seen: "
    "no guesses of place, date or purpose, no praise, no numbering."
)
WITH_IMAGE = "同时给出图像本身：英文句子与图像不符的内容不要写；不要提到英文句子或图像资料的来源。"
# {style: (instruction, see Texts.allowance)}
LOOK_STYLES = {name: (text + WITH_IMAGE, factor) for name, (text, factor) in STYLES.items()}
LOOK_STYLES |= {name: (text, 3) for name, text in seen_questions.INSTRUCTIONS.items()}


class Pictures:
    """The images of the records, each read once before anything is asked.

    files: {hash of its bytes: file}; keys: {imged_id: that hash}; broken: {imged_id: what is
    wrong}, listed on the screen. Raises UserError that lists the records whose image is not in the
    folder --look, or where none can be read.
    """

    def __init__(self, args):
        # only here: it loads numpy
        from model.images import open_file

        places, missing, chinese = {}, [], []
        for record in caption_records(args.input, args.limit):
            name = record["imged_id"]
            places[name] = find(name, [args.look])
            if places[name] is None:
                missing.append(name)
            elif quality.written_in(record["caption"]) == "zh":
                chinese.append(name)
        if missing:
            raise UserError(
                f"{len(missing)} images are not in --look {args.look}: {listed(missing)}"
            )
        if chinese:
            raise UserError(
                f"{args.input}: {len(chinese)} captions are Chinese already ({listed(chinese)}): "
                "--look compares the image with English sentences"
            )

        cache = None if args.dry_run else args.output.parent / CACHE
        found = examine_all(list(dict.fromkeys(places.values())), cache)
        self.files, self.keys, self.broken = {}, {}, {}
        for name, file in places.items():
            if "kind" in found[file]:
                self.broken[name] = f"{found[file]['kind']}: {found[file]['text']}"
                continue
            with open_file(file) as opened:
                self.keys[name] = hashlib.file_digest(opened, "sha256").hexdigest()[:32]
            self.files[self.keys[name]] = file
        self.report(args)

    def report(self, args):
        """Say which images are broken. Raises UserError where all are."""
        if not self.broken:
            return
        problems = [f"{name} ({problem})" for name, problem in self.broken.items()]
        text = f"{len(problems)} images of --look {args.look} cannot be read"
        if not self.files:
            raise UserError(f"{text}, all there are: {listed(problems)}")
        print("\n  ".join([f"{text}:", *problems]), flush=True)

    def part(self, key):
        """An image as a part of a message: a data: URI of JPEG. Raises UserError."""
        from model.images import read_image
        from model.images.encoding import data_uri

        image = read_image(self.files[key])
        image.thumbnail((SIDE, SIDE))
        uri = data_uri(image, "JPEG", quality=90)
        return {"type": "image_url", "image_url": {"url": uri}}


def sightings(journal, pictures):
    """{hash of an image: [Answer]} of the first request, in this journal and in those beside it.

    These are read only while there is an image that no journal so far has seen. What runs for other
    outputs have seen is copied to the journal. Raises OSError.
    """
    answers, copied = journal.read(SEEN), []
    for path in sorted(journal.path.parent.glob(f"*{SUFFIX}")):
        if pictures.files.keys() <= answers.keys():
            break
        if path == journal.path:
            continue
        for key, seen in Journal(path).read(SEEN).items():
            if key in pictures.files and key not in answers:
                answers[key] = seen
                copied += [{"source": key, "style": SEEN, **one.as_entry()} for one in seen]
    journal.store(copied)
    return answers


class Sightings(Texts):
    """What is seen of each image, named by the hash of its bytes."""

    what = "images"
    instruction, allowance = SEE, 1

    def __init__(self, args, pictures, answers):
        own = argparse.Namespace(**{**vars(args), "style": SEEN})
        super().__init__(own, {key: key for key in pictures.files}, answers)
        self.pictures = pictures
        self.left = [key for key in self.texts if not self.settled(key)]

    def content(self, name):
        return [self.pictures.part(name)]

    def expected(self, name):
        return MOST_WORDS

    @staticmethod
    def bare(text):
        """A sentence a line, without thoughts, bullets and numbers."""
        lines = [BULLET.sub("", line).strip(" *") for line in without_thoughts(text).splitlines()]
        return "\n".join(filter(None, lines))

    def judged(self, name, text):
        words = len(text.split())
        if quality.written_in(text) != "en":
            return [("english", text[:40])]
        if not LEAST_WORDS <= words <= MOST_WORDS:
            return [("length", f"{words} words, expected {LEAST_WORDS} to {MOST_WORDS}")]
        return []

    def complaint(self, problems):
        return f"Not as asked ({problems[0][1]}). Write it again, in English, as asked."


class LookedTexts(Texts):
    """Captions with their images and what was seen of these."""

    what = "images with captions"

    def __init__(self, args, pictures, sightings, answers):
        self.pictures = pictures
        # {name: (hash of the image, caption, what is seen)}
        self.units = {}
        for record in caption_records(args.input, args.limit):
            if self.leaves_out(record):
                continue
            key = pictures.keys[record["imged_id"]]
            # where nothing usable was said of an image, the caption alone counts
            seen = sightings.known.get(key, "")
            self.units[self.name_of(record)] = key, record["caption"], seen
        super().__init__(args, {name: name for name in self.units}, answers)
        self.left = [name for name in self.units if not self.settled(name)]

    @property
    def instruction(self):
        return LOOK_STYLES[self.args.style][0]

    @property
    def allowance(self):
        return LOOK_STYLES[self.args.style][1]

    def leaves_out(self, record):
        return record["imged_id"] in self.pictures.broken

    def name_of(self, record):
        return normalized(f"{self.pictures.keys[record['imged_id']]} {record['caption']}")

    def source(self, name):
        _, caption, seen = self.units[name]
        return f"{caption}  {seen}"

    def content(self, name):
        key, caption, seen = self.units[name]
        return [self.pictures.part(key), {"type": "text", "text": f"{caption}\n{seen}".strip()}]

    def judged(self, name, text):
        if self.args.style in seen_questions.INSTRUCTIONS:
            return seen_questions.problems(text, self.source(name), self.args.style)
        return super().judged(name, text)

    def complaint(self, problems):
        if self.args.style in seen_questions.INSTRUCTIONS:
            return quality.complaint(problems, "问答", seen_questions.COMPLAINTS)
        return super().complaint(problems)

    def record(self, record, text):
        if self.args.style not in seen_questions.INSTRUCTIONS:
            return super().record(record, text)
        source = self.source(self.name_of(record))
        return seen_questions.record(record, text, source, self.args.style)
