"""Images as text: base64, and the data: URIs that pages and OpenAI's protocol take."""

import base64
import io
from typing import Any

from PIL import Image


def as_base64(image: Image.Image, form: str = "PNG", **options: Any) -> str:
    """form: "PNG" or "JPEG"; options: of Pillow's save."""
    content = io.BytesIO()
    image.save(content, form, **options)
    return base64.b64encode(content.getvalue()).decode()


def data_uri(image: Image.Image, form: str = "PNG", **options: Any) -> str:
    """A data: URI; see as_base64."""
    return f"data:image/{form.lower()};base64,{as_base64(image, form, **options)}"
