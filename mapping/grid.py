"""The tiles of a scene, and the cells that their edges cut it into."""

from model.errors import UserError
from model.images.tiles import Scene, Window


class Grid:
    """Square tiles, in columns and rows, that cover a part of a scene.

    part: what is covered; tile: the side of one in pixels; lefts, tops: where the columns and the
    rows begin; xs, ys: all edges of tiles, sorted: cell (i, j) lies between xs[i] and xs[i + 1].
    """

    def __init__(self, part: Window, tile: int, lefts: list[int], tops: list[int]):
        self.part = part
        self.tile = tile
        self.lefts = lefts
        self.tops = tops
        self.xs = _edges(lefts, tile)
        self.ys = _edges(tops, tile)
        self._column = {x: index for index, x in enumerate(self.xs)}
        self._row = {y: index for index, y in enumerate(self.ys)}

    @property
    def windows(self) -> list[Window]:
        """All tiles, row by row."""
        found = []
        for top in self.tops:
            for left in self.lefts:
                found.append(Window(left, top, self.tile, self.tile))
        return found

    def cells(self, window: Window) -> tuple[slice, slice]:
        """Rows and columns of the cells of one tile."""
        left, top, width, height = window
        return (
            slice(self._row[top], self._row[top + height]),
            slice(self._column[left], self._column[left + width]),
        )


def _edges(starts, tile):
    return sorted({edge for start in starts for edge in (start, start + tile)})


def grid_of(scene: Scene, tile: int, overlap: float) -> Grid:
    """Tiles over all that is valid of a scene; the last of a row or column is moved inside.

    tile: in pixels; overlap: the share of a tile that the next one covers as well. Raises
    UserError for a tile that is larger than the scene.
    """
    if tile > min(scene.width, scene.height):
        raise UserError(
            f"--tile {tile}: larger than the scene, {scene.width} x {scene.height} pixels; "
            f"at most {min(scene.width, scene.height)}"
        )
    part = scene.data_window()
    step = max(1, tile - round(tile * overlap))
    lefts = _starts(part.left, part.width, scene.width, tile, step)
    tops = _starts(part.top, part.height, scene.height, tile, step)
    return Grid(part, tile, lefts, tops)


def _starts(start, length, limit, tile, step):
    """Where tiles begin that cover `length` pixels from `start` on, inside 0 .. limit."""
    last = min(max(start + length - tile, start), limit - tile)
    first = min(start, last)
    return [*range(first, last, step), last]
