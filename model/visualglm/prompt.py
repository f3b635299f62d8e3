"""The one renderer of dialogues: text -> ids, where the answer begins, where the image slots are.

One row is `<img>` + image slots + `</img>问：{question}\\n答：` + `[gMASK] <sop>` + answer +
`<eop>`; earlier rounds stand as `问：q\\n答：a\\n` before the last question, and without an image
there is no tag and no slot. Source: VisualGLM-6B, chat.py and finetune_visualglm.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from model.errors import UserError

WORDS = {False: ("问：", "答："), True: ("Q:", "A:")}  # by `english`


@dataclass(frozen=True)
class Rendered:
    """One row as ids.

    ids: the prompt, `[gMASK] <sop>`, then for training the answer and `<eop>`.
    """

    ids: Sequence[int]
    prefix: int  # index of `<sop>`: the prompt before it is bidirectional, the answer follows
    image_start: int | None  # index of the first image slot; None without an image
    dropped: int = 0  # earlier rounds beyond the length limit
    shortened: int = 0  # tokens beyond it at the question's end
    answer_cut: bool = False  # the answer's end was beyond its limit

    @property
    def cut(self):
        """Whether a length limit left anything out."""
        return bool(self.dropped or self.shortened or self.answer_cut)

    @property
    def target_positions(self):
        """Indices whose next token is trained: from `[gMASK]`, which predicts `<sop>`, on.

        A cut answer does not end where it was cut: its `<eop>` is not trained.
        """
        return range(self.prefix - 1, len(self.ids) - 1 - self.answer_cut)

    @property
    def length(self):
        return len(self.ids)

    @property
    def target_tokens(self):
        return len(self.target_positions)


def render(
    tokenizer,
    question,
    answer=None,
    *,
    history=(),
    image_slots=0,
    english=False,
    max_source=None,
    max_target=None,
):
    """Render one round.

    history: earlier (question, answer) pairs. image_slots: 0 without an image. max_source limits
    `<img>` .. `[gMASK]` in tokens: the oldest rounds are dropped first, then the question's end;
    image slots never. max_target limits answer + `<eop>` + `<sop>`.
    Raises UserError where max_source cannot hold the image and the frame of the question.
    """
    ask, reply = WORDS[english]
    head = tokenizer.encode("<img>") if image_slots else []
    image_start = len(head) if image_slots else None
    head = head + [tokenizer.pad] * image_slots
    close_tag = "</img>" if image_slots else ""

    rounds = list(history)
    while True:
        earlier = "".join(f"{ask}{q}\n{reply}{a}\n" for q, a in rounds)
        body = tokenizer.encode(f"{close_tag}{earlier}{ask}{question}\n{reply}")
        over = len(head) + len(body) + 1 - max_source if max_source else 0
        if over <= 0 or not rounds:
            break
        rounds.pop(0)

    shortened = max(0, over)
    if shortened:
        body = _without_end_of_question(tokenizer, body, shortened, len(head), max_source)
    ids = head + body + [tokenizer.gmask, tokenizer.sop]
    prefix = len(ids) - 1

    answer_cut = False
    if answer is not None:
        answer_ids = tokenizer.encode(answer)
        if max_target and len(answer_ids) > max_target - 2:
            answer_ids = answer_ids[: max_target - 2]
            answer_cut = True
        ids += answer_ids + [tokenizer.eop]
    return Rendered(ids, prefix, image_start, len(history) - len(rounds), shortened, answer_cut)


def _without_end_of_question(tokenizer, body, over, head, max_source):
    """body without `over` tokens before its last line break, which precedes the reply's frame."""
    line_break = tokenizer.encode("\n")[-1]
    end = len(body) - 1 - body[::-1].index(line_break)
    if end <= over:
        raise UserError(
            f"a limit of {max_source} tokens before the answer is too small: the image takes "
            f"{head}, the whole prompt {head + len(body) + 1}; raise --max_source_length "
            "(training) or --max_length (demos)"
        )
    return body[: end - over] + body[end:]
