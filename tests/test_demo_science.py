"""The survey's science: what the demo's check rests on."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pyjobs.demo import plain, science

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def plate() -> science.Plate:
    return science.make_plate(science.load_picture(), "white")


@pytest.fixture(scope="module")
def items(plate: science.Plate) -> list[dict[str, Any]]:
    return science.tile_items(plate)


@pytest.fixture(scope="module")
def sources(plate: science.Plate, items: list[dict[str, Any]]) -> list[science.Source]:
    damage = science.choose_damage(len(items))
    return [
        source
        for item in items
        if item["tile"] not in damage
        for source in science.find_sources(science.read_tile(science.cut_tile(plate, item)), item)
    ]


def test_the_cores_of_the_tiles_cover_the_picture_once(
    plate: science.Plate, items: list[dict[str, Any]]
) -> None:
    covered = np.zeros(plate.shape, dtype=int)
    for item in items:
        covered[item["y"] : item["y"] + science.CORE, item["x"] : item["x"] + science.CORE] += 1
    assert len(items) == 360
    assert (covered == 1).all()


def test_a_tile_comes_back_from_its_file_as_it_was(
    plate: science.Plate, items: list[dict[str, Any]]
) -> None:
    pixels = science.read_tile(science.cut_tile(plate, items[190]))
    x, y = items[190]["x"] - science.MARGIN, items[190]["y"] - science.MARGIN
    side = science.CORE + 2 * science.MARGIN
    assert (pixels == plate.pixels[y : y + side, x : x + side]).all()


def test_an_item_says_the_same_after_a_trip_through_json(items: list[dict[str, Any]]) -> None:
    assert json.loads(json.dumps(items)) == items


@pytest.mark.parametrize("damage", ["poisoned", "truncated"])
def test_a_damaged_tile_is_refused_with_its_reason(
    plate: science.Plate, items: list[dict[str, Any]], damage: str
) -> None:
    with pytest.raises(science.BadTileError, match=damage):
        science.read_tile(science.cut_tile(plate, items[7], damage))


def test_a_source_cut_by_a_tiles_inner_edge_is_left_to_the_neighbour(
    plate: science.Plate, items: list[dict[str, Any]]
) -> None:
    # The galaxy at (123, 401) is whole in the tile that owns it; its left neighbour cuts it.
    def tile_at(x: int, y: int) -> dict[str, Any]:
        return next(i for i in items if i["x"] == x and i["y"] == y)

    def sees_it(item: dict[str, Any]) -> bool:
        found = science.find_sources(science.read_tile(science.cut_tile(plate, item)), item)
        return any(abs(s.x - 123) < 10 and abs(s.y - 401) < 10 for s in found)

    assert sees_it(tile_at(100, 400))
    assert not sees_it(tile_at(50, 400))


def test_the_plain_survey_has_the_same_rows_as_the_tiles_merged_in_another_order(
    sources: list[science.Source],
) -> None:
    assert science.merge_overlaps(sources) == plain.survey("white")


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_the_merge_does_not_depend_on_the_order_of_the_rows(
    sources: list[science.Source], seed: int
) -> None:
    shuffled = sources.copy()
    random.Random(seed).shuffle(shuffled)
    assert science.merge_overlaps(shuffled) == science.merge_overlaps(sources)


def test_the_merge_notices_a_missing_a_doubled_and_a_changed_row(
    sources: list[science.Source],
) -> None:
    # The check in the demo compares catalogues: what goes wrong with the rows must show there.
    whole = science.merge_overlaps(sources)
    assert science.merge_overlaps([s for s in sources if s.tile != 100]) != whole
    brightest = max(sources, key=lambda s: (s.in_core, s.flux))
    changed = [s._replace(x=s.x + 0.001) if s is brightest else s for s in sources]
    assert science.merge_overlaps(changed) != whole


def test_no_two_tiles_make_two_entries_of_one_source(sources: list[science.Source]) -> None:
    catalogue = science.merge_overlaps(sources)
    for n, one in enumerate(catalogue):
        for other in catalogue[n + 1 :]:
            if one.tile != other.tile:
                distance = np.hypot(one.x - other.x, one.y - other.y)
                assert distance >= science.SAME_SOURCE, (one, other)


def test_the_catalogue_finds_the_galaxies_that_anybody_sees(
    sources: list[science.Source],
) -> None:
    catalogue = science.merge_overlaps(sources)
    assert 900 < len(catalogue) < 1300
    assert [entry.number for entry in catalogue] == list(range(1, len(catalogue) + 1))
    for x, y in [(725, 473), (123, 401), (513, 440), (819, 167), (754, 578), (405, 74)]:
        assert any(np.hypot(e.x - x, e.y - y) < 6 and e.npix > 150 for e in catalogue), (x, y)


def test_what_a_damaged_tile_owned_is_mostly_saved_by_its_neighbours() -> None:
    damaged, whole = plain.survey("white"), plain.survey("white", is_damaged=False)
    assert damaged != whole
    assert abs(len(damaged) - len(whole)) < 20


def test_the_drawing_marks_the_picture_where_sources_are_and_only_there(tmp_path: Path) -> None:
    entry = science.Entry(1, 100.0, 80.0, 5.0, 3.0, 0.4, 1000.0, 50, 0, 1)
    dark = Image.new("RGB", (200, 160))
    path = tmp_path / "marked.png"
    science.draw_catalogue(dark, [entry], [{"x": 0, "y": 0}], path)
    with Image.open(path) as marked:
        drawn = np.asarray(marked).sum(axis=2) > 0
    assert marked.size == (200, 160)
    around_source = drawn[50:110, 70:130]
    frame = drawn[: science.CORE, : science.CORE]
    assert around_source.any()
    assert not drawn[78:83, 98:103].any()
    assert frame.any()
    assert drawn.sum() == around_source.sum() + frame.sum()
    assert [p.name for p in tmp_path.iterdir()] == ["marked.png"]
