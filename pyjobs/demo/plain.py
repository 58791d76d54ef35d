"""The same survey without any of it: one process, no database, no jobs, no workers.

    python -m pyjobs.demo.plain white

prints the catalogue as JSON, one row a line; the demo holds its own catalogue against it. It works
the tiles from the last to the first, for good measure.
"""

from __future__ import annotations

import json
import sys

from pyjobs.demo import science


def survey(plate_name: str, *, is_damaged: bool = True) -> list[science.Entry]:
    """The catalogue of a plate. Damaged tiles are left out, as the workers leave them out."""
    plate = science.make_plate(science.load_picture(), plate_name)
    items = science.tile_items(plate)
    damage = science.choose_damage(len(items)) if is_damaged else {}
    sources: list[science.Source] = []
    for item in reversed(items):
        content = science.cut_tile(plate, item, damage.get(item["tile"]))
        try:
            sources += science.find_sources(science.read_tile(content), item)
        except science.BadTileError:
            continue
    return science.merge_overlaps(sources)


def main() -> None:
    for entry in survey(sys.argv[1] if len(sys.argv) > 1 else "white"):
        print(json.dumps(entry))


if __name__ == "__main__":
    main()
