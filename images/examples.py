"""Draw the example images of the page: scenes of the demo's test set, one of them multispectral.

    python images/examples.py

Source: drawn by data/synthetic, nothing is downloaded; licence: that of this repository. The
multispectral one is made up from its colours, and so are its coordinates.
"""

import random
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data.synthetic.scenes import render

FOLDER = Path(__file__).resolve().parent / "examples"
# Those of demo.sh with --seed 1
PLAIN = ("river", "parking", "tennis", "tanks", "intersection")
MULTISPECTRAL = "harbour"  # whose colours, stretched, are still those of a harbour
# Bands in the order of Sentinel-2's: their colour, of which the image has three
COLORS = ("blue", "green", "red")
DIGITAL = 12  # of the multispectral image's numbers for one of the 255 steps
DARKEST = 300


def scene(name):
    """The first test image of a scene of the demo: PIL RGB."""
    image, _ = render(name, random.Random(f"1/{name}/test/0"))
    return image


def multispectral(image):
    """PIL RGB -> uint16 [4, H, W]: blue, green, red, and a near infrared that plants reflect."""
    red, green, blue = np.asarray(image, np.float64).transpose(2, 0, 1)
    infrared = np.clip(2.2 * green - 0.7 * blue - 0.5 * red, 0, 255)
    bands = np.stack([blue, green, red, infrared])
    return (DARKEST + bands * DIGITAL).astype(np.uint16)


def write_multispectral(path, bands):
    import rasterio
    from rasterio.enums import ColorInterp

    _, height, width = bands.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=height,
        width=width,
        count=len(bands),
        dtype="uint16",
        nodata=0,
        crs="EPSG:32650",
        transform=rasterio.transform.from_origin(500_000, 3_400_000, 10, 10),
        compress="deflate",
        predictor=2,
    ) as file:
        file.write(bands)
        file.descriptions = ("B2 blue", "B3 green", "B4 red", "B8 near infrared")
        named = [getattr(ColorInterp, color) for color in COLORS]
        file.colorinterp = [*named, ColorInterp.undefined]


def main():
    FOLDER.mkdir(exist_ok=True)
    for name in PLAIN:
        scene(name).save(FOLDER / f"{name}.png", optimize=True)
    # Its colours, for browsers, which show no TIFF
    image = scene(MULTISPECTRAL)
    image.save(FOLDER / f"{MULTISPECTRAL}.png", optimize=True)
    write_multispectral(FOLDER / f"{MULTISPECTRAL}.tif", multispectral(image))


if __name__ == "__main__":
    main()
