"""The SQL linter sees what it is there for."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
_spec = importlib.util.spec_from_file_location("lint_sql", ROOT / "tools" / "lint_sql.py")
lint_sql = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(lint_sql)

FUNCTION = """\
-- pyjobs.seat: hold a seat.
--
--   seat   row and number
-- Returns     the seat
-- Raises      PJ005 bad argument
-- Locks       nothing
-- Called by   workers
create or replace function pyjobs.seat(seat text)
returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    held pyjobs_internal.seat%rowtype;
begin
    if seat.seat is null then
        raise exception 'no seat' using errcode = 'PJ005';
    end if;
    return seat.seat;
end
$$;
"""

MIGRATION = """\
-- A table.
-- Locks: nothing that exists.
-- depends: 0001.types
create table if not exists pyjobs_internal.seat (id int);
alter table pyjobs_internal.seat add column if not exists held text;
create index if not exists seat_held on pyjobs_internal.seat (held);
insert into pyjobs_internal.seat (id) values (1) on conflict do nothing;
do $$ begin perform 1; end $$;
"""


def findings(inside, text, tmp_path, monkeypatch):
    monkeypatch.setattr(lint_sql, "ROOT", tmp_path)
    path = tmp_path / inside
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    if inside.startswith("migrations/"):
        path.with_name(f"{path.stem}.rollback.sql").write_text("-- Locks: nothing.\nselect 1;\n")
    return [what for _, what in lint_sql.check_file(path, text)]


def test_what_keeps_the_form_is_not_found_fault_with(tmp_path, monkeypatch):
    assert findings("sql/worker/seat.sql", FUNCTION, tmp_path, monkeypatch) == []
    assert findings("migrations/0002.seat.sql", MIGRATION, tmp_path, monkeypatch) == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("returns text", "retruns text", "does not parse"),
        ("    return seat.seat;", "    retrun seat.seat;", "body does not parse"),
        ("begin\n", "begin" + " " * 3 + "\n", "space at the end"),
        ("hold a seat", "hold a seat " + "x" * 100, "characters"),
        ("-- Locks       nothing\n", "", "no `Locks`"),
        ("-- Called by   workers\n", "", "no `Called by`"),
        ("--   seat   row and number\n", "--   chair\n", "does not tell of seat"),
        ("-- pyjobs.seat:", "-- seat:", "begins with `-- pyjobs.seat:`"),
        ("function pyjobs.seat", "function seat", "not qualified"),
        ("function pyjobs.seat", "function pyjobs.chair", "in a file named seat"),
        ("create or replace", "create", "`create or replace`"),
        ("set search_path = pg_catalog, pg_temp", "", "search_path"),
        ("pg_catalog, pg_temp", "pyjobs, pg_temp", "search_path"),
        (" security definer", "", "security definer"),
        ("'PJ005'", "'PJ006'", "raises PJ006"),
        ("$$;\n", "$$;\n" + FUNCTION, "2 functions"),
    ],
)
def test_a_function_that_does_not_is(old, new, expected, tmp_path, monkeypatch):
    assert old in FUNCTION
    found = findings("sql/worker/seat.sql", FUNCTION.replace(old, new), tmp_path, monkeypatch)
    assert any(expected in what for what in found), found


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("-- Locks: nothing that exists.\n", "", "what it locks"),
        ("-- depends: 0001.types\n", "", "depends on"),
        ("create table if not exists", "create table", "if not exists"),
        ("add column if not exists", "add column", "AddColumn"),
        ("create index if not exists", "create index", "if not exists"),
        (" on conflict do nothing", "", "on conflict"),
        ("pyjobs_internal.seat (id int)", "seat (id int)", "not qualified"),
        ("perform 1;", "preform 1;", "does not parse"),
        ("create index", "create index concurrently", "transactional: false"),
        ("do $$", "create type pyjobs.t as (a int);\ndo $$", "create type"),
        ("do $$", "drop table pyjobs_internal.seat;\ndo $$", "if exists"),
        (
            "do $$",
            "alter table pyjobs_internal.seat add constraint c check (id > 0);\ndo $$",
            "add constraint",
        ),
    ],
)
def test_a_migration_that_does_not_is(old, new, expected, tmp_path, monkeypatch):
    assert old in MIGRATION
    text = MIGRATION.replace(old, new)
    found = findings("migrations/0002.seat.sql", text, tmp_path, monkeypatch)
    assert any(expected in what for what in found), found


def test_a_migration_without_a_way_back_is(tmp_path, monkeypatch):
    monkeypatch.setattr(lint_sql, "ROOT", tmp_path)
    path = tmp_path / "migrations" / "0002.seat.sql"
    path.parent.mkdir()
    found = [what for _, what in lint_sql.check_file(path, MIGRATION)]
    assert found == ["no 0002.seat.rollback.sql beside it"]
