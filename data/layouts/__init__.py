"""Caption sets in the layouts that they are published in -> images as transform.py writes them.

Each layout is a module here with two functions: `recognises(content)`, whether a file or folder is
of this layout, and `read(content)`, which yields (where, image), or (where, Fault) for a record
that is wrong, so that all faults of a file are named at once. An image is

    {"filename", "sentences": [{"raw": text}, ...], "split" optional}     captions
    (with "content" where the set holds the image itself, see arrow.py)
    {"filename", "conversations": [{"role", "content"}, ...], "split"}    a dialogue
    {"filename", "scene": Chinese, "split"}                               a scene
"""

from dataclasses import dataclass

from data.faults import Fault, Tally
from data.layouts import (
    arrow,
    classes,
    coco,
    conversations,
    karpathy,
    pairs,
    table,
    texts,
    webdataset,
)
from data.layouts.content import Content
from model.errors import UserError

# in the order in which they are tried: the last takes whatever is left
LAYOUTS = {
    "texts": texts,
    "webdataset": webdataset,
    "arrow": arrow,
    "table": table,
    "classes": classes,
    "coco": coco,
    "conversations": conversations,
    "pairs": pairs,
    "karpathy": karpathy,
    # recognised as the above
    "nwpu": karpathy,
}
OTHER_KIND = Fault(
    "captions and dialogues in one set, of which the first image has the other: import one after "
    "the other"
)
# those of which a folder may be
FOLDERS = (texts, webdataset, arrow, classes)


@dataclass
class CaptionFiles:
    """One or more files or folders of one layout."""

    contents: list
    layout: object

    @property
    def name(self):
        return " and ".join(str(content.path) for content in self.contents)

    @property
    def has_captions(self):
        """Whether its images have captions; else each brings its questions, or a scene."""
        if self.layout is webdataset:
            return webdataset.has_captions(self.contents[0])
        return self.layout not in (conversations, classes)

    @property
    def holds_images(self):
        """Whether the images are inside, to be written as files."""
        return any(map(arrow.recognises, self.contents))

    @property
    def folder(self):
        """Where its images lie, as far as the files tell."""
        path = self.contents[0].path
        if self.layout is classes:
            return path
        if self.layout is webdataset:
            return path if path.is_dir() else path.parent
        return (path if path.is_dir() else path.parent) / "images"

    def read(self, _path=None):
        """Yield (where, image or Fault) of all files."""
        has_captions = self.has_captions
        for content in self.contents:
            prefix = f"{content.path.name} " if len(self.contents) > 1 else ""
            for where, image in self.layout.read(content):
                if isinstance(image, dict):
                    image = self._image(content, image, has_captions)
                yield prefix + where, image

    def _image(self, content, image, has_captions):
        brings_rows = not {"conversations", "scene"}.isdisjoint(image)
        if brings_rows == has_captions:
            return OTHER_KIND._replace(seen=f", {image.get('filename')!r}")
        if "split" not in image and self.layout is not karpathy:
            return content.with_split(image)
        return image


def open_files(paths, layout=None, image_key=None, caption_key=None, notes=None):
    """Paths of a caption set -> CaptionFiles. Raises UserError.

    layout: a name of LAYOUTS, None: by what the first file holds; image_key, caption_key: the
    columns or keys of images and captions, None: by their names; notes: a Tally of what was read
    although it is not said outright.
    """
    contents = [Content(path, image_key, caption_key, notes or Tally()) for path in paths]
    layout = layout or _common_layout(contents)
    if layout == "texts":
        contents = texts.without_names(contents)
    return CaptionFiles(contents, LAYOUTS[layout])


def _common_layout(contents):
    """The name of the layout that all are of. Raises UserError."""
    found = {_recognised(content): content for content in contents}
    if len(found) > 1:
        seen = ", ".join(f"{content.path} ({name})" for name, content in found.items())
        raise UserError(f"the inputs are of several layouts: {seen}; import one after the other")
    [name] = found
    return name


def _recognised(content):
    """The name of its layout. Raises UserError."""
    if content.path.is_dir() and not any(layout.recognises(content) for layout in FOLDERS):
        raise UserError(
            f"cannot read {content.path}: a directory without *_caps.txt, *.tar, *.arrow, "
            "*.parquet or folders of known classes; name the file, or give --layout classes"
        )
    return next(name for name, layout in LAYOUTS.items() if layout.recognises(content))
