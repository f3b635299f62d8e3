"""Talk about an aerial image in the terminal.

    python cli_demo.py --from_pretrained checkpoints/demo                                         # a dialogue
    python cli_demo.py --from_pretrained checkpoints/demo --image a.tif --prompt 这是哪里？         # one answer
    python cli_demo.py --from_pretrained checkpoints/demo --input rows.json --output answers.jsonl # answers to a file

Images are files or http(s) addresses. In a dialogue Ctrl-C stops the answer and Ctrl-D leaves; what was typed
is kept for the arrow keys in ~/.remoteglm_history.
"""

import argparse
import json
import os
import sys
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial

HISTORY = "~/.remoteglm_history"

WORDS = {  # what a person sees, by --english
    False: {
        "image": "请输入图像路径（回车进入纯文本对话，stop 退出）：",
        "user": "用户：",
        "model": "RemoteGLM：",
        "base": "微调前：",
        "hint": "clear 换一张图像，stop 退出。",
        "error": "错误：",
        "cut": "注意：超出长度上限，未读入",
        "rounds": "最早的 {} 轮对话",
        "tail": "问题的末尾",
        "and": "和",
    },
    True: {
        "image": "Path of an image (empty: plain text, stop: leave): ",
        "user": "You: ",
        "model": "RemoteGLM: ",
        "base": "Before fine-tuning: ",
        "hint": "clear: another image, stop: leave.",
        "error": "error: ",
        "cut": "note: beyond the length limit and not read: ",
        "rounds": "the oldest rounds ({})",
        "tail": "the end of the question",
        "and": " and ",
    },
}


class Parser(argparse.ArgumentParser):
    """Of the scripts at the top: their docstring is the help, and what is wrong is one line, which the usage of forty options would hide."""

    def __init__(self, description):
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}; all options: --help\n")


def add_loading_options(parser, whole=False, **from_pretrained):
    """The options by which every script finds and loads a checkpoint; `loading` hands them on. whole: as it is on disk."""
    add = parser.add_argument_group("checkpoint").add_argument
    add(
        "--from_pretrained",
        help="checkpoint: a folder (an adapter, a full checkpoint, a base in SAT's or Hugging Face's layout) "
        "or a name such as visualglm-6b, looked up in SAT_HOME and the Hugging Face and ModelScope caches",
        **from_pretrained,
    )
    add("--base_path", help="the adapter's base, if it is no longer where it was in training")
    add(
        "--tokenizer",
        help="vocabulary file; default: ice_text.model in the checkpoint folder, then in those caches",
    )
    add(
        "--download",
        nargs="?",
        const="huggingface",
        choices=("huggingface", "modelscope"),
        help="fetch a checkpoint that is not found (default source: huggingface, or the mirror HF_ENDPOINT names)",
    )
    if whole:
        return
    add(
        "--quant",
        type=int,
        choices=(8, 4),
        help="weights in 8 or 4 bits: less memory; default: as they are",
    )
    add("--device", help="cuda, mps or cpu; default: the first that works")
    add(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="default: float16 on a GPU; on a CPU float32, or bfloat16 with --quant and for large networks",
    )
    add(
        "--cuda_graphs",
        action="store_true",
        help="record the decode step as CUDA graphs: fewer launches, the same tokens; not yet tried on "
        "real hardware",
    )


def loading(args):
    return {
        "base": args.base_path,
        "tokenizer": args.tokenizer,
        "bits": args.quant,
        "download": args.download,
        "device": args.device,
        "dtype": args.dtype,
    } | ({"cuda_graphs": True} if vars(args).get("cuda_graphs") else {})


def add_bands_option(parser):
    parser.add_argument(
        "--bands",
        type=int,
        nargs=3,
        metavar=("R", "G", "B"),
        help="bands shown as red, green and blue, counted "
        "from 1, such as 4 3 2; needs rasterio. Default: what the image says, else its first three",
    )


def compares(args, assistant):
    """Whether the untuned base is to answer as well, as --base asks; one line where there is none apart."""
    if args.base and not assistant.has_adapter:
        print(
            f"--base is left out: {args.from_pretrained} has no adapter that could be switched off",
            file=sys.stderr,
        )
    return args.base and assistant.has_adapter


def cut_note(english, rounds, tokens):
    """One line about what did not fit into the length limit; rounds and tokens as Assistant.stream reports them."""
    words = WORDS[english]
    parts = [words["rounds"].format(rounds)] * bool(rounds) + [words["tail"]] * bool(tokens)
    return words["cut"] + words["and"].join(parts)


def parse(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add_loading_options(parser, default="checkpoints/RemoteGLM")
    add("--base", action="store_true", help="show the answer of the untuned base as well")
    add("--image", help="with --prompt: one question about this image, then leave")
    add(
        "--prompt",
        help="one question, then leave; default with --image: the one the checkpoint was trained on; with --input: "
        "for the rows without one",
    )
    add(
        "--input",
        help='answer the rows of this .json or .jsonl file: {"img", "prompt"}, or dialogues (their last question)',
    )
    add(
        "--output",
        help="file of those answers, one JSON object a line, appended as they come: a second run goes on",
    )
    add(
        "--image-root",
        default="",
        help="folder of relative images in rows; default: beside the rows, then the project root",
    )
    add("--batch-size", type=int, default=4, help="rows answered together (%(default)s)")
    add_bands_option(parser)
    add(
        "--prompt_zh",
        help="first question of a dialogue; default: the one the checkpoint was trained on",
    )
    add("--prompt_en", default="Describe the image.", help="the same with --english (%(default)s)")
    add("--english", action="store_true", help="ask and answer in English")
    add("--json", action="store_true", help="print a one-shot answer as one JSON object")
    add(
        "--max_length",
        type=int,
        default=2048,
        help="prompt and answer together, in tokens (%(default)s)",
    )
    add(
        "--top_p", type=float, default=0.4, help="nucleus sampling, 0 to 1; 0: greedy (%(default)s)"
    )
    add(
        "--top_k",
        type=int,
        default=100,
        help="choose among this many tokens; 1: greedy, 0: all (%(default)s)",
    )
    add("--temperature", type=float, default=0.8, help="0: greedy (%(default)s)")
    add("--repetition_penalty", type=float, default=1.2, help="1: none (%(default)s)")
    add("--seed", type=int, help="makes sampled answers repeatable")
    args = parser.parse_args(argv)
    for name, low, high in (
        ("max_length", 2, None),
        ("top_p", 0, 1),
        ("top_k", 0, None),
        ("temperature", 0, None),
        ("batch-size", 1, None),
    ):
        value = getattr(args, name.replace("-", "_"))
        if value < low or high is not None and value > high:
            parser.error(
                f"--{name} {value}: must be at least {low}"
                + (f" and at most {high}" if high else "")
            )
    if args.repetition_penalty <= 0:
        parser.error(f"--repetition_penalty {args.repetition_penalty}: must be above 0")
    if bool(args.input) != bool(args.output) or args.input and (args.image or args.json):
        parser.error("--input and --output go together, and without --image and --json")
    if args.json and not (args.image or args.prompt):
        parser.error("--json needs --image or --prompt")
    return args


def main(argv=None):
    args = parse(argv)
    try:
        # Imported here: --help and wrong options answer at once, without loading torch.
        from model import UserError

        run(args)
    except KeyboardInterrupt:
        sys.exit(130)
    except UserError as error:
        sys.exit(f"cli_demo.py: error: {error}")


def run(args):
    from model import Sampling, load_assistant, read_image
    from model.batch import AnswerFile
    from model.rows import load_rows

    sampling = Sampling(
        max_length=args.max_length,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        repetition_penalty=args.repetition_penalty,
        seed=args.seed,
    )
    # What can be wrong with the user's files shows before the weights are read.
    image = read_image(args.image, args.bands) if args.image else None
    rows = (
        (load_rows(args.input, args.image_root, questions=True), AnswerFile(args.output))
        if args.input
        else None
    )
    assistant = load_assistant(args.from_pretrained, **loading(args))
    first = args.prompt_en if args.english else args.prompt_zh or assistant.prompt
    base = compares(args, assistant)
    if rows:
        return answer_file(args, assistant, *rows, args.prompt or first, sampling, base)

    def note(*cut):
        print(cut_note(args.english, *cut), file=sys.stderr, flush=True)

    def stream(question, image, history=(), on_cut=note):
        return assistant.stream(question, image, history, sampling, args.english, on_cut)

    words, dialogue = WORDS[args.english], not (args.image or args.prompt)

    def ask(*asked):
        """Print the checkpoint's answer, after the untuned base's where that was asked for; return it."""
        if base:
            with assistant.untuned():
                say(words["base"], stream(*asked), stoppable=dialogue)
        return say(
            words["model"], stream(*asked, on_cut=None if base else note), stoppable=dialogue
        )  # said once

    if dialogue:
        try:
            with line_history():
                return converse(ask, partial(read_image, bands=args.bands), first, words)
        except EOFError:  # Ctrl-D
            return print()
    question = args.prompt or first
    if not args.json:
        return ask(question, image)
    result = {"image": args.image, "prompt": question}
    if base:
        with assistant.untuned():
            result["base_answer"] = "".join(stream(question, image))
    result["answer"] = "".join(stream(question, image, on_cut=None if base else note))
    print(json.dumps(result, ensure_ascii=False))


def answer_file(args, assistant, samples, file, first, sampling, base):
    """Answer rows into a file. Raises UserError at the end if some have no answer."""
    from tqdm import tqdm

    from model import UserError
    from model.batch import answer_rows

    samples = [replace(sample, question=sample.question or first) for sample in samples]
    with file:
        entries = [
            entry
            for untuned in ([True] if base else []) + [False]
            for entry in answer_rows(
                assistant,
                samples,
                file,
                checkpoint=args.from_pretrained,
                base=untuned,
                sampling=sampling,
                english=args.english,
                bands=args.bands,
                batch_size=args.batch_size,
                progress=partial(tqdm, unit="batch"),
            )
        ]
    failed = [entry["error"] for entry in entries if "error" in entry]
    print(f"{len(entries) - len(failed)} answers: {args.output}")
    if shortened := sum("cut" in entry for entry in entries):
        print(
            f'{shortened} of them to dialogues beyond the length limit: "cut" says what was not read',
            file=sys.stderr,
        )
    if failed:
        raise UserError(
            f'{len(failed)} of {len(entries)} rows have no answer but "error"; the first: {failed[0]}'
        )


def say(name, pieces, stoppable):
    """Print an answer as it comes; return what came of it. Ctrl-C stops one that is stoppable."""
    answer = ""
    try:
        for piece in pieces:
            print(piece if answer else name + piece, end="", flush=True)
            answer += piece
    except KeyboardInterrupt:
        if not stoppable:
            raise
    print("" if answer else name)
    return answer


def converse(ask, read, first, words):
    """Image after image, question after question, until `stop`. Raises EOFError at Ctrl-D."""
    from model import UserError

    def line(prompt):
        while True:
            try:
                typed = input(words[prompt])
                typed.encode()
                return typed.strip()
            except KeyboardInterrupt:  # drops the line, as a shell does
                print()
            except UnicodeError as error:
                print(f"{words['error']}not UTF-8 ({error})")

    while (path := line("image").strip("'\"")) != "stop":
        try:
            image = read(path) if path else None
        except KeyboardInterrupt:
            print()
            continue
        except UserError as error:
            print(f"{words['error']}{error}")
            continue
        print(words["hint"])
        history, question = [], first
        if image is None:
            question = line("user")
        else:
            print(words["user"] + question)
        while question not in ("clear", "stop"):
            try:
                if question and (answer := ask(question, image, history)):
                    history.append((question, answer))
            except UserError as error:
                print(f"{words['error']}{error}")
            question = line("user")
        if question == "stop":
            return


@contextmanager
def line_history():
    """Line editing in a terminal, with what was typed in earlier dialogues."""
    try:
        import readline
    except ImportError:  # Windows
        readline = None
    if not (readline and sys.stdin.isatty()):
        yield
        return
    path = os.path.expanduser(HISTORY)
    with suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(1000)
    try:
        yield
    finally:
        with suppress(OSError):
            readline.write_history_file(path)


if __name__ == "__main__":
    main()
