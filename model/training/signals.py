"""What asks a run to end, before and while there is something to save. Standard library only."""

import os
import signal
import sys

# Ctrl-C, kill, the end of a login, and the warnings of batch systems
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")


def _handle(handler, names=SIGNALS):
    """Make it their handler -> {number: the one before}; what nohup ignores stays ignored."""
    before = {}
    for name in names:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, handler)
    return before


def leave_on_signals(program):
    """From now on SIGNALS end the process, with one line instead of a traceback."""
    owner = os.getpid()

    def leave(number, frame):
        if os.getpid() == owner and os.environ.get("RANK", "0") == "0":
            name = signal.Signals(number).name
            text = f"{program}: stopped by {name}; saved steps are as they were\n"
            os.write(sys.stderr.fileno(), text.encode())
        # An exception would get lost in an import that is under way
        os._exit(128 + number)

    _handle(leave)


class NotedSignals:
    """A context in which SIGNALS are only noted, in a list."""

    def __init__(self, received):
        self.received = received
        self.handlers = {}

    def __enter__(self):
        self.handlers = _handle(lambda number, frame: self.received.append(number))

    def __exit__(self, *_):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)


def ignore_signals():
    """In a process that another one started: only that one decides, by a second SIGTERM.

    The first may have come to all processes of a job.
    """

    def wait_for_another(number, frame):
        signal.signal(number, lambda *_: os._exit(0))

    _handle(signal.SIG_IGN, [name for name in SIGNALS if name != "SIGTERM"])
    signal.signal(signal.SIGTERM, wait_for_another)
