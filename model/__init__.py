"""RemoteGLM's network and everything around it. The demos and the evaluation need only what is named here."""
from .assistant import Assistant, load_assistant
from .errors import UserError
from .generate import Sampling
from .images import read_image

__all__ = ["Assistant", "Sampling", "UserError", "load_assistant", "read_image"]
