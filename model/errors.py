"""What a person can mend: shown as one line by the scripts, never as a traceback."""

import re

# Characters that a terminal obeys: C0 but tab and line ends, DEL, C1
CONTROL = re.compile(r"[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x9f]|\r(?!\n)")


def printable(text: str) -> str:
    """A text of a model, a server or a file as a terminal may show it: no character commands it."""
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


class UserError(ValueError):
    """A wrong file, option or setting.

    The message says the value seen, the value expected and what to do.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class NoAnswerError(UserError):
    """One question was not answered; others may be. is_refused: a filter of a server refuses it."""

    def __init__(self, message: str, is_refused: bool = False):
        super().__init__(message)
        self.is_refused = is_refused
