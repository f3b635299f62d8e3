"""The place of the image, as HTML: everything that comes from a person or a file is escaped."""

from html import escape

from PIL import Image

from model.images.facts import Facts
from serving.page.view import View, preview

METRES = {"metre": 1.0, "meter": 1.0, "m": 1.0}


def empty(words: dict[str, str]) -> str:
    return (
        f"<div class='place'><strong>{escape(words['drop'])}</strong>"
        f"<span>{escape(words['kinds'])}</span></div>"
    )


def refused(name: str, reason: str, words: dict[str, str]) -> str:
    return (
        f"<div class='place refused' role='alert'><strong>{escape(name)} "
        f"{escape(words['refused'])}</strong><span>{escape(reason)}</span></div>"
    )


def whole(view: View, words: dict[str, str], note: str = "") -> str:
    """The image with its box; a part of it is chosen by dragging, see crop.js.

    note: what stands below an image without a box.
    """
    box = ""
    if view.box:
        left, top, width, height = view.box
        style = (
            f"left:{left / view.size[0]:.4%};top:{top / view.size[1]:.4%};"
            f"width:{width / view.size[0]:.4%};height:{height / view.size[1]:.4%}"
        )
        box = f"<span class='box' style='{style}'></span>"
    alt = words["image alt"].format(view.name, *view.size)
    if view.box:
        note = words["crop note"].format(*view.box[2:])
    return _figure(
        view.whole, alt, note, f" data-crop='1' style='--ratio:{_ratio(view.whole)}'", box
    )


def as_seen(image: Image.Image, words: dict[str, str]) -> str:
    """What the network reads."""
    note = words["seen note"].format(*image.size)
    return _figure(image, note, note, f" style='--ratio:{_ratio(image)}'")


def _figure(image, alt, note, attributes, inside=""):
    caption = f"<figcaption>{escape(note)}</figcaption>" if note else ""
    return (
        f"<figure{attributes}><div class='frame'><img src='{preview(image)}' draggable='false' "
        f"alt='{escape(alt, quote=True)}'>{inside}</div>{caption}</figure>"
    )


def _ratio(image):
    return f"{image.width / image.height:.5f}"


def facts(view: View, words: dict[str, str]) -> str:
    """One line: name, size, bands, type of the numbers, coordinates, resolution, nodata."""
    found = view.facts
    parts = [words["size"].format(found.width, found.height), _bands(found, words), found.dtype]
    if found.is_raster:
        parts.append(found.crs or words["no crs"])
    if found.resolution:
        parts.append(_resolution(found, words))
    if found.nodata is not None:
        parts.append(words["nodata"].format(f"{found.nodata:g}"))
    return f"<strong>{escape(view.name)}</strong> {escape(' · '.join(parts))}"


def _bands(found, words):
    return words["one band"] if found.bands == 1 else words["band count"].format(found.bands)


def _resolution(found: Facts, words: dict[str, str]) -> str:
    x, y = (f"{number:.6g}" for number in found.resolution or ())
    number = x if x == y else f"{x}×{y}"
    if found.unit in METRES:
        return words["metre"].format(number)
    if found.unit == "degree":
        return words["degree"].format(number)
    return words["other unit"].format(number, found.unit or "?")
