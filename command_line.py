"""What the command lines of all scripts share. Never imports torch: --help answers at once."""

import argparse
import atexit
import errno
import io
import os
import signal
import sys
from contextlib import contextmanager, suppress

# Signals that end a script; Windows has no SIGHUP
ENDING = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
# A full disk, a quota, a limit of file sizes, a terminal that went away
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
NO_TEMPORARY_FOLDER = "No usable temporary directory"  # Python's words where none takes a file


def show_what_can_be_shown():
    """Let no character that a terminal or file cannot encode end a script: it is shown escaped.

    A Chinese answer in a terminal of cp1252, an emoji in one of gbk.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _say_no_room(error):
    program = os.path.basename(sys.argv[0])
    advice = "" if error.errno == errno.EIO else "; make room"
    print(f"{program}: error: {error}{advice}", file=sys.stderr)


def _show_no_traceback(kind, error, traceback):
    """Of Ctrl-C while a script's imports are under way, of a reader of its output that left
    (| head), and of a disk or terminal that takes no more, where libraries keep files as well.
    """
    if issubclass(kind, (KeyboardInterrupt, BrokenPipeError)):
        return
    is_full = getattr(error, "errno", None) in NO_ROOM or NO_TEMPORARY_FOLDER in str(error)
    if issubclass(kind, OSError) and is_full:
        _say_no_room(error)
        return
    sys.__excepthook__(kind, error, traceback)


def _leave_output():
    """Write what is left of standard output; Python itself would show a traceback."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return
        _say_no_room(error)
        os._exit(1)
    except (AttributeError, ValueError):  # there is none any more
        return


def _leave_output_to_ctrl_c():
    _leave_output()
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _end_by_ctrl_c():
    """Let Ctrl-C that nothing caught be the end, as a shell expects it; Python itself would do so
    too, but forgets it where torch has opened a process group: exit status 1.
    """
    if getattr(sys, "last_type", None) is KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)


sys.excepthook = _show_no_traceback
atexit.register(_end_by_ctrl_c)  # called after all others, the first one registered
atexit.register(_leave_output)


class _Unfailing:
    """A text stream that leaves out what it cannot write."""

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text):
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self):
        with suppress(OSError):
            self._stream.flush()


@contextmanager
def output_may_fail():
    """A context in which printing raises nothing: where a full disk, or a terminal that went away,
    must not end what is worth more than its lines.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_Unfailing, before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class Parser(argparse.ArgumentParser):
    """The docstring of a script is its help; a wrong option is one line, not the whole usage.

    Every option may be spelled with - or _ between its words. Words that are no text are refused,
    names of files as well: rows, cards and reports could not hold them. From the first Parser of a
    script on, printing does not fail at a character.
    """

    def __init__(self, description, **options):
        show_what_can_be_shown()
        super().__init__(
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,
        )

    def error(self, message):
        # One line, however many processes a launcher has started
        is_first = os.environ.get("LOCAL_RANK", "0") == "0"
        text = f"{self.prog}: error: {message}; all options: --help\n"
        self.exit(2, text if is_first else None)

    def parse_known_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else args
        words = [self._spelled(str(word)) for word in args]
        self._check_text(words)
        return super().parse_known_args(words, namespace)

    def _check_text(self, words):
        """Ends the script at bytes of another encoding, which Python shows as half surrogates."""
        option = ""
        for word in words:
            if word.startswith("--"):
                option = word.partition("=")[0]
            try:
                word.encode()
            except UnicodeEncodeError:
                value = word.removeprefix(f"{option}=")
                self.error(
                    f"{option} {value}: expected text in {sys.getfilesystemencoding()}, the "
                    "encoding of the locale; write it so, or set LC_ALL to what the terminal sends"
                )

    def _spelled(self, word):
        """`--batch_size=4` -> `--batch-size=4` where that is how the option was added."""
        name, equals, value = word.partition("=")
        if not word.startswith("--") or name in self._option_string_actions:
            return word
        for known in self._option_string_actions:
            if known.replace("_", "-") == name.replace("_", "-"):
                return known + equals + value
        return word


@contextmanager
def sigterm_cleans_up():
    """A context in which SIGTERM and SIGHUP are exceptions, so that what was begun is ended and
    removed. A SIGHUP that is ignored, as under nohup, stays so.

    The handlers of before come back: those that stayed would go to every process forked later.
    """
    before = {number: signal.getsignal(number) for number in ENDING}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ctrl_c_ends_at_once():
    """A context of imports, in which Ctrl-C ends the process where it stands, without a word.

    C code that imports, as torch's does, would lose a KeyboardInterrupt or abort at it. So does
    Ctrl-C once the script is at its end, where the clean-up of what was imported would show one.
    """
    before = signal.getsignal(signal.SIGINT)
    if before != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    atexit.register(_leave_output_to_ctrl_c)  # called before the clean-up of what was imported


def add_loading_options(parser, whole=False, **from_pretrained):
    """The options by which every script finds and loads a checkpoint; `loading` hands them on.

    whole: without those that change its numbers, for a script that copies it as it is.
    """
    add = parser.add_argument_group("checkpoint").add_argument
    add(
        "--from_pretrained",
        help="checkpoint: a folder (an adapter, a full checkpoint, a base in SAT's or Hugging "
        "Face's layout) or a name such as visualglm-6b, looked up in SAT_HOME and the Hugging Face "
        "and ModelScope caches",
        **from_pretrained,
    )
    add("--base_path", help="the adapter's base, if it is no longer where it was in training")
    add(
        "--tokenizer",
        help="vocabulary file; default: in the checkpoint folder, then in those caches",
    )
    add(
        "--download",
        nargs="?",
        const="huggingface",
        choices=("huggingface", "modelscope"),
        help="fetch a checkpoint that is not found (default source: huggingface, or the mirror "
        "that HF_ENDPOINT names)",
    )
    if whole:
        return
    add(
        "--max_pixels",
        type=int,
        help="of a base of transformers, and what a server is sent: larger images are shrunk to "
        "so many pixels, whatever their shape; default: as in training, of a plain base 768 x 768, "
        "to a server 2048 x 2048",
    )
    add("--min_pixels", type=int, help="of such a base: smaller images are enlarged to so many")
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
        help="default: float16 on a GPU; on a CPU float32, or bfloat16 with --quant and for large "
        "networks",
    )


def loading(args):
    """The arguments of load_assistant, from those options."""
    return {
        "base": args.base_path,
        "tokenizer": args.tokenizer,
        "bits": args.quant,
        "download": args.download,
        "device": args.device,
        "dtype": args.dtype,
        "pixels": (args.min_pixels, args.max_pixels),
    }


def add_bands_option(parser):
    parser.add_argument(
        "--bands",
        type=int,
        nargs=3,
        metavar=("R", "G", "B"),
        help="bands shown as red, green and blue, counted from 1, such as 4 3 2; needs rasterio. "
        "Default: what the image says, else its first three",
    )


def add_language_options(add):
    """args.english: True, False, or None for the language that the checkpoint was trained in."""
    add(
        "--english",
        action="store_const",
        const=True,
        help="questions and answers in English (default: as the checkpoint was trained)",
    )
    add(
        "--chinese",
        dest="english",
        action="store_const",
        const=False,
        help="in Chinese, also of a checkpoint that was trained with --english",
    )


def compares(args, assistant, name):
    """Whether the untuned base answers as well, as --base asks; one line if there is none.

    name: of the checkpoint.
    """
    if args.base and not assistant.has_adapter:
        # Here: before the hooks of this module are set, Ctrl-C among imports shows a traceback
        from model.errors import printable

        print(
            f"--base is left out: {printable(str(name))} has no adapter that could be switched off",
            file=sys.stderr,
        )
    return args.base and assistant.has_adapter
