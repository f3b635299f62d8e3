"""The one renderer of dialogues: text -> ids, where the answer begins, where the image slots stand.

One row is `<img>` + image slots + `</img>问：{question}\\n答：` + `[gMASK] <sop>` + answer + `<eop>`; earlier rounds stand
as `问：q\\n答：a\\n` before the last question, and without an image there is no tag and no slot. Source: VisualGLM-6B,
chat.py and finetune_visualglm.py.
"""

from dataclasses import dataclass

from model.errors import UserError

WORDS = {False: ("问：", "答："), True: ("Q:", "A:")}  # by `english`


@dataclass(frozen=True)
class Rendered:
    ids: list  # prompt, `[gMASK] <sop>`, then for training answer and `<eop>`
    prefix: (
        int  # index of `<sop>`: what stands before it is bidirectional, what follows is the answer
    )
    image_start: int | None  # index of the first image slot; None without an image
    cut: bool = (
        False  # a length limit shortened the question or the answer, or left out earlier rounds
    )
    dropped: int = 0  # earlier rounds left out
    shortened: int = 0  # tokens left out at the question's end

    @property
    def target_positions(self):
        """Indices whose next token is trained: `[gMASK]` predicts `<sop>`, ..., the last answer token `<eop>`."""
        return range(self.prefix - 1, len(self.ids) - 1)


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

    history: earlier (question, answer) pairs. image_slots: 0 without an image. max_source limits `<img>` .. `[gMASK]`
    in tokens: the oldest rounds go first, then the question's end; image slots never. max_target limits answer +
    `<eop>` + `<sop>`. Raises UserError when max_source cannot hold the image and the frame of the question.
    """
    ask, reply = WORDS[english]
    head = tokenizer.encode("<img>") if image_slots else []
    image_start = len(head) if image_slots else None
    head += [tokenizer.pad] * image_slots
    history, dropped, shortened = list(history), 0, 0
    while True:
        rounds = "".join(f"{ask}{q}\n{reply}{a}\n" for q, a in history)
        body = tokenizer.encode(
            ("</img>" if image_slots else "") + f"{rounds}{ask}{question}\n{reply}"
        )
        over = len(head) + len(body) + 1 - max_source if max_source else 0
        if over <= 0 or not history:
            break
        history.pop(0)
        dropped += 1
    if over > 0:
        shortened = over
        line_break = tokenizer.encode("\n")[-1]
        end = len(body) - 1 - body[::-1].index(line_break)
        if end <= over:
            raise UserError(
                f"a limit of {max_source} tokens before the answer is too small: the image takes {len(head)}, "
                f"the whole prompt {len(head) + len(body) + 1}; raise --max_source_length (training) or "
                "--max_length (demos)"
            )
        body = body[: end - over] + body[end:]
    ids = head + body + [tokenizer.gmask, tokenizer.sop]
    prefix, cut = len(ids) - 1, bool(dropped or shortened)
    if answer is not None:
        reply_ids = tokenizer.encode(answer)
        if max_target and len(reply_ids) > max_target - 2:
            reply_ids, cut = reply_ids[: max_target - 2], True
        ids += reply_ids + [tokenizer.eop]
    return Rendered(ids, prefix, image_start, cut, dropped, shortened)
