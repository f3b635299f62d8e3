# The first import of each script here: from now on Ctrl-C is no traceback
import command_line  # noqa: F401
