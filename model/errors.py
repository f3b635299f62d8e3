"""What a person can mend: shown as one line by the scripts, never as a traceback."""


class UserError(ValueError):
    """A wrong file, option or setting.

    The message says the value seen, the value expected and what to do.
    """
