"""ChatGLM's tokenizer straight on sentencepiece: no remote code, no network, no transformers.

Source: tokenization_chatglm.py of THUDM/chatglm-6b. Line breaks, tabs and runs of blanks have
pieces of their own (`<n>`, `<|tab|>`, `<|blank_2|>` .. `<|blank_80|>`); everything else is
sentencepiece's work.
"""

import hashlib
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import sentencepiece

from model.errors import UserError
from model.find import BASE, places
from model.pieces import Pieces

# Of ChatGLM-6B's own file, and the number of ids of a network that uses it.
VOCABULARY = "ice_text.model"
SHA256 = "5e974d9a69c242ce014c88c2b26089270f6198f3c0b700a887666cd3e816f17e"
REAL_VOCABULARY = 130528
MAX_BLANK = 80
# What transformers' decode tidies after English tokenization, in its order.
SPACES_BEFORE = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")
# What a small vocabulary has of the pieces for line breaks, tabs and blanks.
TINY_PIECES = ["<n>", "<|tab|>", "<|blank_4|>", "<|blank_3|>", "<|blank_2|>"]


def read_vocabulary(path: Path, vocab_size: int) -> sentencepiece.SentencePieceProcessor:
    """The pieces of a vocabulary file for a network of vocab_size ids.

    Raises UserError where the file cannot be read or does not fit the network.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"vocabulary {path}: {error.strerror}; expected ChatGLM's {VOCABULARY}"
        ) from None

    pieces = sentencepiece.SentencePieceProcessor()
    try:
        pieces.LoadFromSerializedProto(data)
    except RuntimeError:
        raise UserError(
            f"vocabulary {path}: {len(data)} bytes that are no sentencepiece model; "
            f"fetch {VOCABULARY} again (a download can be cut short)"
        ) from None

    digest = hashlib.sha256(data).hexdigest()
    if vocab_size == REAL_VOCABULARY and digest != SHA256:
        raise UserError(
            f"vocabulary {path}: {len(data)} bytes with sha256 {digest[:12]}..., expected "
            f"ChatGLM-6B's {SHA256[:12]}...: another model's file, or a damaged one; "
            f"fetch {VOCABULARY} of THUDM/chatglm-6b"
        )
    if pieces.vocab_size() > vocab_size:
        raise UserError(
            f"vocabulary {path} has {pieces.vocab_size()} pieces, the network only {vocab_size}: "
            "it belongs to another model"
        )
    return pieces


class Tokenizer:
    """Text <-> ids.

    The ids of control tokens are the network's (`model_config.json`), not the vocabulary file's.
    """

    def __init__(self, path: str | Path, config: dict):
        """path: the sentencepiece file; config: the parsed `model_config.json`.

        Raises UserError.
        """
        self.path = Path(path)
        self.pieces = read_vocabulary(self.path, config["vocab_size"])
        self.gmask = config["gmask_token_id"]
        self.sop = config["bos_token_id"]
        self.eop = config.get("eos_token_id", self.sop + 1)
        self.pad = config["pad_token_id"]

    def encode(self, text: str) -> list[int]:
        """Text -> ids, without control tokens."""
        text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
        text = re.sub(f" {{2,{MAX_BLANK}}}", lambda run: f"<|blank_{len(run.group())}|>", text)
        return self.pieces.encode(text)

    def endings(self, ids: list[int]) -> list[list[int]]:
        """For each token, those that in its place bring the text to its end, or beyond it."""
        return self._pieces.endings(ids)

    @cached_property
    def _pieces(self) -> Pieces:
        return Pieces(map(self.pieces.id_to_piece, range(self.pieces.vocab_size())))

    def decode(self, ids: Iterable[int]) -> str:
        """Ids -> text; control tokens and ids beyond the vocabulary are left out."""
        size, control = self.pieces.vocab_size(), {self.pad, self.gmask, self.sop, self.eop}
        text = self.pieces.decode([i for i in ids if i < size and i not in control])
        text = text.replace("<n>", "\n").replace("<|tab|>", "\t")
        text = re.sub(r"<\|blank_(\d+)\|>", lambda run: " " * int(run.group(1)), text)
        for spaced in SPACES_BEFORE:
            text = text.replace(spaced, spaced.strip())
        return text


def train_vocabulary(
    texts: Iterable[str],
    path: str | Path,
    size: int,
    whole: Iterable[str] = (),
    prefix: bool = True,
) -> None:
    """Write a small vocabulary of the same kind, for tiny models, trained on the texts.

    size: number of pieces; whole: words that are one piece each; prefix: as in ChatGLM's, a text
    begins with a blank, so that a word has other pieces there.
    """
    lines = (text.replace("\n", "<n>") for text in texts)
    with open(path, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=file,
            vocab_size=size,
            model_type="unigram",
            character_coverage=1.0,
            byte_fallback=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            pad_piece="<pad>",
            user_defined_symbols=[*TINY_PIECES, *whole],
            normalization_rule_name="nmt_nfkc",
            add_dummy_prefix=prefix,
            minloglevel=1,
        )


def find_vocabulary(folder, given=None):
    """The path of the vocabulary file of a checkpoint.

    folder: the checkpoint's, looked at first, then where ChatGLM-6B and VisualGLM-6B are kept;
    given: a file, or a folder that holds it, the only place to look at.

    Raises UserError that names the places.
    """
    if given:
        candidates = [Path(given)]
    else:
        candidates = [Path(folder), *places(BASE), *places("chatglm-6b")]

    for place in candidates:
        file = place / VOCABULARY if place.is_dir() else place
        if file.is_file():
            return file

    looked_at = ", ".join(map(str, candidates[:3]))
    if len(candidates) > 3:
        looked_at += f" and {len(candidates) - 3} cache folders"
    raise UserError(
        f"vocabulary {VOCABULARY} not found: looked at {looked_at}; put the file (2.7 MB, part of "
        "THUDM/chatglm-6b) into the checkpoint folder or name it with --tokenizer"
    )
