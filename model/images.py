"""Pictures: a file -> 8-bit RGB -> the normalised pixels the vision tower reads.

Source of the numbers: BlipImageEvalProcessor of VisualGLM-6B (CLIP's mean and standard deviation, bicubic resize).
"""
import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import UserError

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def to_rgb(image):
    """Any Pillow image -> 8-bit RGB, upright; 16-bit and float bands are stretched between their 2nd and 98th percentile."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        band = np.asarray(image, dtype=np.float32)
        low, high = np.percentile(band[np.isfinite(band)], (2, 98)) if np.isfinite(band).any() else (0, 1)
        scaled = np.nan_to_num((band - low) / max(high - low, 1e-6)).clip(0, 1)
        image = Image.fromarray((scaled * 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def read_image(path):
    """A picture file -> PIL image, 8-bit RGB. Raises UserError that names the file and what is wrong with it."""
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except FileNotFoundError:
        raise UserError(f"image {path}: no such file") from None
    except UnidentifiedImageError:
        raise UserError(f"image {path}: not a picture Pillow can read (PNG, JPEG, TIFF, ... expected)") from None
    except Image.DecompressionBombError as error:
        raise UserError(f"image {path}: {error}; cut it into tiles first") from None
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's words for truncated and corrupt files
        raise UserError(f"image {path}: cannot be read ({error}); copy or download it again") from None


def to_pixels(image, size):
    """PIL RGB image -> float32 [3, height, width], normalised; size = (height, width)."""
    resized = image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(resized, dtype=np.float32)).permute(2, 0, 1) / 255
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
