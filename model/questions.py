"""What a person is likely to ask first."""

DEFAULT_PROMPT = "这张遥感图像展现了什么场景？"
ENGLISH_PROMPT = "Describe the image."


def first_question(trained: str, is_english: bool, english: bool | None = None) -> str:
    """The question that a checkpoint was trained on, in English or not, or the usual one.

    english: the language that is wanted; None: whichever.
    """
    if english is None or english == is_english:
        return trained
    return ENGLISH_PROMPT if english else DEFAULT_PROMPT
