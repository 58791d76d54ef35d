"""What the workers do, one function a stage.

`process` is what a worker of an image platform looks like: it computes without a transaction open,
fails the items that cannot be used, writes its rows through `conn`, and leaves the commit to the
worker, which records the batch in the same transaction.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyjobs.demo import science

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyjobs import Batch, LazyConnection

# Rows are written and not committed for so long, in seconds: that is when the demo strikes.
STRIKE_WINDOW = 0.2

worker_name = "worker"  # this process, set by pyjobs.demo.worker


def handle(batch: Batch, conn: LazyConnection) -> None:
    """Do a batch of whatever stage."""
    stages: dict[str, Callable[[Batch, LazyConnection], None]] = {
        "collect": collect,
        "process": process,
        "results": results,
    }
    stages[batch.stage](batch, conn)


def collect(batch: Batch, conn: LazyConnection) -> None:  # noqa: ARG001  (it writes no rows)
    """Cut the picture into tiles, a file each, and emit them to the next stage."""
    tell(batch, "step", "cuts the picture into tiles")
    plate = science.make_plate(science.load_picture(), batch.params["plate"])
    items = science.tile_items(plate)
    damage = science.choose_damage(len(items)) if batch.params["damaged"] else {}
    for item in items:
        content = science.cut_tile(plate, item, damage.get(item["tile"]))
        (Path(batch.params["folder"]) / item["file"]).write_bytes(content)
    batch.emit(items)


def process(batch: Batch, conn: LazyConnection) -> None:
    """Find the sources of some tiles and write a row for each."""
    rows: list[tuple[Any, ...]] = []
    for index, item in enumerate(batch.items):
        tell(batch, "tile", f"tile {item['tile']} of the {batch.params['plate']} plate")
        # Stands for a model that takes longer than this picture needs.
        time.sleep(batch.params["pace"])
        try:
            content = (Path(batch.params["folder"]) / item["file"]).read_bytes()
            sources = science.find_sources(science.read_tile(content), item)
        except FileNotFoundError:
            batch.fail(index, f"{item['file']} has not arrived")
            continue
        except science.BadTileError as error:
            tell(batch, "bad", f"tile {item['tile']} fails: {error}")
            batch.fail(index, str(error))
            continue
        rows += [
            (batch.job_id, batch.batch_id, batch.lease_epoch, worker_name, *s) for s in sources
        ]
    if rows:
        columns = "job_id, batch_id, lease_epoch, worker, " + ", ".join(science.Source._fields)
        with (
            conn.cursor() as cursor,
            cursor.copy(f"copy survey.source ({columns}) from stdin".encode()) as copy,
        ):
            for row in rows:
                copy.write_row(row)
    batch.count(sources=len(rows))
    if rows:
        backend = conn.info.backend_pid
        tell(batch, "wrote", f"{len(rows)} rows written", rows=len(rows), backend=backend)
        time.sleep(STRIKE_WINDOW)


def results(batch: Batch, conn: LazyConnection) -> None:
    """Merge the overlaps of all tiles into one catalogue, store it, and draw it."""
    tell(batch, "step", "merges the overlaps and draws the catalogue")
    rows = conn.execute(
        "select tile, number, x, y, a, b, theta, flux, npix, in_core from survey.source"
        " where job_id = %s",
        [batch.job_id],
    ).fetchall()
    sources = [science.Source(*row) for row in rows]
    catalogue = science.merge_overlaps(sources)
    columns = "job_id, " + ", ".join(science.Entry._fields)
    with (
        conn.cursor() as cursor,
        cursor.copy(f"copy survey.catalogue ({columns}) from stdin".encode()) as copy,
    ):
        for entry in catalogue:
            copy.write_row((batch.job_id, *entry))
    batch.count(catalogued=len(catalogue))

    picture = science.load_picture()
    surveyed = {source.tile for source in sources}
    items = science.tile_items(science.make_plate(picture, batch.params["plate"]))
    unreadable = [item for item in items if item["tile"] not in surveyed]
    science.draw_catalogue(picture, catalogue, unreadable, Path(batch.params["output"]))


def tell(batch: Batch, what: str, text: str, **more: int) -> None:
    """Say to whoever started this process where it is (`pyjobs.demo.processes.Told`)."""
    message = {
        "what": what,
        "job_id": batch.job_id,
        "batch_id": batch.batch_id,
        "lease_epoch": batch.lease_epoch,
        "text": text,
        **more,
    }
    print(json.dumps(message), flush=True)
