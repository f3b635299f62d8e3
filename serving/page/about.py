"""What the page says of the checkpoint that answers."""

from dataclasses import dataclass
from html import escape

from model.family import Family
from model.files import PROJECT

TINY = PROJECT / "model" / "tiny" / "base"


@dataclass(frozen=True)
class About:
    """method: None where nothing has been fine-tuned; is_tiny: the bundled base, or over it."""

    name: str
    base: str | None = None
    method: str | None = None
    device: str | None = None
    is_tiny: bool = False


def about(family: Family, name: str, folder: str) -> About:
    """folder: where the checkpoint was opened, as its user named it."""
    base = (family.card.get("base") or {}).get("path")
    method = (family.card.get("method") or {}).get("name")
    is_tiny = TINY.resolve() in ((PROJECT / str(path)).resolve() for path in (base, folder) if path)
    return About(name, base, method, family.device.type, is_tiny)


def line(about: About, words: dict[str, str]) -> str:
    """One line of HTML."""
    parts = [words["checkpoint"].format(about.name)]
    if about.method:
        parts.append(words["method"].format(about.method))
    if about.base:
        parts.append(words["base"].format(about.base))
    if about.device:
        parts.append(about.device)
    return escape(" · ".join(parts))
