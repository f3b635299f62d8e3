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
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

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
from model.errors import CONTROL, UserError
from model.sampling import LIMITS, Sampling, limit_problem
from serving.terminal import Speaker, talk

CHECKPOINT = "checkpoints/RemoteGLM"
# Options that are a server's own where --serve is given
OF_CHECKPOINT = (
    *("from_pretrained", "base_path", "tokenizer", "download", "quant", "device", "dtype"),
    *("min_pixels", "max_length", "scene"),
)
ANSWER_SECONDS = 600.0  # that a server may take for an answer, its queue included
SILENCE = 120.0  # seconds without a byte of it


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
