"""A loaded checkpoint that answers questions about pictures: what the demos and the evaluation use."""

import re
from contextlib import contextmanager

import torch

from model.errors import UserError
from model.visualglm import loading as checkpoint
from model.visualglm.generate import Sampling, generate
from model.visualglm.packing import pack
from model.visualglm.pixels import to_pixels
from model.visualglm.prompt import render
from model.visualglm.stored import fingerprint

DEFAULT_PROMPT = "这张遥感图像展现了什么场景？"
CHINESE_IDS = slice(
    63823, 130000
)  # of ChatGLM's vocabulary: banned when the answer is to be English
FULL_WIDTH = str.maketrans(",!:;?", "，！：；？")
ANSWER_SHARE = 8  # of the length limit, one part in so many is kept free of the prompt
DATE = ("[[训练时间]]", "2023年")


def tidy(text):
    """The official post-processing: full-width punctuation next to Chinese, the training date filled in."""
    text = text.strip().replace(*DATE)
    text = re.sub(
        r"(?<=[\u4e00-\u9fff])[,!:;?]", lambda mark: mark.group().translate(FULL_WIDTH), text
    )
    return re.sub(
        r"[,!:;?](?=[\u4e00-\u9fff])", lambda mark: mark.group().translate(FULL_WIDTH), text
    )


def settled(text):
    """The beginning of an unfinished answer that no later token can change."""
    if DATE[0][:2] in text:
        opened = text.rindex(DATE[0][:2])
        if DATE[0] not in text[opened:]:
            text = text[:opened]
    return re.sub(r"( n'?)?[ ,!:;?'.\[\ufffd]*$", "", text)


class Assistant:
    """network, its tokenizer, the settings of the checkpoint (`card`) and a short hash that tells its weights apart."""

    def __init__(self, network, tokenizer, card, fingerprint):
        self.network, self.tokenizer, self.card, self.fingerprint = (
            network,
            tokenizer,
            card,
            fingerprint,
        )
        self.prompt = card.get("prompt", DEFAULT_PROMPT)  # the question it was trained on
        self._last_image, self._last_image_untuned = (
            (None, None),
            (None, None),
        )  # a picture and its embeddings

    @property
    def image_slots(self):
        return self.network.config.image_length

    @property
    def has_adapter(self):
        """Whether there is something that `untuned` switches off."""
        return bool(checkpoint.adapter_names(self.network))

    @property
    def is_base(self):
        """Whether nothing has been fine-tuned: no adapter, and no question that the weights were trained on."""
        return not self.has_adapter and "prompt" not in self.card

    @contextmanager
    def untuned(self):
        """Context in which the base answers, as if nothing had been fine-tuned."""

        def exchange():  # fine-tuning may have changed what is seen of a picture, too
            self._last_image, self._last_image_untuned = self._last_image_untuned, self._last_image

        exchange()
        try:
            with checkpoint.without_adapter(self.network):
                yield
        finally:
            exchange()

    @torch.inference_mode()
    def encode_images(self, images):
        """PIL images -> [I, Q, D] image embeddings."""
        size = self.network.config.eva_args["image_size"]
        return self.network.encode_images(torch.stack([to_pixels(image, size) for image in images]))

    def stream(
        self, question, image=None, history=(), sampling=Sampling(), english=False, on_cut=None
    ):
        """Answer one question; yields pieces of text whose concatenation is the answer.

        image: PIL image (the same object in a later round is not encoded again) or None for plain text;
        history: earlier (question, answer) pairs; what a question adds changes how all before it is read, so the whole
        dialogue is read anew, in one pass. Where it does not fit, the oldest rounds are left out, then the question's end,
        and on_cut is called before the answer begins, with the numbers of rounds and of the question's tokens left out.
        """
        embeds = None
        if image is not None:
            if self._last_image[0] is not image:
                self._last_image = (image, self.encode_images([image]))
            embeds = self._last_image[1]
        row = self._render(question, embeds is not None, history, sampling, english)
        if row.cut and on_cut:
            on_cut(row.dropped, row.shortened)
        ids, said = [], ""
        for (token,) in generate(
            self.network,
            [row.ids],
            eop=self.tokenizer.eop,
            sampling=sampling,
            image_embeds=embeds,
            image_start=row.image_start or 0,
            banned=CHINESE_IDS if english else None,
        ):
            ids.append(token)
            text = tidy(settled(self.tokenizer.decode(ids)))
            if len(text) > len(said) and text.startswith(said):
                yield text[len(said) :]
                said = text
        text = tidy(self.tokenizer.decode(ids))
        if len(text) > len(said):
            yield text[len(said) :]

    def answer_batch(
        self, questions, images, sampling=Sampling(), english=False, histories=None, on_cut=None
    ):
        """Answers to a list of questions about a list of PIL images (None: no picture), in one batch.

        histories: for each, its earlier (question, answer) pairs; on_cut: as for `stream`, with the question's index before.
        """
        shown = [i for i, image in enumerate(images) if image is not None]
        rows = [
            self._render(q, image is not None, history, sampling, english)
            for q, image, history in zip(questions, images, histories or [()] * len(questions))
        ]
        for index, row in enumerate(rows):
            if row.cut and on_cut:
                on_cut(index, row.dropped, row.shortened)
        embeds = self.encode_images([images[i] for i in shown]) if shown else None
        ids = [[] for _ in rows]
        for tokens in generate(
            self.network,
            [row.ids for row in rows],
            eop=self.tokenizer.eop,
            sampling=sampling,
            image_embeds=embeds,
            image_rows=torch.tensor(shown, device=self.network.device),
            image_start=rows[shown[0]].image_start if shown else 0,
            banned=CHINESE_IDS if english else None,
        ):
            for row, token in zip(ids, tokens):
                if token is not None:
                    row.append(token)
        return [tidy(self.tokenizer.decode(row)) for row in ids]

    def _render(self, question, with_image, history, sampling, english):
        limit = min(sampling.max_length, self.network.config.max_sequence_length)
        limit -= limit // ANSWER_SHARE
        return render(
            self.tokenizer,
            question,
            history=history,
            image_slots=self.image_slots if with_image else 0,
            english=english,
            max_source=limit - 1,
        )


def load_assistant(name, *, cuda_graphs=False, **options):
    """A checkpoint (base, full or adapter; a folder or a name to look up) -> Assistant. Raises UserError.

    cuda_graphs: record the decode step on a GPU, for every answer anew, and replay it: the same tokens from fewer launches.

    options, all of checkpoint.load: base, where an adapter's base lies, if not where it was; tokenizer, a vocabulary file;
    device: "cuda", "mps", "cpu"; dtype: "float32", "float16", "bfloat16"; bits: 8 or 4; download: "huggingface" or
    "modelscope". None chooses, or does without.
    """
    network, tokenizer, card = checkpoint.load(name, **options)
    mark = f"{fingerprint(network.state_dict())}-{network.bits or network.dtype}"  # before packing hides the weights
    pack(network, skip=network.base_values)
    if cuda_graphs:
        if network.device.type != "cuda":
            raise UserError(
                f"CUDA graphs need a CUDA GPU, the device is {network.device.type}: leave them out"
            )
    return Assistant(network, tokenizer, card, mark)
