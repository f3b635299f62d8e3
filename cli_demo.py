"""Talk about an aerial image in the terminal.

A dialogue, one answer, answers to a file, or a map of a large scene:

    python cli_demo.py --from_pretrained checkpoints/demo
    python cli_demo.py --from_pretrained checkpoints/demo --image a.tif --prompt 这是哪里？
    python cli_demo.py --from_pretrained checkpoints/demo --input rows.json --output answers.jsonl
    python cli_demo.py --from_pretrained checkpoints/demo --scene big.tif --output map/
    python cli_demo.py --serve http://127.0.0.1:7860      # what web_demo.py serves there answers

Images are files or http(s) addresses. In a dialogue Ctrl-C stops the answer and Ctrl-D leaves; what
was typed is kept for the arrow keys in ~/.remoteglm_history.
"""

import json
import os
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from command_line import (
    Parser,
    add_bands_option,
    add_language_options,
    add_loading_options,
    compares,
    ctrl_c_ends_at_once,
    loading,
)
from data.endpoint_options import at_least
from mapping.arguments import add_scene_options, check_scene_options, scene_options
from model.errors import CONTROL, UserError, printable
from model.sampling import LIMITS, Sampling, limit_problem
from serving.page.words import KINDS, cut_note

if TYPE_CHECKING:
    from model import Assistant

CHECKPOINT = "checkpoints/RemoteGLM"
# Options that are a server's own where --serve is given
OF_CHECKPOINT = (
    *("from_pretrained", "base_path", "tokenizer", "download", "quant", "device", "dtype"),
    *("min_pixels", "max_length", "scene"),
)
ANSWER_SECONDS = 600.0  # that a server may take for an answer, its queue included
SILENCE = 120.0  # seconds without a byte of it
HISTORY = "~/.remoteglm_history"
HISTORY_LINES = 1000

# What a person sees, by --english; reasons: what happens most to an image's path, and what is said
WORDS = {
    False: {
        "image": "请输入图像路径（回车进入纯文本对话，stop 退出）：",
        "user": "用户：",
        "model": "RemoteGLM：",
        "base": "微调前：",
        "hint": "clear 换一张图像，stop 退出。",
        "error": "错误：",
        "truncated": "注意：回答到了长度上限（--max_length）就停下了",
        "reasons": {
            "no such file": "没有这个文件",
            "a folder; name one image in it": "是文件夹，请写出其中的一幅图像",
            "not an image Pillow can read (PNG, JPEG, TIFF, ... expected)": KINDS["unreadable"],
        },
    },
    True: {
        "image": "Path of an image (empty: plain text, stop: leave): ",
        "user": "You: ",
        "model": "RemoteGLM: ",
        "base": "Before fine-tuning: ",
        "hint": "clear: another image, stop: leave.",
        "error": "error: ",
        "truncated": "note: the answer was stopped by the length limit (--max_length)",
        "reasons": {},
    },
}

# Options


def build_parser():
    parser = Parser(__doc__)
    add_loading_options(parser, default=CHECKPOINT)
    add_server_options(parser.add_argument_group("a running server instead of a checkpoint"))
    add_question_options(parser.add_argument_group("question and answer"))
    add_file_options(parser.add_argument_group("answers to a file"))
    add_scene_options(parser.add_argument_group("a map of a scene"))
    add_sampling_options(parser.add_argument_group("sampling"))
    return parser


def add_server_options(group):
    add = group.add_argument
    add(
        "--serve",
        metavar="URL",
        help="talk to what web_demo.py (or another OpenAI-compatible server) serves there, such as "
        "http://127.0.0.1:7860; the language of the answers is the server's",
    )
    add("--model", metavar="NAME", help="the model's name there (default: the first it lists)")
    add(
        "--api-key",
        default=os.environ.get("REMOTEGLM_API_KEY", "").strip(),
        help="the server's (default: the environment's REMOTEGLM_API_KEY, else none)",
    )
    add(
        "--timeout",
        type=at_least(float, 0.1),
        default=SILENCE,
        metavar="SECONDS",
        help="how long the server may send nothing, before an answer and in it (%(default)s)",
    )


def add_question_options(group):
    add = group.add_argument
    add("--image", help="with --prompt: one question about this image, then leave")
    add(
        "--prompt",
        help="one question, then leave; default with --image: the one the checkpoint was trained "
        "on; with --input: for the rows without one",
    )
    add("--base", action="store_true", help="let the untuned base answer as well")
    add("--json", action="store_true", help="print a one-shot answer as one JSON object")
    add(
        "--prompt_zh",
        help="first question of a dialogue; default: the one the checkpoint was trained on",
    )
    add("--prompt_en", help="the same in English")
    add_language_options(add)
    add_bands_option(group)


def add_file_options(group):
    add = group.add_argument
    add(
        "--input",
        help='answer the rows of this .json or .jsonl file: {"img", "prompt"}, or dialogues '
        "(their last question)",
    )
    add(
        "--output",
        help="file of those answers, one JSON object a line; with --scene the folder of the map. "
        "Written as the answers come: the same command continues after an interruption",
    )
    add(
        "--image-root",
        default="",
        help="folder of relative images in rows; default: beside the rows, then the project root",
    )
    add(
        "--batch-size",
        type=int,
        default=4,
        help="rows or tiles answered together; with --serve questions at a time (%(default)s)",
    )
    add(
        "--allow-private-hosts",
        action="store_true",
        help="also read image addresses of this machine and of private networks, for rows that "
        "you trust",
    )


def add_sampling_options(group):
    add = group.add_argument
    add(
        "--max_length",
        type=int,
        default=Sampling.max_length,
        help="prompt and answer together, in tokens (%(default)s)",
    )
    add(
        "--top_p",
        type=float,
        default=Sampling.top_p,
        help="nucleus sampling, 0 to 1; 0: greedy (%(default)s)",
    )
    add(
        "--top_k",
        type=int,
        default=Sampling.top_k,
        help="choose among this many tokens; 1: greedy, 0: all (%(default)s)",
    )
    add(
        "--temperature",
        type=float,
        help=f"0: greedy ({Sampling.temperature}; with --scene 0)",
    )
    add(
        "--repetition_penalty",
        type=float,
        default=Sampling.repetition_penalty,
        help="1: none (%(default)s)",
    )
    add("--seed", type=int, help="makes sampled answers repeatable")


def parse(argv=None):
    parser = build_parser()
    args = parser.parse_args(argv)

    if args.temperature is None:
        args.temperature = 0.0 if args.scene else Sampling.temperature
    for name in LIMITS:
        value = getattr(args, name)
        problem = None if value is None else limit_problem(name, value)
        if problem:
            parser.error(f"--{name} {value}: {problem}")
    if args.batch_size < 1:
        parser.error(f"--batch-size {args.batch_size}: must be at least 1")

    check_server_options(parser, args)
    check_scene_options(parser, args)
    if args.scene:
        return args
    one_of_two = bool(args.input) != bool(args.output)
    if one_of_two or args.input and (args.image or args.json):
        parser.error("--input and --output go together, and without --image and --json")
    if args.json and not (args.image or args.prompt):
        parser.error("--json needs --image or --prompt")
    return args


def check_server_options(parser, args):
    """Ends the script where options of a checkpoint stand beside --serve, or the reverse."""
    from data.connection import is_header

    if not args.serve:
        if args.model:
            parser.error("--model names one of a server: name its --serve")
        if args.timeout != SILENCE:
            parser.error("--timeout waits for a server: name its --serve")
        return
    given = []
    for name in OF_CHECKPOINT:
        if getattr(args, name) != parser.get_default(name):
            given.append(f"--{name}")
    if given:
        parser.error(f"{', '.join(given)}: not with --serve, whose server has loaded its own")
    if not is_header(args.api_key or "x"):
        parser.error("--api-key (or REMOTEGLM_API_KEY): expected a key in ASCII without spaces")


def sampling_of(args):
    return Sampling(**{name: getattr(args, name) for name in LIMITS})


# Answers


def say(name, pieces, stoppable):
    """Print an answer as it comes; return what came of it. Ctrl-C stops one that is stoppable."""
    answer = ""
    try:
        for piece in pieces:
            # The name waits for the first piece: an error is not introduced as an answer.
            shown = printable(piece)
            print(shown if answer else name + shown, end="", flush=True)
            answer += piece
    except KeyboardInterrupt:
        if not stoppable:
            raise
    print("" if answer else name)
    return answer


@dataclass
class Speaker:
    """Answers of a checkpoint; with_base: after the answers of its untuned base.

    english: as for Assistant.stream. Standard error notes what a length limit leaves out, once a
    question, and after an answer that the limit ended.
    """

    assistant: "Assistant"
    sampling: Sampling
    english: bool | None
    with_base: bool
    is_truncated: bool = False  # whether the limit ended the last answer

    @property
    def words(self):
        return WORDS[bool(self.english)]

    def say(self, question, image, history=(), stoppable=False):
        """Print the answers as they come; return the checkpoint's. Raises UserError."""
        on_cut = self._note_cut
        if self.with_base:
            with self.assistant.untuned():
                say(self.words["base"], self._stream(question, image, history, on_cut), stoppable)
            self._note_truncated()
            on_cut = None

        answer = say(self.words["model"], self._stream(question, image, history, on_cut), stoppable)
        self._note_truncated()
        return answer

    def answers(self, question, image):
        """{"base_answer" if with_base, "answer"}; "base_truncated" and "truncated": True where the
        limit ended them. Raises UserError.
        """
        answers = {}
        on_cut = self._note_cut
        if self.with_base:
            with self.assistant.untuned():
                answers["base_answer"] = "".join(self._stream(question, image, (), on_cut))
            if self.is_truncated:
                answers["base_truncated"] = True
            self._note_truncated()
            on_cut = None

        answers["answer"] = "".join(self._stream(question, image, (), on_cut))
        if self.is_truncated:
            answers["truncated"] = True
        self._note_truncated()
        return answers

    def _stream(self, question, image, history, on_cut):
        self.is_truncated = False
        self.is_truncated = yield from self.assistant.stream(
            question, image, history, self.sampling, self.english, on_cut
        )

    def _note_cut(self, rounds, tokens):
        self._note(cut_note(bool(self.english), rounds, tokens))

    def _note_truncated(self):
        if self.is_truncated:
            self._note(self.words["truncated"])

    def _note(self, text):
        print(text, file=sys.stderr, flush=True)


def answer_once(speaker, args, image, question):
    """One question and its answer, as text or, with --json, as one JSON object."""
    if not args.json:
        speaker.say(question, image)
        return
    result = {"image": args.image, "prompt": question} | speaker.answers(question, image)
    print_json(result)


def print_json(value):
    """Print on one line, in ASCII where a character cannot be encoded or commands a terminal."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        text = json.dumps(value)
    print(json.dumps(value) if CONTROL.search(text) else text)


def answer_file(speaker, args, samples, file, first, name):
    """Answer samples into an AnswerFile; first: the question of those without one; name: of the
    checkpoint.

    Raises UserError at the end if some have no answer.
    """
    from tqdm import tqdm

    from model.batch import answer_rows

    samples = [replace(sample, question=sample.question or first) for sample in samples]
    entries = []
    with file:
        for untuned in (True, False):
            if untuned and not speaker.with_base:
                continue
            entries += answer_rows(
                speaker.assistant,
                samples,
                file,
                checkpoint=name,
                base=untuned,
                sampling=speaker.sampling,
                english=args.english,
                bands=args.bands,
                batch_size=args.batch_size,
                allow_private_hosts=args.allow_private_hosts,
                progress=partial(tqdm, unit="batch"),
            )
    report(entries, args.output)


def report(entries, output):
    """Print how many entries of an AnswerFile have an answer. Raises UserError if one has none."""
    errors = [entry["error"] for entry in entries if "error" in entry]
    print(f"{len(entries) - len(errors)} answers: {output}")

    shortened = sum("cut" in entry for entry in entries)
    if shortened:
        print(
            f"{shortened} of them to dialogues beyond the length limit: "
            '"cut" says what was not read',
            file=sys.stderr,
        )
    truncated = sum("truncated" in entry for entry in entries)
    if truncated:
        print(
            f'{truncated} answers were stopped by the length limit, --max_length: "truncated" '
            "marks them",
            file=sys.stderr,
        )
    if errors:
        raise UserError(
            f'{len(errors)} of {len(entries)} rows have no answer but "error"; '
            f"the first: {errors[0]}"
        )


def map_scene(args):
    """A map of args.scene in the folder args.output. Raises UserError."""
    from tqdm import tqdm

    with ctrl_c_ends_at_once():
        from mapping.run import make_map, prepared
        from model import load_assistant

    options = scene_options(args)
    # What can be wrong with the user's files shows before the weights are read.
    with prepared(options) as job:
        assistant = load_assistant(args.from_pretrained, **loading(args))
        english = assistant.english if args.english is None else args.english
        summary = make_map(
            job,
            assistant,
            checkpoint=args.from_pretrained,
            sampling=sampling_of(args),
            english=english,
            progress=tqdm,
        )
    print((options.output / "summary.txt").read_text(encoding="utf-8"), end="")
    print(f"map: {options.output}")
    failed = summary["tiles"]["failed"]
    if failed:
        raise UserError(
            f"{failed} of {summary['tiles']['total']} tiles could not be read; the same command "
            f"tries them again; the first: {summary['first_error']}"
        )


# A dialogue in the terminal


@contextmanager
def line_history():
    """Line editing in a terminal, with what was typed in earlier dialogues."""
    try:
        import readline
    except ImportError:  # Windows
        readline = None
    if readline is None or not sys.stdin.isatty():
        yield
        return

    path = os.path.expanduser(HISTORY)
    with suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(HISTORY_LINES)
    try:
        yield
    finally:
        with suppress(OSError):
            readline.write_history_file(path)


def read_line(prompt, words):
    """A line that a person typed, without blanks around it. Raises EOFError at Ctrl-D."""
    while True:
        try:
            typed = input(prompt)
            typed.encode()
            return typed.strip()
        except KeyboardInterrupt:  # drops the line, as a shell does
            print()
        except UnicodeError as error:  # the terminal sends another encoding than it says
            print(f"{words['error']}not UTF-8 ({error})")


def converse(speaker, read, first):
    """Image after image until `stop`; read: path -> image. Raises EOFError at Ctrl-D."""
    words = speaker.words
    last = None
    while last != "stop":
        path = read_line(words["image"], words).strip("'\"")
        if path == "stop":
            return

        image = None
        try:
            if path:
                image = read(path)
        except KeyboardInterrupt:
            print()
            continue
        except UserError as error:
            print(words["error"] + image_problem(error, printable(path), words["reasons"]))
            continue

        print(words["hint"])
        last = converse_about(speaker, image, first)


def image_problem(error, path, reasons):
    """An error about the image at a path, in the language of the dialogue where it is known."""
    said = reasons.get(str(error).removeprefix(f"image {path}: "))
    return f"图像 {path}：{said}" if said else str(error)


def converse_about(speaker, image, first):
    """Question after question about an image, from `first` on; image: None for plain text.

    Returns the word that ended it, `clear` or `stop`. Raises EOFError at Ctrl-D.
    """
    words = speaker.words
    if image is None:
        question = read_line(words["user"], words)
    else:
        question = first
        print(words["user"] + question)

    history = []
    while question not in ("clear", "stop"):
        try:
            if question:
                answer = speaker.say(question, image, history, stoppable=True)
                if answer:
                    history.append((question, answer))
        except UserError as error:
            print(f"{words['error']}{error}")
        question = read_line(words["user"], words)
    return question


@contextmanager
def open_assistant(args):
    """(what answers, its name): a checkpoint, or with --serve a server. Raises UserError."""
    if not args.serve:
        with ctrl_c_ends_at_once():
            from model import load_assistant

        yield load_assistant(args.from_pretrained, **loading(args)), args.from_pretrained
        return

    from data.endpoint import Settings
    from serving.client import RemoteAssistant

    settings = Settings(
        args.serve,
        args.model or "",
        # So that a long answer is not silent
        stream=True,
        timeout=max(ANSWER_SECONDS, args.timeout),
        silence=args.timeout,
        concurrency=args.batch_size,
    )
    options = "--api-key (or REMOTEGLM_API_KEY), --serve and --model"
    server = RemoteAssistant(settings, args.api_key, max_pixels=args.max_pixels, options=options)
    try:
        yield server, server.name
    finally:
        server.close()


def run(args):
    """What the options ask for. Raises UserError."""
    if args.scene:
        map_scene(args)
        return

    from model import read_image
    from model.answer_file import AnswerFile
    from model.rows import load_rows

    # What can be wrong with the user's files shows before the weights are read.
    image = samples = file = None
    if args.image:
        image = read_image(args.image, args.bands)
    if args.input:
        notes = []
        samples = load_rows(args.input, args.image_root, questions=True, notes=notes)
        for note in notes:
            print(note, file=sys.stderr)
        file = AnswerFile(args.output).open()

    with open_assistant(args) as (assistant, name):
        with_base = compares(args, assistant, name)
        speaker = Speaker(assistant, sampling_of(args), args.english, with_base)
        english = assistant.english if args.english is None else args.english
        first = args.prompt_en if english else args.prompt_zh
        first = first or assistant.first_question(english)

        if args.input:
            answer_file(speaker, args, samples, file, args.prompt or first, name)
        elif args.image or args.prompt:
            answer_once(speaker, args, image, args.prompt or first)
        else:
            talk(speaker, partial(read_image, bands=args.bands), first)


def talk(speaker, read, first):
    """A dialogue in the terminal, until Ctrl-D or `stop`; as `converse`."""
    try:
        with line_history():
            converse(speaker, read, first)
    except EOFError:  # Ctrl-D
        print()


def main(argv=None):
    args = parse(argv)
    # run() imports what is heavy: --help and wrong options answer at once, without torch.
    try:
        run(args)
    except KeyboardInterrupt:
        sys.exit(130)
    except UserError as error:
        sys.exit(f"cli_demo.py: error: {error}")


if __name__ == "__main__":
    main()
