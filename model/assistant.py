"""A loaded checkpoint that answers questions about images: what scripts and evaluation use."""

from contextlib import contextmanager

from model.family import Returning
from model.opening import open_checkpoint
from model.questions import DEFAULT_PROMPT, first_question
from model.rows import Sample
from model.sampling import Sampling


class Assistant:
    """family: a checkpoint; fingerprint: distinguishes its weights, as prepare_to_answer says."""

    is_remote = False  # a server's: questions go out one by one, many at a time

    def __init__(self, family, fingerprint):
        self.family = family
        self.fingerprint = fingerprint

    @property
    def prompt(self):
        """The question that the checkpoint was trained on."""
        return self.family.card.get("prompt", DEFAULT_PROMPT)

    @property
    def english(self):
        """Whether the checkpoint was trained on questions in the English frame."""
        return bool(self.family.card.get("english"))

    def first_question(self, english=None):
        """The question it was trained on, in this language (None: whichever), or the usual one."""
        return first_question(self.prompt, self.english, english)

    @property
    def has_adapter(self):
        """Whether there is something that `untuned` switches off."""
        return self.family.has_adapter

    def seen(self, image):
        """An RGB image as the network sees it, or None where that is not known."""
        return self.family.seen(image)

    @property
    def is_base(self):
        """Whether nothing has been fine-tuned: no adapter, and no question to train weights on."""
        return not self.has_adapter and "prompt" not in self.family.card

    @contextmanager
    def untuned(self):
        """Context in which the base answers, as if nothing had been fine-tuned."""
        with self.family.untuned():
            yield

    def stream(self, question, image=None, history=(), sampling=None, english=None, on_cut=None):
        """Answer one question; yields pieces of text whose concatenation is the answer.

        image: PIL RGB image (the same object in a later round is not encoded again) or None for
        plain text; history: earlier (question, answer) pairs; sampling: None for the defaults;
        english: None for the language it was trained in.
        Where the dialogue does not fit, the oldest rounds are left out, then the question's end,
        and on_cut(rounds, tokens) is called before the answer begins.
        Returns whether the length limit ended the answer.
        """

        def cut(index, rounds, tokens):
            if on_cut:
                on_cut(rounds, tokens)

        sample = Sample(None, question, None, tuple(history))
        steps = Returning(
            self.family.generate(
                [sample],
                [image],
                sampling or Sampling(),
                english=self.english if english is None else english,
                stream=True,
                on_cut=cut,
            )
        )
        for (piece,) in steps:
            if piece:
                yield piece
        return bool(steps.value and steps.value[0])

    def answer_batch(
        self,
        questions,
        images,
        sampling=None,
        english=None,
        histories=None,
        on_cut=None,
        on_truncated=None,
    ):
        """Answers to a list of questions about a list of PIL images (None: no image), in one batch.

        histories: for each, its earlier (question, answer) pairs; english, on_cut: as for `stream`,
        on_cut with the question's index before; on_truncated(index): the length limit ended that
        answer.
        """
        samples = []
        for question, history in zip(questions, histories or [()] * len(questions)):
            samples.append(Sample(None, question, None, tuple(history)))
        steps = Returning(
            self.family.generate(
                samples,
                images,
                sampling or Sampling(),
                english=self.english if english is None else english,
                on_cut=on_cut,
            )
        )
        answers = [""] * len(samples)
        for pieces in steps:
            answers = [answer + piece for answer, piece in zip(answers, pieces)]
        for index, is_truncated in enumerate(steps.value or ()):
            if is_truncated and on_truncated:
                on_truncated(index)
        return answers

    def score(self, questions, images, texts, english=None):
        """How likely each answer begins with each of its texts: lists of log probabilities.

        questions, images, english: as for answer_batch; texts: for each question at least one.
        None where the family does not say.
        """
        samples = [Sample(None, question, None) for question in questions]
        english = self.english if english is None else english
        return self.family.score(samples, images, texts, english=english)


def load_assistant(name, **options):
    """A checkpoint (base, full or adapter; a folder or a name to look up) -> Assistant.

    options: as for model.opening.open_checkpoint. Raises UserError.
    """
    family = open_checkpoint(name, **options)
    return Assistant(family, family.prepare_to_answer())
