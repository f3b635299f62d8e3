"""The images of the rows that generate_prompt.py writes: looked for, checked, made PNG."""

import os
import sys
from pathlib import Path

from data import exports
from data.image_check import CACHE, Use, check_images, find
from data.row_sources import MOST_NAMED
from data.stage import PROJECT, listed
from model.errors import UserError


def warn(text):
    print(f"generate_prompt.py: warning: {text}", file=sys.stderr)


def folders_of(sources, args):
    """Where the images are looked for, in order."""
    absolute = [source.root for source in sources if os.path.isabs(source.root)]
    folders = [Path(root) for root in absolute]
    if len(absolute) < len(sources):
        folders += [args.output.parent.absolute(), PROJECT]
    return list(dict.fromkeys(folders))


def without_machine(names, roots=()):
    """A function that takes from an absolute name what tells where images are on this machine.

    names: of all images; roots: their --image-root. What stays is the path from the folder that all
    absolute ones lie in: of one root, from there. Relative names stay as they are.
    """
    folders = {path for path in (*roots, *map(os.path.dirname, names)) if os.path.isabs(path)}
    top = os.path.commonpath(folders) if folders else None

    def shortened(name):
        return Path(os.path.relpath(name, top)).as_posix() if os.path.isabs(name) else name

    return shortened


def warn_of_tiffs(files):
    """Say which of the files that rows for a service name are no images that services take."""
    tiffs = [file for file in files if file.is_file() and file.suffix.lower() in (".tif", ".tiff")]
    if tiffs:
        warn(
            f"{len(tiffs)} images are TIFF ({min(tiffs)}), which the services that EvalScope asks "
            "do not take: give --png DIR"
        )


def check(sources, folders, args):
    """The imgs whose rows are dropped because of their image.

    Raises UserError where an input has no image or all are dropped; with --strict, where any is.
    """
    uses_of = []
    for source in sources:
        uses_of.append([Use(img, source.dataset, split) for img, split, _ in source.records()])
    uses = [use for uses in uses_of for use in uses]
    cache = args.output.with_name(CACHE)
    problems, leaks = check_images(uses, folders, cache, args.keep_duplicates, args.bands)

    for split, other, names in leaks:
        print(
            f"leakage: {len(names)} {split} images have the bytes of {other} images: "
            f"{listed(names)}"
        )
    imgs = {use.img for use in uses}
    dropped = {img for bad in problems.values() for img in bad}
    if not dropped:
        print(f"{len(imgs)} images opened without an error (kept for the next run in {cache})")
        return dropped

    parts = _problem_texts(problems, len(imgs), folders)
    missing = problems["missing"]
    gone = []
    for source, own in zip(sources, uses_of):
        if all(use.img in missing for use in own):
            gone.append(source.root)
    if gone and len(sources) > 1:
        parts.append(f"not one image of {' and '.join(gone)} was found")
    if args.strict or gone or dropped == imgs:
        raise UserError("; ".join([*parts, "check --image-root, or replace the files"]))

    rows = sum(use.img in dropped for use in uses)
    kept = f" (checks are kept in {cache})" if cache.exists() else ""
    parts.append(f"--strict stops instead{kept}")
    warn("; ".join([f"{rows} rows dropped", *parts]))
    return dropped


def _problem_texts(problems, total, folders):
    """One text for each kind of problem that occurs, and where was looked for missing images."""
    parts = []
    for kind, bad in problems.items():
        if bad:
            shown = 5 if len(bad) == total else MOST_NAMED
            names = listed(list(bad.values()), shown)
            parts.append(f"{len(bad)} of {total} images {kind}: {names}")
    if problems["missing"]:
        places = ", then ".join(f"in {folder}" for folder in folders)
        parts.append(f"looked {places}")
        parts += _hints(next(iter(problems["missing"])), folders)
    return parts


def _hints(img, folders):
    """Where a missing image may be."""
    from model.images import nearby

    root, name = os.path.split(img)
    here = Path.cwd()
    if here not in folders and Path(img).is_file():
        return [f"{root} is in the current folder: give --image-root in full"]
    for folder in folders:
        other = nearby(folder / img)
        if other:
            return [f"there is {other} for {name}"]
    return []


def convert(sources, folders, dropped, args):
    """Write the images as PNG under --png; returns {img: img of its PNG}."""
    folder, names, images = args.output.parent / args.png, {}, {}
    for source in sources:
        # merged sets may have the same file names
        prefix = f"{source.path.stem.removesuffix('-zh')}/" if len(sources) > 1 else ""
        shortened = without_machine(record["imged_id"] for _, _, record in source.records())
        for img, _, record in source.records():
            if img in dropped or img in names:
                continue
            png = Path(shortened(record["imged_id"])).with_suffix(".png")
            name = prefix + "/".join(exports.inside(png.as_posix()))
            file = find(img, folders)
            other = images.setdefault(folder / name, file)
            if other != file:
                raise UserError(f"{file} and {other} would both be {name}: rename one of them")
            names[img] = f"{args.png}/{name}"

    converted = exports.convert(images, args.bands)
    print(f"{folder}: {converted} of {len(images)} images converted to PNG, the others were there")
    return names
