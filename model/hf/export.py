"""A checkpoint for other programs: the adapter merged into a folder that transformers loads."""

import json

from model.hf import processor
from model.weight_files import CARD


def export_merged(family, folder):
    """Write weights, configurations, processor, tokenizer and chat template. Raises UserError."""
    model = family.network.model
    if family.has_adapter:
        model = model.merge_and_unload()
    model.save_pretrained(folder)
    processor.copy_files(family._files, folder, family._bounds)
    kept = {key: family.card[key] for key in ("prompt", "english") if key in family.card}
    card = {"format": 2, "method": {"name": "full"}, "base": None} | kept
    text = json.dumps(card, indent=2, ensure_ascii=False)
    (folder / CARD).write_text(text, encoding="utf-8")
