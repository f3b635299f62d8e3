"""A checkpoint for other programs: the adapter merged into a folder that transformers loads."""

import json

from model.errors import UserError
from model.hf import processor
from model.hf.quantization import StoredBits, to_stored_form
from model.weight_files import CARD, fingerprint

# Of the adapter's effect: what rounding the merged weights may change
MERGE_ERROR = 0.5


def merge(family, source):
    """The family's model with the adapter in its weights.

    source: named in the UserError where the merged weights do not answer as the adapter did.
    """
    effect = family.effect()
    tuned = family.probe()
    family.network.model = family.network.model.merge_and_unload()
    change = (family.probe() - tuned).pow(2).mean().sqrt().item()
    if change > MERGE_ERROR * effect:
        raise UserError(
            f"{source}: merging would change its answers: logits by {change:.3g}, where the "
            f"adapter itself changes them by {effect:.3g}; its effect is lost in "
            f"{family.dtype}: train it further, or keep its adapter folder"
        )


def export_merged(family, folder, source, bits=None):
    """Write weights, configurations, processor, tokenizer and chat template.

    bits: 8 or 4 of the language model's weights, which then only this project loads.
    Raises UserError.
    """
    mark = family.base_fingerprint
    if family.has_adapter:
        merge(family, source)
        mark = fingerprint(family.network.model.state_dict())
    kept = {key: family.card[key] for key in ("prompt", "english") if key in family.card}
    card = {"format": 2, "method": {"name": "full"}, "base": None} | kept
    model = family.network.model
    if bits:
        to_stored_form(model, bits)
        model.config.quantization_config = StoredBits(bits)
        card |= {"quantization": {"bits": bits}, "fingerprint": mark}

    model.save_pretrained(folder)
    processor.copy_files(family.files, folder, family.inputs.bounds)
    text = json.dumps(card, indent=2, ensure_ascii=False)
    (folder / CARD).write_text(text, encoding="utf-8")
