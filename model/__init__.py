"""RemoteGLM's networks and everything around them. The scripts need only what is named here.

Names are imported when they are first used: reading an image or a row file never loads torch.
"""

from importlib import import_module

PLACES = {
    "Assistant": "model.assistant",
    "Sampling": "model.sampling",
    "UserError": "model.errors",
    "load_assistant": "model.assistant",
    "read_image": "model.images",
}
__all__ = list(PLACES)


def __getattr__(name):
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(PLACES[name]), name)
