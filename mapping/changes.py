"""Two dates: what the answers about the same tiles say otherwise than before."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from mapping.geojson import Feature, text_of
from mapping.naming import object_word, scene_word, window_of
from mapping.places import box
from mapping.regions import answered, sure_scene

WORDS = {
    False: {
        "compared": "与之前相比：{compared} 块两次都有数据，{missing} 块不重叠，不能比较；"
        "场景变化 {scene} 块，地物变化 {objects} 块。",
        "turned": "{} → {}：{} 块",
        "added": "新增",
        "removed": "减少",
        "object": "{}：{} 块",
    },
    True: {
        "compared": "Compared with before: {compared} tiles have data at both dates, {missing} do "
        "not overlap and are not compared; the scene changed in {scene}, objects in {objects}.",
        "turned": "{} -> {}: {} tiles",
        "added": "new",
        "removed": "gone",
        "object": "{}: {} tiles",
    },
}


class Change(NamedTuple):
    """A tile that was answered at both dates; scenes: (before, after), None: not sure."""

    line: dict
    before: dict
    scenes: tuple[str | None, str | None]

    @property
    def scene_changed(self) -> bool:
        """Whether both are sure, and not the same."""
        old, new = self.scenes
        return None not in self.scenes and old != new

    @property
    def added(self) -> list[str]:
        return [name for name in self.line["objects"] if name not in self.before["objects"]]

    @property
    def removed(self) -> list[str]:
        return [name for name in self.before["objects"] if name not in self.line["objects"]]

    @property
    def is_change(self) -> bool:
        return bool(self.scene_changed or self.added or self.removed)


def compare(lines: Sequence[dict], before: Sequence[dict], min_confidence: float) -> list[Change]:
    """Every tile that has answers at both dates, changed or not."""
    earlier = {window_of(line): line for line in answered(before)}
    compared = []
    for line in answered(lines):
        old = earlier.get(window_of(line))
        if old is not None:
            scenes = sure_scene(old, min_confidence), sure_scene(line, min_confidence)
            compared.append(Change(line, old, scenes))
    return compared


def change_features(compared: Sequence[Change]) -> list[Feature]:
    """A feature for each tile whose scene or objects changed."""
    features: list[Feature] = []
    for change in compared:
        if not change.is_change:
            continue
        old, new = change.scenes
        properties = {
            "scene_before": old,
            "scene": new,
            "scene_changed": change.scene_changed,
            "objects_added": change.added,
            "objects_removed": change.removed,
            "confidence_before": change.before["confidence"],
            "confidence": change.line["confidence"],
            "description_before": text_of(change.before),
            "description": text_of(change.line),
            "window": change.line["window"],
        }
        features.append((box(*window_of(change.line)), properties))
    return features


def summarize_changes(compared: Sequence[Change], lines: Sequence[dict]) -> dict:
    """What summary.json says of them; lines: of the later date."""
    turned = Counter(change.scenes for change in compared if change.scene_changed)
    turns = []
    for (old, new), count in turned.most_common():
        turns.append({"before": old, "after": new, "tiles": count})
    return {
        "compared": len(compared),
        "missing": len(answered(lines)) - len(compared),
        "scene": sum(change.scene_changed for change in compared),
        "objects": sum(bool(change.added or change.removed) for change in compared),
        "turns": turns,
        "added": _counts(name for change in compared for name in change.added),
        "removed": _counts(name for change in compared for name in change.removed),
    }


def _counts(names):
    counted = Counter(names)
    order = sorted(counted, key=lambda name: (-counted[name], name))
    return [{"object": name, "tiles": counted[name]} for name in order]


def changes_in_words(changes: dict, english: bool) -> list[str]:
    """Further lines of summary.txt."""
    words = WORDS[english]
    lines = [words["compared"].format(**changes)]
    for turn in changes["turns"]:
        old, new = scene_word(turn["before"], english), scene_word(turn["after"], english)
        lines.append("  " + words["turned"].format(old, new, turn["tiles"]))
    for key in ("added", "removed"):
        for entry in changes[key]:
            name = object_word(entry["object"], english)
            count = words["object"].format(name, entry["tiles"])
            lines.append(f"  {words[key]} {count}")
    return lines
