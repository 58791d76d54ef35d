"""Check every SQL file: that it parses, and that it keeps the project's forms.

    python tools/lint_sql.py            parse and check the texts
    python tools/lint_sql.py --server   also deploy them, and let the server look at the bodies

The second uses plpgsql_check where a server that has it is found, else PostgreSQL's own validators.
Prints one line for each finding, `file:line: what`, and exits 1 if there is any.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pglast
from pglast import ast, parse_plpgsql, parse_sql

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
SCHEMAS = ("pyjobs", "pyjobs_internal")
# One function a file, named after it, in these folders of sql/.
FUNCTION_FOLDERS = ("internal", "producer", "worker", "operator", "reader")
LONGEST_LINE = 100
PINNED = ["pg_catalog", "pg_temp"]

Finding = tuple[int, str]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--server", action="store_true", help="deploy them and check the bodies")
    arguments = parser.parse_args()

    count = findings = 0
    for path in sorted([*(ROOT / "sql").rglob("*.sql"), *(ROOT / "migrations").glob("*.sql")]):
        count += 1
        for line, what in sorted(check_file(path, path.read_text("utf-8"))):
            print(f"{path.relative_to(ROOT)}:{line}: {what}")
            findings += 1
    print(f"{count} SQL files checked, {findings} findings")
    if arguments.server and not findings:
        for what in check_on_server():
            print(what)
            findings += 1
    return 1 if findings else 0


def check_file(path: Path, text: str) -> Iterator[Finding]:
    """All findings in one file, by line."""
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > LONGEST_LINE:
            yield number, f"line of {len(line)} characters; at most {LONGEST_LINE}"
        if line != line.rstrip():
            yield number, "space at the end of the line"
    try:
        statements = parse_sql(text)
    except pglast.parser.ParseError as error:
        where = int(error.args[1]) if len(error.args) > 1 else 0
        yield _line(text, where), f"does not parse: {error.args[0]}"
        return

    header = _header(text)
    inside = path.relative_to(ROOT).parts
    if inside[0] == "migrations":
        yield from _check_migration(path, text, header, statements)
    else:
        yield from _check_sql(inside[1:], text, header, statements)


def _header(text: str) -> list[str]:
    lines = []
    for line in text.split("\n"):
        if not line.startswith("--"):
            break
        lines.append(line)
    return lines


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _statement_line(text: str, raw: Any) -> int:
    """The line of a statement's first word: the parser counts comments and spaces to it."""
    rest = text[raw.stmt_location :]
    skipped = re.match(r"(?:\s|--[^\n]*\n)*", rest)
    return _line(text, raw.stmt_location + (skipped.end() if skipped else 0))


def _statement_text(text: str, raw: Any) -> str:
    end = raw.stmt_location + raw.stmt_len if raw.stmt_len else len(text)
    return text[raw.stmt_location : end]


def _in_known_schema(text: str) -> str:
    """The same with types that the parser of PL/pgSQL knows: it looks them up, in two schemas."""
    text = re.sub(r"\b(?:pyjobs|pyjobs_internal)\.\w+(?![\w%(])", "text", text)
    return re.sub(r"\b(?:pyjobs|pyjobs_internal)\.", "public.", text)


# -- sql/


def _check_sql(
    inside: tuple[str, ...], text: str, header: list[str], statements: tuple[Any, ...]
) -> Iterator[Finding]:
    folder, stem = inside[0], Path(inside[-1]).stem
    comment = "\n".join(header)
    functions = [s for s in statements if isinstance(s.stmt, ast.CreateFunctionStmt)]
    if not header or not re.match(r"-- \S.*: \S", header[0]):
        yield 1, "the first line says `-- name: what it does`"
    if folder in FUNCTION_FOLDERS:
        for word in ("Returns", "Raises", "Locks", "Called by"):
            if not re.search(rf"^-- {word}\s", comment, re.MULTILINE):
                yield 1, f"the header has no `{word}`"
        if len(functions) != 1:
            yield 1, f"{len(functions)} functions; one a file"
    for raw in functions:
        yield from _check_function(raw, text, comment, stem if folder in FUNCTION_FOLDERS else None)
    for raw in statements:
        for relation in _made_relations(raw.stmt):
            if relation.schemaname not in SCHEMAS:
                yield _statement_line(text, raw), f"{relation.relname} is not qualified"


_ON_RELATION = (
    ast.AlterTableStmt,
    ast.CreateStmt,
    ast.CreateTrigStmt,
    ast.DeleteStmt,
    ast.IndexStmt,
    ast.InsertStmt,
    ast.UpdateStmt,
)


def _made_relations(statement: Any) -> Iterator[Any]:
    if isinstance(statement, ast.ViewStmt):
        yield statement.view
    elif isinstance(statement, _ON_RELATION):
        yield statement.relation


def _check_function(raw: Any, text: str, comment: str, stem: str | None) -> Iterator[Finding]:
    statement = raw.stmt
    line = _statement_line(text, raw)
    names = [part.sval for part in statement.funcname]
    name = ".".join(names)
    if len(names) != 2 or names[0] not in SCHEMAS:
        yield line, f"function {name} is not qualified with {' or '.join(SCHEMAS)}"
    if not statement.replace:
        yield line, f"function {name}: `create or replace`, so that it can be deployed again"
    if stem is not None:
        if names[-1] != stem:
            yield line, f"function {name} is in a file named {stem}"
        if not re.match(rf"-- {re.escape(name)}[:,]", comment):
            yield 1, f"the header begins with `-- {name}:`"
    for parameter in statement.parameters or ():
        # i: in, b: inout, v: variadic, d: the default, which is in
        mode = str(getattr(parameter.mode, "value", parameter.mode))
        if mode in ("i", "b", "v", "d") and not re.search(
            rf"^--\s{{2,}}.*\b{re.escape(parameter.name or '')}\b", comment, re.MULTILINE
        ):
            yield line, f"function {name}: the header does not tell of {parameter.name}"

    options = {option.defname: option for option in statement.options or ()}
    settings = {
        option.arg.name: [_constant(argument) for argument in option.arg.args or ()]
        for option in statement.options or ()
        if option.defname == "set"
    }
    definer = "security" in options and bool(options["security"].arg.boolval)
    if definer and settings.get("search_path") != PINNED:
        yield (
            line,
            f"function {name}: security definer wants `set search_path = pg_catalog, pg_temp`",
        )
    if names[0] == "pyjobs" and not definer:
        yield line, f"function {name}: is called by roles that can reach nothing: security definer"
    language = options["language"].arg.sval if "language" in options else "sql"
    if language == "plpgsql":
        try:
            parse_plpgsql(_in_known_schema(_statement_text(text, raw)))
        except pglast.parser.ParseError as error:
            yield line, f"function {name}: its body does not parse: {error.args[0]}"
    elif language == "sql" and "as" in options:
        body = options["as"].arg[0].sval
        try:
            parse_sql(body)
        except pglast.parser.ParseError as error:
            yield line, f"function {name}: its body does not parse: {error.args[0]}"
    for sqlstate in sorted(
        set(re.findall(r"errcode\s*=\s*'(PJ\d{3})'", _statement_text(text, raw)))
    ):
        if sqlstate not in comment:
            yield line, f"function {name}: raises {sqlstate}, which the header does not tell"


def _constant(node: Any) -> str:
    value = getattr(node, "val", None)
    return str(getattr(value, "sval", ""))


# -- migrations/


def _check_migration(
    path: Path, text: str, header: list[str], statements: tuple[Any, ...]
) -> Iterator[Finding]:
    comment = "\n".join(header)
    if not re.search(r"^-- Locks: \S", comment, re.MULTILINE):
        yield 1, "the header does not say what it locks (`-- Locks: ...`)"
    rollback = path.name.endswith(".rollback.sql")
    if not rollback:
        if (
            not path.with_suffix("").with_suffix(".rollback.sql").exists()
            and not (path.parent / f"{path.stem}.rollback.sql").exists()
        ):
            yield 1, f"no {path.stem}.rollback.sql beside it"
        if not re.search(r"^-- depends:", comment, re.MULTILINE):
            yield 1, "the header does not name what it depends on (`-- depends: ...`)"
    made: set[str] = set()
    for raw in statements:
        line = _statement_line(text, raw)
        for what in _not_repeatable(raw.stmt):
            yield line, f"{what}: a migration that was stopped is run again"
        for relation in _made_relations(raw.stmt):
            if relation.schemaname not in SCHEMAS:
                yield line, f"{relation.relname} is not qualified"
        if isinstance(raw.stmt, ast.CreateStmt):
            made.add(raw.stmt.relation.relname)
        if isinstance(raw.stmt, ast.DoStmt):
            try:
                parse_plpgsql(_in_known_schema(_statement_text(text, raw)))
            except pglast.parser.ParseError as error:
                yield line, f"its body does not parse: {error.args[0]}"
    concurrently = [
        s for s in statements if isinstance(s.stmt, ast.IndexStmt) and s.stmt.concurrent
    ]
    if concurrently and "transactional: false" not in comment:
        yield 1, "an index built concurrently wants `-- transactional: false`"


def _not_repeatable(statement: Any) -> Iterator[str]:
    """What is wrong with a statement that would fail, or do its work twice, when run again."""
    # Data definition inside a DO block asks first; that cannot be told from here.
    needs_if_not_exists = (
        ast.CreateStmt,
        ast.IndexStmt,
        ast.CreateSeqStmt,
        ast.CreateSchemaStmt,
        ast.CreateExtensionStmt,
    )
    if isinstance(statement, needs_if_not_exists) and not statement.if_not_exists:
        yield "create without `if not exists`"
    elif isinstance(statement, ast.CompositeTypeStmt | ast.CreateEnumStmt | ast.CreateDomainStmt):
        yield "create type outside of a DO block that looks first"
    elif isinstance(statement, ast.CreateRoleStmt):
        yield "create role outside of a DO block that looks first"
    elif isinstance(statement, ast.DropStmt) and not statement.missing_ok:
        yield "drop without `if exists`"
    elif (
        isinstance(statement, ast.CreateFunctionStmt | ast.CreateTrigStmt | ast.ViewStmt)
        and not statement.replace
    ):
        yield "create without `or replace`"
    elif isinstance(statement, ast.InsertStmt) and statement.onConflictClause is None:
        yield "insert without `on conflict`"
    elif isinstance(statement, ast.AlterEnumStmt) and not statement.skipIfNewValExists:
        yield "add value without `if not exists`"
    elif isinstance(statement, ast.RenameStmt):
        yield "rename outside of a DO block that looks first"
    elif isinstance(statement, ast.AlterTableStmt):
        for command in statement.cmds:
            kind = command.subtype.name
            if kind in ("AT_AddColumn", "AT_DropColumn", "AT_DropConstraint"):
                if not command.missing_ok:
                    yield f"{kind.removeprefix('AT_')} without `if (not) exists`"
            elif kind == "AT_AddConstraint":
                yield "add constraint outside of a DO block that looks first"


# -- on a server


def check_on_server() -> Iterator[str]:
    """Deploy the schema on a server of our own and let it look at every function's body."""
    checker = _with_plpgsql_check()
    if checker is not None:
        os.environ["PYJOBS_PG_BIN"] = str(checker)

    import psycopg  # noqa: PLC0415  (the texts can be checked without them)

    from pyjobs import embedded, migrate  # noqa: PLC0415

    with embedded.server(settings=embedded.THROWAWAY) as server:
        try:
            migrate.migrate(server.url(), root=ROOT)
        except migrate.MigrationError as error:
            yield f"cannot be deployed: {error}"
            return
        with psycopg.connect(server.url(), autocommit=True) as conn:
            if checker is None:
                print("plpgsql_check: on no server here; the server's own validators instead")
                yield from _validate(conn)
            else:
                yield from _plpgsql_check(conn)


def _with_plpgsql_check() -> Path | None:
    """The newest of the distribution's servers that has the extension."""
    shares = sorted(
        Path("/usr/share/postgresql").glob("*/extension/plpgsql_check.control"),
        key=lambda p: int(p.parts[-3]),
    )
    for share in reversed(shares):
        folder = Path("/usr/lib/postgresql") / share.parts[-3] / "bin"
        if (folder / "postgres").is_file():
            return folder
    return None


_FUNCTIONS = """
    select p.oid, p.oid::regprocedure::text, l.lanname, coalesce(t.tgrelid, 0)
    from pg_proc p
    join pg_language l on l.oid = p.prolang
    left join pg_trigger t on t.tgfoid = p.oid
    where p.pronamespace::regnamespace::text in ('pyjobs', 'pyjobs_internal')
    order by 2
"""


def _validate(conn: Any) -> Iterator[str]:
    import psycopg  # noqa: PLC0415

    for oid, name, language, _ in conn.execute(_FUNCTIONS).fetchall():
        validator = {"sql": "fmgr_sql_validator", "plpgsql": "plpgsql_validator"}.get(language)
        if validator is None:
            continue
        try:
            conn.execute(f"select {validator}(%s)", [oid])
        except psycopg.Error as error:
            yield f"{name}: {error.diag.message_primary}"


def _plpgsql_check(conn: Any) -> Iterator[str]:
    conn.execute("create extension plpgsql_check")
    yield from _validate(conn)
    count = 0
    for oid, name, language, relation in conn.execute(_FUNCTIONS).fetchall():
        if language != "plpgsql":
            continue
        count += 1
        rows = conn.execute(
            "select lineno, sqlstate, message, detail, hint, level from plpgsql_check_function_tb("
            " %s, %s::oid, fatal_errors => false, extra_warnings => true,"
            " security_warnings => true, compatibility_warnings => true)",
            [oid, relation],
        ).fetchall()
        for line, sqlstate, message, detail, hint, level in rows:
            if any(pattern.search(message) for pattern in _TOLERATED):
                continue
            more = " ".join(part for part in (detail, hint) if part)
            yield f"{name} line {line}: {level} {sqlstate or ''} {message} {more}".rstrip()
    print(f"plpgsql_check: {count} functions checked")


# What it cannot know, or what is meant.
_TOLERATED = (
    # An argument may be there for the interface's sake alone.
    re.compile(r"^unused parameter"),
    # A literal, as in `return 'REVOKED'`; it takes it for a text.
    re.compile(r"^target type is different type than source type$"),
    # It does not know that an endless loop does not end, nor that a raise_... function does not
    # return.
    re.compile(r"^control reached end of function without RETURN$"),
    re.compile(r"^composite OUT variable .* is not single argument$"),
)


if __name__ == "__main__":
    sys.exit(main())
