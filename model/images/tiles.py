"""A large scene, read window by window: never more of it in memory than is shown.

GeoTIFF and JPEG 2000 by rasterio, from the overviews where a window is reduced; other pictures are
decoded whole by Pillow, up to its limit.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from model.errors import UserError
from model.images import pillow, raster
from model.images.errors import TOO_LARGE, ImageError
from model.images.reading import open_source, unreadable

# Megabytes for decoded blocks: a row of tiles of a wide scene that is stored in strips
SETTINGS = raster.SETTINGS | {"GDAL_CACHEMAX": 256}
# Pixels, the longer side of the picture that stands for the whole scene
OVERVIEW = 2048


class Window(NamedTuple):
    """A part of a scene, in pixels from its upper left corner."""

    left: int
    top: int
    width: int
    height: int


class Scene:
    """An open scene.

    crs, transform: rasterio's, None without georeference; overview: PIL RGB, at most OVERVIEW
    long; valid: bool [its height, its width], False where the scene has no data.
    """

    def __init__(self, path, view, size, georeference, stretch):
        self.path = str(path)
        self.width, self.height = size
        self.crs, self.transform = georeference
        self._view = view
        self._lock = threading.Lock()  # GDAL's datasets serve one thread at a time

        factor = max(1, -(-max(size) // OVERVIEW))
        reduced = (-(-self.height // factor), -(-self.width // factor))
        self._limits = view.limits(reduced) if stretch == "scene" else None
        self.overview, self.valid = view.read(reduced, None, self._limits)

    def read(self, window: Window) -> tuple[Image.Image, float]:
        """(PIL RGB, the share of its pixels that are valid). Raises ImageError."""
        size = raster.reduced_size((window.height, window.width))
        with self._lock, _one_line(self.path, None):
            image, valid = self._view.read(size, window, self._limits)
        return image, float(valid.mean())

    def data_window(self) -> Window:
        """The least window that holds all that is valid. Raises ImageError if nothing is."""
        rows, columns = np.flatnonzero(self.valid.any(1)), np.flatnonzero(self.valid.any(0))
        if not len(rows):
            raise ImageError(f"scene {self.path}: it holds nothing but nodata")
        across = self.width / self.valid.shape[1]
        down = self.height / self.valid.shape[0]
        left, top = int(columns[0] * across), int(rows[0] * down)
        right = min(self.width, round((columns[-1] + 1) * across))
        bottom = min(self.height, round((rows[-1] + 1) * down))
        return Window(left, top, right - left, bottom - top)


class Picture:
    """What raster.View is, of a picture that Pillow has decoded whole."""

    def __init__(self, image: Image.Image, valid: np.ndarray):
        self.image = image
        self.valid = valid

    def limits(self, size):
        """It has been stretched as a whole."""

    def read(self, size, window=None, limits=None):
        left, top, width, height = window or (0, 0, *self.image.size)
        box = (left, top, left + width, top + height)
        shown = self.image.crop(box).resize(size[::-1], Image.Resampling.BOX)
        valid = Image.fromarray(self.valid[top : box[3], left : box[2]])
        return shown, np.asarray(valid.resize(size[::-1], Image.Resampling.NEAREST))


@contextmanager
def open_scene(
    path: str | os.PathLike,
    bands: Sequence[int] | None = None,
    stretch: str = "scene",
    grid: Scene | None = None,
) -> Iterator[Scene]:
    """A context with a Scene. Raises ImageError, in one line.

    bands: see read_image; stretch: what is not 8 bits is stretched alike in the whole "scene", or
    in each "tile" by itself; grid: show it on the pixels of this other scene, by georeference.
    """
    if "://" in str(path):
        raise ImageError(f"scene {path}: an address; download it and name the file")
    rasterio = raster.import_rasterio(f"scene {path}: a map")
    with ExitStack() as stack:
        with _one_line(path, None):
            file = stack.enter_context(open_source(path))
        with _one_line(path, file):
            driver = raster.driver_of(file)
            stack.enter_context(rasterio.Env(**SETTINGS))
            if driver in raster.RANDOM_ACCESS:
                dataset = stack.enter_context(rasterio.open(file.name, driver=driver))
                georeference = _georeference(dataset)
                if grid is not None:
                    dataset = stack.enter_context(_on_grid(dataset, grid, georeference))
                view: Any = raster.View(dataset, driver, bands)
                size = dataset.width, dataset.height
            else:
                view = _picture(file, bands)
                size, georeference = view.image.size, (None, None)
                if grid is not None:
                    raise ImageError("no georeference to align it by; two dates need GeoTIFFs")
            scene = Scene(path, view, size, georeference, stretch)
        yield scene


@contextmanager
def _one_line(path, file):
    """A context in which whatever a decoder raises becomes an ImageError that names the scene.

    file: open, for what may be wrong with it, or None.
    """
    try:
        yield
    except UserError as error:
        kind = getattr(error, "kind", ImageError("").kind)
        raise ImageError(f"scene {path}: {error}", kind) from None
    except Image.DecompressionBombError:
        raise ImageError(
            f"scene {path}: a picture of more pixels than Pillow decodes whole "
            f"({pillow.MAX_PIXELS}); convert it with `gdal_translate -of COG`",
            TOO_LARGE,
        ) from None
    except MemoryError:
        raise ImageError(f"scene {path}: more memory than there is", TOO_LARGE) from None
    except Exception as error:  # noqa: BLE001 -- decoders fail in ways of their own
        cause: Any = error.__cause__ or error
        if file is None:
            text = " ".join(str(cause).split())[:200]
            raise ImageError(f"scene {path}: cannot be read ({text})") from None
        found = unreadable(file, cause)
        raise ImageError(f"scene {path}: {found}", found.kind) from None


def _picture(file: BinaryIO, bands: Sequence[int] | None) -> Picture:
    if bands:
        raise ImageError("a choice of bands needs a GeoTIFF")
    image = pillow.open_image(file)
    lost = pillow.what_is_lost(image, file)
    if lost:
        raise ImageError(f"{lost} needs a GeoTIFF: convert it with `gdal_translate -of COG`")
    shown = pillow.to_rgb(image, lambda note: None)
    valid = np.ones(shown.size[::-1], bool)
    if image.has_transparency_data:
        valid = np.asarray(image.convert("RGBA").getchannel("A")) > 0
    return Picture(shown, valid)


def _georeference(dataset: Any) -> tuple[Any, Any]:
    """(crs, transform), or (None, None) of a scene with neither. Raises UserError."""
    crs, transform = dataset.crs, dataset.transform
    if transform.is_identity:
        if dataset.gcps[0]:
            raise UserError("ground control points instead of a transform; run `gdalwarp` first")
        if crs:
            raise UserError(
                f"a coordinate system ({crs}) but no transform that places it; "
                "give it one with `gdal_edit.py -a_ullr`"
            )
        return None, None
    if transform.b or transform.d:
        raise UserError("its transform is rotated or sheared; turn it north up with `gdalwarp`")
    if not crs:
        raise UserError(
            f"a transform ({transform.a:g} per pixel) but no coordinate system; name it with "
            "`gdal_edit.py -a_srs EPSG:...`"
        )
    _check_place(crs, transform)
    return crs, transform


def _check_place(crs: Any, transform: Any) -> None:
    """Raises UserError for a system that lies nowhere on the globe, such as a drawing's own."""
    from rasterio import warp

    try:
        warp.transform(crs, "EPSG:4326", [transform.c], [transform.f])
    except Exception as error:  # noqa: BLE001 -- whatever PROJ says of a file's system
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"its coordinate system has no place on the globe ({reason}); name the true one with "
            "`gdal_edit.py -a_srs EPSG:...`"
        ) from None


def _on_grid(dataset: Any, grid: Scene, georeference: tuple[Any, Any]) -> Any:
    """The dataset on the pixels of another scene; without data where it does not reach."""
    from rasterio.enums import ColorInterp, Resampling
    from rasterio.vrt import WarpedVRT

    if georeference[0] is None or grid.crs is None:
        raise UserError("two dates are aligned by their georeference, and one has none")
    resampling = Resampling.bilinear
    if dataset.colorinterp[0] == ColorInterp.palette:
        resampling = Resampling.nearest
    return WarpedVRT(
        dataset,
        crs=grid.crs,
        transform=grid.transform,
        width=grid.width,
        height=grid.height,
        resampling=resampling,
        add_alpha=dataset.nodata is None and ColorInterp.alpha not in dataset.colorinterp,
    )
