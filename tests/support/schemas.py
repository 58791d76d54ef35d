"""Small schema trees to deploy, and a way to compare what was deployed."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

from pyjobs import embedded

if TYPE_CHECKING:
    from pathlib import Path

MIGRATIONS = {
    "0001.schema": (
        """\
-- Schemas and a table.
-- Locks: nothing that exists.
-- depends:
create schema if not exists pyjobs;
create schema if not exists pyjobs_internal;
create table if not exists pyjobs_internal.thing (id bigint primary key, note text);
""",
        """\
drop table if exists pyjobs_internal.thing;
drop schema if exists pyjobs_internal;
drop schema if exists pyjobs;
""",
    ),
    "0002.colour": (
        """\
-- A column.
-- Locks: the table, for a moment.
-- depends: 0001.schema
alter table pyjobs_internal.thing add column if not exists colour text;
""",
        "alter table pyjobs_internal.thing drop column if exists colour;\n",
    ),
}

FILES = {
    "internal/double.sql": """\
create or replace function pyjobs_internal.double(n int) returns int
language sql immutable as $$ select n * 2 $$;
""",
    # Needs a view, which comes later in the order.
    "internal/first_thing.sql": """\
create or replace function pyjobs_internal.first_thing() returns setof pyjobs.thing
language sql as $$ select * from pyjobs.thing limit 1 $$;
""",
    "views/thing.sql": """\
create or replace view pyjobs.thing as
select id, note, pyjobs_internal.double(id::int) as doubled from pyjobs_internal.thing;
""",
    "worker/paint.sql": """\
create or replace function pyjobs.paint(id bigint, colour text) returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    update pyjobs_internal.thing t set colour = paint.colour where t.id = paint.id;
    return paint.colour;
end
$$;
""",
    "data/things.sql": """\
insert into pyjobs_internal.thing (id, note) values (1, 'of the data') on conflict do nothing;
""",
    "grants.sql": """\
revoke all on all functions in schema pyjobs, pyjobs_internal from public;
grant usage on schema pyjobs to pyjobs_worker;
grant execute on function pyjobs.paint to pyjobs_worker;
""",
    # Never deployed.
    "testing/clock.sql": "create table pyjobs_internal.test_clock (id int);\n",
}


class Tree:
    """A folder with migrations/ and sql/, to be changed by a test."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name, (up, down) in MIGRATIONS.items():
            self.migration(name, up, down)
        for name, text in FILES.items():
            self.write(name, text)

    def migration(self, name: str, up: str, down: str = "select 1;\n") -> None:
        folder = self.root / "migrations"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.sql").write_text(up)
        (folder / f"{name}.rollback.sql").write_text(down)

    def write(self, path: str, text: str) -> None:
        target = self.root / "sql" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def replace(self, path: str, old: str, new: str) -> None:
        target = self.root / "sql" / path
        text = target.read_text()
        assert old in text
        target.write_text(text.replace(old, new))

    def remove(self, path: str) -> None:
        (self.root / "sql" / path).unlink()


def dump(dsn: str, *, data: bool = False) -> str:
    """The whole schema as pg_dump tells it, without what differs from call to call."""
    program = embedded.find_binaries() / "pg_dump"
    arguments = ["--no-comments"] if data else ["--schema-only"]
    done = subprocess.run(
        [program, "--dbname", dsn, *arguments], check=True, capture_output=True, text=True
    )
    # Newer releases put a random word at both ends.
    return re.sub(r"^\\(un)?restrict .*\n", "", done.stdout, flags=re.MULTILINE)
