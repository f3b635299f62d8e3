"""What a person can mend: shown as one line by the scripts, never as a traceback."""


class UserError(ValueError):
    """A wrong file, option or setting.

    The message says the value seen, the value expected and what to do.
    """


class NoAnswerError(UserError):
    """One question was not answered; others may be. is_refused: a filter of a server refuses it."""

    def __init__(self, message: str, is_refused: bool = False):
        super().__init__(message)
        self.is_refused = is_refused
