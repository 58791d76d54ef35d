"""Make the README's picture from one that the demo wrote.

    pyjobs demo && python tools/shrink_picture.py hubble-survey.png docs/hubble-survey.png

The faint noise of the sky, which no palette can hold and no compression can shrink, becomes black;
what is brighter gets 200 colours of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH = 900
SKY = 24  # what is darker than this becomes black
DIM = 40  # what is darker than this shares 16 colours
LIMIT = 400_000  # bytes


def palette(pixels: np.ndarray, colours: int) -> list[int]:
    side = int(len(pixels) ** 0.5)
    square = Image.fromarray(pixels[: side * side].reshape(side, side, 3))
    quantized = square.quantize(colours, method=Image.Quantize.MEDIANCUT, kmeans=4)
    return (quantized.getpalette() or [])[: 3 * colours]


def shrink(source: Path, target: Path) -> int:
    with Image.open(source) as opened:
        picture = opened.convert("RGB")
    size = (WIDTH, round(picture.height * WIDTH / picture.width))
    levels = [max(0, round((level - SKY) * 255 / (255 - SKY))) for level in range(256)]
    picture = picture.resize(size, Image.Resampling.LANCZOS).point(levels * 3)
    pixels = np.asarray(picture).reshape(-1, 3)
    is_bright = pixels.max(axis=1) > DIM
    table = Image.new("P", (1, 1))
    table.putpalette(palette(pixels[is_bright], 200) + palette(pixels[~is_bright], 16))
    picture.quantize(palette=table, dither=Image.Dither.NONE).save(target, optimize=True)
    return target.stat().st_size


if __name__ == "__main__":
    written = shrink(Path(sys.argv[1]), Path(sys.argv[2]))
    print(f"{sys.argv[2]}: {written} bytes")
    sys.exit(written > LIMIT)
