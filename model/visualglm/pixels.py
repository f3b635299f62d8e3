"""RGB image -> the normalised pixels that the vision tower reads.

Source: BlipImageEvalProcessor of VisualGLM-6B (CLIP's mean and standard deviation, bicubic resize).
"""

import numpy as np
import torch
from PIL import Image

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A PIL RGB image at (height, width)."""
    height, width = size
    return image.resize((width, height), Image.Resampling.BICUBIC)


def to_pixels(image: Image.Image, size: tuple[int, int]) -> torch.Tensor:
    """PIL RGB image -> float32 [3, height, width], normalised; size = (height, width)."""
    pixels = (
        torch.from_numpy(np.array(resized(image, size), dtype=np.float32)).permute(2, 0, 1) / 255
    )
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    return (pixels - mean) / std
