"""The survey's science: cut a picture into tiles, find the sources of a tile, merge the overlaps.

Nothing here knows of jobs or of a database. The workers call these functions, and so does the
plain process that the demo is checked against (`pyjobs.demo.plain`).

Whatever order the tiles are worked in, the catalogue is the same: the sky is measured once for the
whole plate, a tile's sources depend on that tile alone, figures are rounded before they are stored,
and the merge sorts its rows by a total order first.
"""

from __future__ import annotations

import importlib.resources
import io
import math
import os
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import sep
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

    Pixels = NDArray[np.float32]

PICTURE = "hubble_deep_field.jpg"

# A tile owns its core; the margin overlaps the neighbours' cores, so that a source near a border
# is whole in at least one tile. The largest galaxies of this picture are some 50 pixels across.
CORE = 50
MARGIN = 40

# How each plate is made of red, green and blue.
PLATES = {"white": (0.299, 0.587, 0.114), "red": (1.0, 0.0, 0.0), "blue": (0.0, 0.0, 1.0)}

THRESHOLD = 4.5  # times the noise of the sky
MIN_PIXELS = 9
DEBLEND_CONTRAST = 0.03
SAME_SOURCE = 4.0  # pixels: nearer than this, two tiles mean the same source

# Ellipses are drawn at this many times the second moment, and this many pixels further out.
ELLIPSE_SCALE = 3.2
ELLIPSE_PADDING = 1.5


class BadTileError(Exception):
    """This tile cannot be surveyed; the message says why."""


class Source(NamedTuple):
    """What one tile says of one source. In pixels of the whole picture, theta in radians."""

    tile: int
    number: int
    x: float
    y: float
    a: float
    b: float
    theta: float
    flux: float
    npix: int
    in_core: bool


class Entry(NamedTuple):
    """A row of the catalogue: a source as the best placed tile saw it, and how many saw it."""

    number: int
    x: float
    y: float
    a: float
    b: float
    theta: float
    flux: float
    npix: int
    tile: int
    seen_in: int


@dataclass(frozen=True)
class Plate:
    """One colour of the picture, with its sky: level and noise in units of a pixel (0 to 255)."""

    name: str
    pixels: Pixels
    sky: float
    noise: float

    @property
    def shape(self) -> tuple[int, int]:
        height, width = self.pixels.shape
        return height, width


def load_picture() -> Image.Image:
    """The Hubble picture that ships with scikit-image, 1000 pixels wide and 872 high."""
    file = importlib.resources.files("skimage") / "data" / PICTURE
    with file.open("rb") as stream:
        return Image.open(stream).convert("RGB")


def make_plate(picture: Image.Image, name: str) -> Plate:
    weights = np.array(PLATES[name], dtype=np.float32)
    pixels = np.ascontiguousarray(np.asarray(picture, dtype=np.float32) @ weights)
    sky = sep.Background(pixels, bw=128, bh=128)
    return Plate(name, pixels, round(float(sky.globalback), 3), round(float(sky.globalrms), 3))


def tile_items(plate: Plate) -> list[dict[str, Any]]:
    """Every tile of the plate as a job's item: its file, where its core is, and the sky."""
    height, width = plate.shape
    corners = [(x, y) for y in range(0, height, CORE) for x in range(0, width, CORE)]
    return [
        {
            "tile": tile,
            "file": f"{plate.name}-{tile:03d}.npy",
            "x": x,
            "y": y,
            "width": width,
            "height": height,
            "sky": plate.sky,
            "noise": plate.noise,
        }
        for tile, (x, y) in enumerate(corners)
    ]


def _frame(item: dict[str, Any]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a tile with its margin, within the picture."""
    left, top = max(0, item["x"] - MARGIN), max(0, item["y"] - MARGIN)
    right = min(item["width"], item["x"] + CORE + MARGIN)
    bottom = min(item["height"], item["y"] + CORE + MARGIN)
    return left, top, right, bottom


def cut_tile(plate: Plate, item: dict[str, Any], damage: str | None = None) -> bytes:
    """The tile as a file's content, after the damage done on its way (see `choose_damage`)."""
    left, top, right, bottom = _frame(item)
    pixels = plate.pixels[top:bottom, left:right].copy()
    if damage == "poisoned":
        third = len(pixels) // 3
        pixels[third : 2 * third] = np.nan
    stream = io.BytesIO()
    np.save(stream, pixels, allow_pickle=False)
    content = stream.getvalue()
    return content[: len(content) // 3] if damage == "truncated" else content


def choose_damage(tiles: int, poisoned: int = 4, truncated: int = 3) -> dict[int, str]:
    """Which tiles arrive damaged, and how: always the same ones for a given number of tiles."""
    chosen = random.Random(2014).sample(range(tiles), poisoned + truncated)
    return {tile: "poisoned" if n < poisoned else "truncated" for n, tile in enumerate(chosen)}


def read_tile(content: bytes) -> Pixels:
    """The pixels of a tile's file. Raises BadTileError where they cannot be used."""
    try:
        loaded = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise BadTileError(f"truncated, {len(content)} bytes arrived") from error
    pixels: Pixels = np.asarray(loaded, dtype=np.float32)
    lost = int(np.count_nonzero(~np.isfinite(pixels)))
    if lost:
        raise BadTileError(f"poisoned, {lost} of {pixels.size} pixels are NaN")
    return pixels


def find_sources(pixels: Pixels, item: dict[str, Any]) -> list[Source]:
    """The sources of a tile, but for those that its inner edges cut: a neighbour has them whole."""
    left, top, right, bottom = _frame(item)
    found = sep.extract(
        np.ascontiguousarray(pixels) - np.float32(item["sky"]),
        THRESHOLD * item["noise"],
        minarea=MIN_PIXELS,
        deblend_cont=DEBLEND_CONTRAST,
    )
    sources: list[Source] = []
    for row in found:
        is_cut = (
            (row["xmin"] == 0 and left > 0)
            or (row["ymin"] == 0 and top > 0)
            or (row["xmax"] == right - left - 1 and right < item["width"])
            or (row["ymax"] == bottom - top - 1 and bottom < item["height"])
        )
        if is_cut:
            continue
        # Rounded before anything is decided by them: the stored row and this one are the same row.
        x, y, a, b, theta, flux = (
            round(float(value), 3)
            for value in (
                row["x"] + left,
                row["y"] + top,
                row["a"],
                row["b"],
                row["theta"],
                row["flux"],
            )
        )
        in_core = item["x"] <= x < item["x"] + CORE and item["y"] <= y < item["y"] + CORE
        sources.append(
            Source(item["tile"], len(sources), x, y, a, b, theta, flux, int(row["npix"]), in_core)
        )
    return sources


def merge_overlaps(sources: Iterable[Source]) -> list[Entry]:
    """One catalogue of all tiles' sources, brightest first, whatever order they come in.

    The tile whose core contains a source speaks for it. Any other tile's row within SAME_SOURCE of
    an entry is that entry once more; what is left was seen whole only from a neighbour (its own
    tile is damaged, or sees two sources as one) and becomes an entry too.
    """
    ranked = sorted(sources, key=lambda s: (not s.in_core, -s.flux, s.x, s.y, s.tile, s.number))
    chosen: list[Source] = []
    seen_in: list[set[int]] = []
    # Entries by the square they lie in: a neighbour within SAME_SOURCE is in one of nine.
    squares: dict[tuple[int, int], list[int]] = {}
    for source in ranked:
        column, row = int(source.x // SAME_SOURCE), int(source.y // SAME_SOURCE)
        near = [
            (math.hypot(chosen[n].x - source.x, chosen[n].y - source.y), n)
            for i in (column - 1, column, column + 1)
            for j in (row - 1, row, row + 1)
            for n in squares.get((i, j), [])
            if chosen[n].tile != source.tile
        ]
        distance, nearest = min(near, default=(math.inf, -1))
        if distance < SAME_SOURCE:
            seen_in[nearest].add(source.tile)
            continue
        squares.setdefault((column, row), []).append(len(chosen))
        chosen.append(source)
        seen_in.append({source.tile})
    order = sorted(range(len(chosen)), key=lambda n: (-chosen[n].flux, chosen[n].x, chosen[n].y))
    return [
        Entry(
            number,
            *chosen[n][2:9],
            tile=chosen[n].tile,
            seen_in=len(seen_in[n]),
        )
        for number, n in enumerate(order, start=1)
    ]


def _ellipse(entry: Entry, scale: int) -> list[tuple[float, float]]:
    long, short = (max(axis, 1.2) * ELLIPSE_SCALE + ELLIPSE_PADDING for axis in (entry.a, entry.b))
    cos, sin = math.cos(entry.theta), math.sin(entry.theta)
    points = []
    for step in range(49):
        angle = step * math.tau / 48
        u, v = long * math.cos(angle), short * math.sin(angle)
        # +0.5: a pixel's centre is at its index, and the drawing's corner is half a pixel out
        points.append(
            (
                (entry.x + u * cos - v * sin + 0.5) * scale,
                (entry.y + u * sin + v * cos + 0.5) * scale,
            )
        )
    return points


def draw_catalogue(
    picture: Image.Image,
    catalogue: Iterable[Entry],
    bad_items: Iterable[dict[str, Any]],
    path: Path,
) -> None:
    """The picture with an ellipse around every source.

    The cores of unreadable tiles are framed in red; what the neighbours saved of them is amber.
    """
    scale = 3  # drawn large and made small: smooth lines
    large = Image.new("L", (picture.width * scale, picture.height * scale))
    layers = {colour: large.copy() for colour in ((255, 72, 72), (110, 255, 140), (255, 190, 60))}
    frames, plain, saved = (ImageDraw.Draw(layer) for layer in layers.values())
    cores = [(item["x"], item["y"]) for item in bad_items]
    for x, y in cores:
        right, bottom = min(x + CORE, picture.width), min(y + CORE, picture.height)
        frames.rectangle(
            (x * scale, y * scale, right * scale - 1, bottom * scale - 1), outline=150, width=scale
        )
    for entry in catalogue:
        inside = any(x <= entry.x < x + CORE and y <= entry.y < y + CORE for x, y in cores)
        (saved if inside else plain).line(_ellipse(entry, scale), fill=255, width=scale)
    marked = picture.copy()
    for colour, layer in layers.items():
        mask = layer.resize(picture.size, Image.Resampling.BOX)
        marked.paste(Image.new("RGB", picture.size, colour), mask=mask)
    # Never half a picture under the final name.
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    marked.save(part, format="PNG", optimize=True)
    part.replace(path)
