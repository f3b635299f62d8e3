"""The captions of a run: what is known of each, what is asked next, what the gate says of it."""

from functools import partial

from data import quality
from data.answers import Refused, usable_text
from data.endpoint import Failed
from data.faults import text_problem
from data.journal import Answer, normalized
from data.peel import peel
from data.records import checked_records
from model.errors import UserError

TASK = (
    "你是遥感影像解译专家。用户给出同一幅遥感图像的若干句（至多五句）英文描述，"
    "句子之间常有重复或语法错误。\n{}\n"
    "不得添加英文中没有的地物、数量、颜色、位置、用途或评价。"
    "只输出这段中文描述，不要解释、编号或引号。"
)
# {style: (instruction, factor on the length that quality.py allows)}
STYLES = {
    "concise": (
        TASK.format(
            "请把它们概括成一句简短的中文描述（四十字以内），只说最主要的地物和它们的关系。"
        ),
        0.75,
    ),
    "detailed": (
        TASK.format("请把它们合并成一段忠实、通顺的中文描述：涵盖各句的信息，相同的内容只说一次；"),
        1,
    ),
    "expanded": (
        TASK.format(
            "请合并并扩写成三到五句中文：逐一交代每种地物及其数量、颜色、排列和相互位置；"
            "展开只限于英文已有的信息，"
        ),
        2,
    ),
    "rewritten": (
        TASK.format(
            "请合并后改写：信息不变，换用与直译不同的句式和词语，不用“这是一张遥感图像”一类的套话；"
        ),
        1,
    ),
}


class Texts:
    """The distinct captions of a run and what is known of each; see open_texts.

    With --look look.py has others, in which a picture belongs to the text.
    """

    # what the texts are, in messages
    what = "captions"
    # their records, as a part of a message
    records = ""

    def __init__(self, args, texts, answers):
        self.args = args
        # {normalized caption: caption}, {normalized caption: [Answer so far]}
        self.texts, self.answers = texts, answers
        # {normalized caption: Chinese}, {normalized caption: (answer, problems)}
        self.known, self.rejected = {}, {}
        # captions of which an answer is good
        self.passed = 0
        # captions that are Chinese already; of these rejected
        self.chinese = self.unfit = 0
        # normalized captions still to ask, and those whose requests are out in a file
        self.left, self.waiting = [], []
        # of a verdict: another one, another verdict
        self.rules = f"{quality.fingerprint()} {args.style}"

    @property
    def instruction(self):
        return STYLES[self.args.style][0]

    @property
    def allowance(self):
        """Factor on the length that quality.py allows."""
        return STYLES[self.args.style][1]

    def leaves_out(self, record):
        """Whether a record cannot be asked for."""
        return False

    def name_of(self, record):
        return normalized(record["caption"])

    def source(self, name):
        """The English that an answer is judged by."""
        return self.texts[name]

    def content(self, name):
        """Of the message that asks: a text or a list of parts."""
        return self.texts[name]

    def judged(self, name, text):
        """What the gate finds in an answer: [(reason, words), ...]."""
        return quality.problems(text, self.source(name), self.instruction, self.allowance)

    def complaint(self, problems):
        return quality.complaint(problems)

    @staticmethod
    def bare(text):
        """An answer without what models put around it."""
        return peel(text)

    def record(self, record, text):
        """What is written for a record and its answer."""
        return {**record, "caption": text}

    def problems(self, name, answer):
        """What the gate finds, judged once; nothing but a refusal with --no-gate."""
        if answer.refused:
            return [("filter", answer.refused)]
        if self.args.no_gate:
            return []
        if answer.problems is None or answer.rules != self.rules:
            answer.problems = self.judged(name, answer.text)
            answer.rules = self.rules
        return answer.problems

    def settled(self, name):
        """True if an answer is good or no further one is wanted."""
        answers, found = self.answers.get(name, []), []
        for answer in answers:
            found = self.problems(name, answer)
            if not found:
                self.known[name] = answer.text
                self.passed += 1
                return True
        if len(answers) > self.args.reask or self._asked_in_vain(answers):
            self.rejected[name] = (answers[-1].text, found)
            return True
        return False

    def _asked_in_vain(self, answers):
        """Whether a filter has refused the very request that would come next."""
        for answer in reversed(answers):
            # the next request quotes it
            if answer.text:
                return False
            if answer.model in ("", self.args.model):
                return True
        return False

    @property
    def is_gated(self):
        """Whether the gate has judged anything."""
        return bool(self.answers or self.chinese) and not self.args.no_gate

    def take(self, name):
        """A caption that is Chinese already: it is not asked, only judged."""
        text = quality.as_description(self.texts[name])
        found = [] if self.args.no_gate else quality.problems(text, None)
        self.chinese += 1
        if found:
            self.unfit += 1
            self.rejected[name] = (text, found)
        else:
            self.known[name] = text

    def receive(self, name, answer):
        """An answer from a file, perhaps of a caption that this run leaves out."""
        self.answers.setdefault(name, []).append(answer)
        # a translation by hand wins
        if name in self.texts and name not in self.known:
            was_rejected = self.rejected.pop(name, None)
            if not self.settled(name) and was_rejected:
                self.left.append(name)

    def refresh(self, out):
        """Sort what is not settled; out: {id: caption} of the requests that are out."""
        captions = set(out.values())
        open_ = []
        for name in dict.fromkeys((*self.left, *self.waiting)):
            if name not in self.known and name not in self.rejected:
                open_.append(name)
        self.left = [name for name in open_ if name not in captions]
        self.waiting = [name for name in open_ if name in captions]

    def counts(self, model):
        """What is known and what is left, as one text."""
        parts = [f"{len(self.known)} known"]
        if self.chinese:
            parts.insert(0, f"{self.chinese} Chinese already")
        if self.rejected:
            parts.append(f"{len(self.rejected)} rejected")
        if self.waiting:
            parts.append(f"{len(self.waiting)} out in batches")
        asked = f"to ask {model}" if self.left else "to ask"
        return ", ".join([*parts, f"{len(self.left)} {asked}"])

    def messages(self, name):
        """Of the next request; after a bad answer it is quoted with the complaint."""
        messages = [
            {"role": "system", "content": self.instruction},
            {"role": "user", "content": self.content(name)},
        ]
        written = [answer for answer in self.answers.get(name, []) if answer.text]
        if written:
            complaint = self.complaint(self.problems(name, written[-1]))
            messages.append({"role": "assistant", "content": written[-1].text})
            messages.append({"role": "user", "content": complaint})
        return messages

    def expected(self, name):
        """Tokens of an answer: half of what is allowed, a token per character."""
        return quality.most_characters(self.source(name), self.allowance) // 2

    async def ask(self, endpoint, journal, name):
        """Ask until the caption is settled. Raises Failed, Stopped, OSError."""
        while name not in self.known and name not in self.rejected:
            entry = {"source": self.texts[name], "style": self.args.style}
            try:
                messages = self.messages(name)
            except UserError as error:
                raise Failed(str(error)) from None
            try:
                take = partial(usable_text, bare=self.bare)
                text, used = await endpoint.answer(messages, self.expected(name), take=take)
                answer = Answer(text, model=self.args.model)
                entry["tokens"] = used
            except Refused as error:
                answer = Answer("", refused=str(error), model=self.args.model)
            self.answers.setdefault(name, []).append(answer)
            self.settled(name)
            await journal.add({**entry, **answer.as_entry()})


def open_texts(args, captions, answers):
    """Texts with what memory and journal know of them. Raises UserError.

    captions: {normalized: caption}; answers: {normalized caption: answers of earlier runs}.
    """
    texts = Texts(args, captions, answers)
    # before the journal: a correction by hand wins over an answer, and the gate trusts it
    for path in args.memory:
        for entry in checked_records(path, "source", _memory_problem, unique=False):
            name = normalized(entry["source"])
            if name in captions:
                texts.known[name] = entry["target"]
    for name, caption in captions.items():
        if name in texts.known:
            continue
        if quality.written_in(caption) == "zh":
            texts.take(name)
        elif not texts.settled(name):
            texts.left.append(name)
    return texts


def _memory_problem(entry):
    return text_problem(entry, "target")
