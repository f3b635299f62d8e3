"""What other tools write into a text: the place of its image, other tags, turns.

Every pattern is verbose (re.X): a blank in it stands for nothing. None scans to the end of a text
from each of its characters, which would take minutes for a long one.
"""

import re

OPEN, CLOSE = "(?: < | ＜ | &lt; )", "(?: > | ＞ | &gt; )"
FLAGS = re.I | re.X


def _tag(names):
    """A pattern of tags of these names, also as <|name|>, < name >, ＜name＞ and &lt;name&gt;."""
    return f"{OPEN} [ ]? [|｜]? (?: {names} ) [|｜]? [ ]? {CLOSE}"


def _any(*patterns):
    return f"(?: {' | '.join(patterns)} )"


# A text without one of these has no tags; it is spared the other patterns, which are slow
SIGN = re.compile(r"[<＜\[] | &lt; | data:", FLAGS)

# Where LLaVA, InternVL, InternLM, Qwen, Phi, Gemma, Mistral and llama.cpp put the image. With a
# name inside, <img>a.png</img> and [img]a.png[/img], it is markup as below

IMG = "im (?: g | age )"
IMAGE_TITLE = rf"(?: Picture | Image ) [ -]? 1? [ ]? : \s* (?= {OPEN} | \[ )"  # Picture 1:
IMAGE_BEGINS = _tag("(?: im | img | image | vision )_start | begin_of_image | img | boi")
IMAGE_ENDS = _tag(f"(?: im | img | image | vision )_end | end_of_image | /{IMG} | eoi")
IMAGE_NUMBER = "[_: -]? [01]"
IMAGE_TOKEN = f"[_ -]? (?: placeholder | pad | token | soft_token | {IMAGE_NUMBER} )"
IMAGE_HERE = _any(
    _tag(f"image (?: {IMAGE_TOKEN} )?") + f"(?! [^<＜&]+ {OPEN} /image )",
    _tag("start_of_image") + f"(?: {_tag('image_soft_token')} )?",
    _tag("ImageHere | __media__"),
    _tag("img") + _tag("/img"),
    rf"\[ {IMG} \] (?! [^\[\]]+ \[ /im ) (?: \[ /{IMG} \] | \[ IMG_END \] )?",
)
IMAGE_PLACE = re.compile(
    rf"(?: {IMAGE_TITLE} )? (?: {IMAGE_BEGINS} \s* )? {IMAGE_HERE} (?: \s* {IMAGE_ENDS} )?",
    FLAGS,
)

# What has the form of a tag and stands in plain texts

HTML = "/? su[bp] | br"
LABEL = r"(?-i: NaN | [A-Z]+ :? \d [A-Z0-9]* | [A-Z][A-Za-z]* - \d+ [A-Z]? )"  # WGS84, GF-2
COMPARISON = f"(?<= [A-Za-z0-9] ) {OPEN} [A-Za-z0-9]+ {CLOSE} (?= [A-Za-z0-9] )"  # B8<B4>B3
OF_MODELS = _tag(  # <seg> and <BOX1> are no labels and no comparisons
    _any(
        f"{IMG} | picture | video | frame | mask",
        "seg | b?box | loc | obj | ref | det | region | point | poly | quad",
        "think | cls | sep | pad | unk | unused | [be]o[a-z] | sop",
    )
    + r" [:-]? \d*"
)
PLAIN_TAG = f"(?! {OF_MODELS} )" + _any(_tag(f"{HTML} | {LABEL}"), COMPARISON)

# Any other tag: media, places in an image, reasoning, turns and ends of texts. Of one letter only
# those of models, <p> and <s>: others may be a quantity, a<b>c, a mark on a map, <A>, or bold

NAME = "[A-Za-z_] [A-Za-z0-9_:-]+"
ATTRIBUTES = r"""(?: \s+ (?: [A-Za-z_-]+ \s* )? [=\d"'./(\[] [^<>]{0,255} )?"""
BRACKETED_NAME = _any(
    r"/?INST | TOOL_CALLS | [BE]OS | g?MASK | CLS | SEP | PAD | UNK",
    r"IMG_\w+ | SEG | video | grounding | refer | identify | vqa",
    r"\| \w+ \| | unused\d+ | UNUSED_TOKEN_\d+",
    rf"(?: Round[ ] | {IMG} [_:\ -]? ) \d+",
)
MARKUP = re.compile(
    _any(
        # the image itself, or its name: <img>a.png</img>, [img]a.png[/img], ![](a.png)
        _tag(IMG) + "[^<>]*" + _tag(f"/{IMG}"),
        rf"\[ {IMG} \] [^\[\]]* \[ /{IMG} \]",
        r"!\[ [^\]\[]* \] \( [^)\[]* \)?",
        "data:image/ [a-z.+-]+ ;base64, [a-z0-9+/=]*",
        # tags, by their form: <|im_end|>, </think>, <box id=1>, <0x0A>, <s>
        f"{OPEN} [|｜] [^<>|｜]+ [|｜] {CLOSE}",
        f"(?! {PLAIN_TAG} ) {OPEN} /? {NAME} {ATTRIBUTES} /? {CLOSE}",
        f"{OPEN} (?: /[ps] | 0x[0-9A-F]{{2}} ) {CLOSE}",
        f"(?<! [A-Za-z0-9] ) {OPEN} [ps] {CLOSE}",
        # coordinates: {<12><34>
        r"(?<! [A-Za-z0-9] ) (?: \{ (?: <\d+> )+ | (?: <\d+> ){2,} )",
        # [INST]
        rf"\[ {BRACKETED_NAME} \]",
    ),
    FLAGS,
)

# Turns in one text: "### Human: ...### Assistant: ...", "USER: ... ASSISTANT: ...". One role alone
# is no sign of them, nor is one within a line and without a capital

ASKING, ANSWERING = ("user", "human"), ("assistant", "gpt", "bot")
ASKING_OF_ALPACA, ANSWERING_OF_ALPACA = "instruction", "response"  # only behind ###


def _turn(names, name_of_alpaca):
    """A pattern of how a turn of a role begins."""
    names = " | ".join(names)
    behind_hashes = rf"\#\#\# [ ]? (?: {names} | {name_of_alpaca} )"
    at_start = rf"^ [ \t\u3000]* (?: {names} )"
    with_capital = f"(?<! [A-Za-z0-9_] ) (?= (?-i: [A-Z] ) ) (?: {names} )"
    # Of a transcript in Markdown **User**: and **User:**
    ends = r"(?: \*\* )? [ ]{0,2} [:：]"
    return re.compile(_any(behind_hashes, at_start, with_capital) + ends, FLAGS | re.M)


ASKING_TURN = _turn(ASKING, ASKING_OF_ALPACA)
ANSWERING_TURN = _turn(ANSWERING, ANSWERING_OF_ALPACA)


def signs_of_turns(text: str) -> list[str]:
    """How the turns of a text begin, a sign of each role; [] where one has none."""
    small = text.lower()
    if not any(name in small for name in (*ANSWERING, ANSWERING_OF_ALPACA)):
        return []  # at once
    signs = [ASKING_TURN.search(text), ANSWERING_TURN.search(text)]
    return [sign[0].strip() for sign in signs if sign] if all(signs) else []


def without_places(text: str) -> str:
    """A text without what marks the place of its image, and the space around that."""
    parts = IMAGE_PLACE.split(text)
    parts[1:] = [part.lstrip() for part in parts[1:]]
    parts[:-1] = [part.rstrip() for part in parts[:-1]]
    return " ".join(filter(None, parts))
