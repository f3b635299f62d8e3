"""What a caption set holds and what is written of it, counted and compared with the known sets."""

import reprlib
import sys
from collections import Counter

from data import quality
from data.caption_sets import described, listed_sentences, looks_like
from data.faults import Tally
from data.sentences import sentences_of
from data.stage import listed
from model.errors import UserError

# sentences per image in every known set
FILLED = 5


class Counts:
    """What a caption set holds and what was written of it."""

    def __init__(self, known):
        # the CaptionSet that --dataset names, or None
        self.known = known
        self.has_captions = True
        # images per split, of the set and of what is written
        self.splits, self.records = Counter(), Counter()
        # images per number of sentences: in the set; of what is written, with words and written
        self.listed, self.worded, self.written = Counter(), Counter(), Counter()
        self.odd_names = []
        # what was read although it is spelled otherwise
        self.notes = Tally()
        self.faults = Tally()
        self.wordless = 0
        # hashes of names in lower case
        self.names = set()

    def add(self, image):
        """Returns whether there is anything to write of it."""
        self.splits[image.get("split")] += 1
        if not self.has_captions:
            return True
        name, listed_ = image["filename"], len(listed_sentences(image) or [])
        texts = sentences_of(image)
        worded = len(texts)
        self.listed[listed_] += 1
        self.wordless += listed_ - worded
        if not worded:
            self.faults.add("left out, as no sentence of theirs has words", repr(name))
        elif worded < listed_:
            self.faults.add("left with fewer sentences", repr(name))
        self._add_name(name)
        self._add_languages(name, texts)
        return worded > 0

    def _add_languages(self, name, texts):
        """Translation judges whole captions, in which one such sentence goes unseen."""
        written = {quality.written_in(text): text for text in reversed(texts)}
        if "other" in written:
            kind, text = "with a sentence that is neither English nor Chinese", written["other"]
        elif len(written) > 1:
            kind, text = "with sentences in English and in Chinese", written["zh"]
        else:
            return
        number = sum(self.splits.values()) - 1
        self.faults.add(kind, f"record {number} ({name!r}: {reprlib.repr(text)})")

    def _add_name(self, name):
        folded = hash(name.casefold())
        if folded in self.names:
            kind = "named like an earlier one but for case, so one file on Windows and macOS"
            self.faults.add(kind, repr(name))
        self.names.add(folded)
        if self.known and not self.known.fits_name(name):
            self.odd_names.append(name)

    def add_record(self, image, number):
        """number: how many sentences or rounds its record has."""
        self.records[image.get("split")] += 1
        self.worded[len(sentences_of(image))] += 1
        self.written[number] += 1

    def complaint(self):
        """What is wrong with sentences and names; "" for nothing."""
        parts = self.faults.lines("images")
        if self.wordless:
            what = "without words (blank, null or only punctuation)"
            parts.insert(0, f"{self.wordless} sentences {what} dropped")
        return "; ".join(parts)

    def mismatches(self):
        """What does not fit the known set, in the user's terms."""
        found = self.known.mismatches(self.splits)
        if found and looks_like(self.splits):
            found.insert(0, f"this looks like {looks_like(self.splits)}: {described(self.splits)}")

        odd = sum(self.listed.values()) - self.listed[self.known.sentences]
        if odd:
            found.append(f"{odd} images without exactly {self.known.sentences} sentences")
        if self.odd_names:
            found.append(
                f"{len(self.odd_names)} file names unlike {self.known.example}: "
                f"{listed(self.odd_names)}"
            )
        return found

    def summary(self, args):
        """The counts as one text: "3 records (train 2, val 1), 15 sentences"."""
        parts = ", ".join(f"{split or 'no split'} {n}" for split, n in self.records.items())
        before = sum(number * images for number, images in self.worded.items())
        after = sum(number * images for number, images in self.written.items())
        fewer = sum(images for number, images in self.written.items() if number < FILLED)
        if not self.has_captions:
            return f"{sum(self.records.values())} records ({parts}), {after} rounds"

        text = f"{sum(self.records.values())} records ({parts}), {after} sentences"
        if args.dedupe:
            text += f" ({before - after} of {before} repeated an earlier one and were dropped)"
        if args.fill:
            text += f" ({after - before} of them repeated)"
        if fewer and not args.dedupe:
            text += f"; {fewer} images have fewer than {FILLED}: --fill repeats some"
        return text


def complain(counts, name, args):
    """Say what was read otherwise, and warn of what is wrong; with --strict raise UserError.

    UserError as well where no sentence is left.
    """
    for line in counts.notes.lines("images with" if counts.has_captions else "rows with"):
        print(f"transform.py: {line}", file=sys.stderr)
    complaints = []
    if counts.complaint():
        complaints.append(f"{name}: {counts.complaint()}")
    if not counts.records:
        raise UserError(f"{complaints[0]}; no image is left: give a file with captions")

    if counts.known:
        complaints += not_the_whole_set(counts, name, args)
    if args.strict and complaints:
        raise UserError("; ".join(complaints))
    for complaint in complaints:
        print(f"transform.py: warning: {complaint}", file=sys.stderr)


def not_the_whole_set(counts, name, args):
    """[what does not fit the known set], or [].

    An archive named UCM has held the 613 images of Sydney: count before anyone trains on it.
    """
    found = counts.mismatches()
    if not found:
        return []
    message = (
        f"{name} is not the whole {args.dataset} set: {'; '.join(found)}; "
        f"check --dataset, or get the set again from {counts.known.source}"
    )
    return [message]
