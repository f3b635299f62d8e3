"""A folder of images in class folders, for scene classification: UCMerced, RESISC45, AID, EuroSAT.

Its images have no captions but a scene, which the folder names; train/, val/ and test/ above the
class folders are splits. Names that lexicon.json does not have stand in CLASSES.
"""

import re
from functools import cache

from data.caption_sets import SPLITS, split_of
from data.faults import Fault, got, outside_fault
from data.instructions import word
from data.lexicon import language, vocabulary
from model.errors import UserError
from model.files import is_inside
from model.row_forms import is_text

IMAGES = {".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".jp2"}
# {name in lower case without spaces: Chinese}
CLASSES = {
    "agricultural": "农田",
    "annualcrop": "一年生作物农田",
    "bareland": "裸地",
    "buildings": "建筑区",
    "center": "中心建筑",
    "chaparral": "灌木丛",
    "circularfarmland": "圆形农田",
    "cloud": "云",
    "commercial": "商业区",
    "denseresidential": "密集住宅区",
    "desert": "沙漠",
    "field": "田地",
    "grass": "草地",
    "groundtrackfield": "田径场",
    "herbaceousvegetation": "草本植被",
    "highway": "公路",
    "industrial": "工业区",
    "industry": "工业区",
    "island": "岛屿",
    "lake": "湖泊",
    "meadow": "草地",
    "mediumresidential": "中等密度住宅区",
    "palace": "宫殿",
    "park": "公园",
    "parking": "停车场",
    "pasture": "牧场",
    "permanentcrop": "多年生作物农田",
    "playground": "运动场",
    "railway": "铁路",
    "rectangularfarmland": "矩形农田",
    "resident": "住宅区",
    "residential": "住宅区",
    "resort": "度假村",
    "riverlake": "河流和湖泊",
    "roundabout": "环岛",
    "seaice": "海冰",
    "sealake": "海洋或湖泊",
    "ship": "船只",
    "snowberg": "雪山",
    "sparseresidential": "稀疏住宅区",
    "terrace": "梯田",
    "thermalpowerstation": "火力发电站",
    "viaduct": "高架桥",
    "wetland": "湿地",
}


def recognises(content):
    """Whether a folder has a folder of a known class in it, or in that of a split."""
    return any(_has_classes(folder) for folder in (content.path, *content.path.glob("*/")))


def _has_classes(folder):
    return any(scene_of(one.name) for one in folder.glob("*/"))


def read(content):
    root = content.path
    if not root.is_dir():
        raise UserError(f"{root} is no folder: name the one that holds the class folders")
    folders = [folder for folder in sorted(root.glob("*/")) if split_of(folder.name) not in SPLITS]
    if not any(scene_of(folder.name) for folder in folders):
        lower = [folder for folder in folders if _has_classes(folder)]
        if lower:
            raise UserError(
                f"{root} has its class folders one level down: give --input "
                f"{' '.join(map(str, lower))}"
            )
    for path in sorted(root.rglob("*")):
        if path.is_dir():
            continue
        name = path.relative_to(root)
        if path.suffix.lower() not in IMAGES:
            content.notes.add("a name of no image, left out", repr(name.as_posix()))
            continue
        yield name.as_posix(), _name_fault(root, name) or _image(name)


def _name_fault(root, name):
    """The Fault of a name that no JSON can hold, or of a link that leads out; or None."""
    path = root / name
    if not is_text(name.as_posix()):
        return got("a name in UTF-8", name.as_posix())._replace(advice="rename the image")
    if not path.is_symlink() or is_inside(root, name):
        return None
    return outside_fault(str(path.readlink()), "copy the image to where the link is")


def _image(name):
    """{"filename", "scene", "split" optional} of an image's path in the set, or its Fault."""
    folders = list(name.parts[:-1])
    image = {"filename": name.as_posix()}
    if folders and split_of(folders[0]) in SPLITS:
        image["split"] = split_of(folders.pop(0))
    if len(folders) != 1:
        return Fault("expected its class folder above an image", f", got {len(folders)} folders")
    scene = scene_of(folders[0])
    if scene is None:
        add = "add it to CLASSES in data/layouts/classes.py, or name the folder in Chinese"
        return Fault(f"no Chinese known for the class {folders[0]!r}: {add}")
    return {**image, "scene": scene}


def scene_of(name):
    """A class name in any spelling -> the scene in Chinese, or None: "StorageTanks", "storage_tank"

    A Chinese name is its own.
    """
    if language(name) == "zh":
        return name
    # RSSCN7 counts its classes: aGrass, bField
    name = re.sub(r"^[a-z](?=[A-Z])", "", name)
    plain = re.sub(r"[^a-z]", "", name.lower())
    return CLASSES.get(plain) or _words().get(plain)


@cache
def _words():
    """{word of the lexicon without spaces: Chinese}; a scene rather than an object."""
    words, _ = vocabulary("en")
    found = {}
    for kind in ("object", "scene"):
        for form, meanings in words.items():
            names = [name for own, name in meanings if own == kind]
            if names:
                found[re.sub(r"[^a-z]", "", form)] = word(names[0], f"{kind}s")
    return found
