"""How a GPU cuts the images of a depthwise convolution into tiles, and what each tile reads."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

Extents = tuple[tuple[int, int, int, int], ...]  # of each axis: input, output, kernel, padding


class Axis(NamedTuple):
    """How one axis of the output is cut: tiles of ``block``, each with a window of inputs."""

    block: int
    tiles: int
    window: int  # inputs that a tile needs, without those that no image has
    first: int  # how many of these were cut off from the window's start
    left: int  # how far the first window starts before the image

    @classmethod
    def cut(cls, extent: tuple[int, int, int, int], block: int, multiple: int = 1) -> "Axis":
        """``extent`` is the axis' input, output, kernel and padding; windows are multiples of a number."""
        inputs, outputs, kernel, padding = extent
        tiles = -(-outputs // block)
        first = max(0, padding - (tiles - 1) * block)
        window = min(block + kernel - 1, inputs + padding) - first
        return cls(block, tiles, -(-window // multiple) * multiple, first, padding - first)

    @property
    def products(self) -> int:
        """Multiply-adds along this axis of one image."""
        return self.tiles * self.block * self.window


class Tile(NamedTuple):
    """How an image is cut into tiles."""

    rows: Axis
    columns: Axis
    out: tuple[int, int]

    @property
    def number(self) -> int:
        """Tiles of one image."""
        return self.rows.tiles * self.columns.tiles

    @property
    def pixels(self) -> int:
        """Outputs in one tile."""
        return self.rows.block * self.columns.block

    @property
    def products(self) -> int:
        """Multiply-adds of one channel of one image, those with zeros counted in."""
        return self.rows.products * self.columns.products

    @property
    def width(self) -> int:
        """Row length of the aligned inputs, all windows: a multiple of 16, for loads of 16 bytes."""
        axis = self.columns
        return -(-((axis.tiles - 1) * axis.block + axis.window) // 16) * 16


def cut(extents: Extents, block_h: int, block_w: int) -> Tile:
    """Tiles of ``block_h`` x ``block_w`` outputs; windows are 16, 32, ... columns wide."""
    rows, columns = Axis.cut(extents[0], block_h), Axis.cut(extents[1], block_w, 16)
    return Tile(rows, columns, (extents[0][1], extents[1][1]))


@lru_cache
def cheapest(extents: Extents) -> Tile:
    """The tile with the fewest multiply-adds, of 64 to 256 outputs; larger ones read less for each."""
    sizes = [(h, w) for w in (8, 16, 32, 64) for h in (1, 2, 4, 8, 16, 32) if 64 <= h * w <= 256]
    tiles = [cut(extents, *size) for size in sizes]
    return min(tiles, key=lambda tile: tile.products * (1 + 24 / tile.pixels))


@lru_cache
def of_64(extents: Extents) -> Tile:
    """The tile of 64 outputs that is as wide as the output, up to 32."""
    outputs = extents[1][1]
    width = 8 if outputs <= 8 else 16 if outputs <= 16 else 32
    return cut(extents, 64 // width, width)


def extents_of(input: Sequence[int], weight: Sequence[int], padding: Sequence[int]) -> Extents:
    """Of the shapes ``(N, C, H, W)`` and ``(C, 1, K, K)``."""
    sides = zip(input[2:], weight[2:], padding, strict=True)
    return tuple((i, i + 2 * p - k + 1, k, p) for i, k, p in sides)
