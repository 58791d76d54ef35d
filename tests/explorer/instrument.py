"""The functions with a yield before every statement, made from the parse tree.

The yields are put into the text, and nothing else of it is changed: ``strip`` gives back the text
that ships. A second, separate pass (``unbound``) hands the bound of operators' waits over to the
scheduler, which ends a wait by cancelling it.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

import pglast

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FOLDERS = ("internal", "producer", "worker", "operator")
# A yield in the text. ASSERT sets neither FOUND nor the row count, and takes an expression.
_YIELD = re.compile(r"assert explorer\.(?:at|pass)\(\d+\); ")
_BODY = re.compile(r"\bas \$\$(.*?)\$\$", re.DOTALL)
_NAME = re.compile(r"create or replace function (pyjobs(?:_internal)?)\.(\w+)")

# What a step does to a table (or to an advisory lock), as far as others can tell:
#   R  reads what is committed          X  reads who is changing a row (xmax)
#   W  writes or locks rows, or takes an exclusive lock       S  takes a shared lock
# and, added by the scheduler, C: what was written or locked is committed or given up.
Effect = tuple[str, str]
# Written by nobody while sessions run: tables of the deployment, and the tests' clock.
CONSTANT = {"job_state", "job_transition"}
_UNCHANGED = {*CONSTANT, "test_clock"}
_LOCKS = {
    "intake_key": "@intake",
    "serving_key": "@serving",
    "offer_key": "@offer",
    "waiting_key": "@waiting",
    "arrival_key": "@arrival",
}


@dataclasses.dataclass(frozen=True)
class Place:
    """A statement of a function."""

    number: int
    function: str
    line: int  # of the file
    kind: str
    text: str  # the statement's first line
    effects: frozenset[Effect]
    releases: bool  # raises, so that a subtransaction may be rolled back here

    @property
    def shared(self) -> bool:
        """Whether the statement touches what another session can touch."""
        return self.releases or bool(self.effects)

    def __str__(self) -> str:
        return f"{self.function}:{self.line}"


@dataclasses.dataclass
class _Function:
    schema: str
    name: str
    text: str
    language: str
    body_line: int  # of the file, where the body begins
    body: str
    statements: list[tuple[int, str, list[str]]]  # line in the body, kind, expressions
    initial: list[str]  # expressions of the declarations


@dataclasses.dataclass
class Instrumented:
    """The copy: texts by file, and the places."""

    texts: dict[str, str]
    places: list[Place]
    entry: dict[str, frozenset[Effect]]  # what a call does before its first statement
    whole: dict[str, frozenset[Effect]]  # what a call of a plain SQL function does


def instrument(root: Path, changes: dict[str, str] | None = None) -> Instrumented:
    """Put a yield before every statement of the functions in ``root/sql``.

    ``changes`` gives other texts for some files, by their path below ``sql``.
    """
    files = {
        f"{folder}/{path.name}": path.read_text("utf-8")
        for folder in FOLDERS
        for path in sorted((root / "sql" / folder).glob("*.sql"))
    }
    for name, text in (changes or {}).items():
        if name not in files:
            raise ValueError(f"no file {name}")
        files[name] = text
    functions = {name: _read(text) for name, text in files.items()}
    effects = _Effects({f.name: f for f in functions.values()})
    places: list[Place] = []
    texts = {}
    for name, function in functions.items():
        lines = function.text.split("\n")
        for line, kind, expressions in function.statements:
            at = function.body_line + line - 1
            done = effects.of(expressions)
            place = Place(
                len(places),
                function.name,
                at,
                kind,
                lines[at - 1].strip(),
                frozenset(e for e in done if e[0] not in _UNCHANGED),
                kind == "raise",
            )
            places.append(place)
        # From the end, so that the columns of what stands before are kept.
        mine = [p for p in places if p.function == function.name]
        for place in reversed(mine):
            text = lines[place.line - 1]
            column = len(text) - len(text.lstrip())
            then = re.match(r"\s*(exception )?when .*? then (?=\S)", text)
            if then:
                column = then.end()
            call = "at" if place.shared else "pass"
            lines[place.line - 1] = (
                f"{text[:column]}assert explorer.{call}({place.number}); {text[column:]}"
            )
        texts[name] = "\n".join(lines)
    names = [f.name for f in functions.values()]
    return Instrumented(
        texts,
        places,
        {n: effects.entry(n) for n in names},
        {n: effects.sql(n) for n in names},
    )


def strip(text: str) -> str:
    """The text without its yields."""
    return _YIELD.sub("", text)


def unbound(text: str) -> str:
    """Let the scheduler say when a bounded wait is over: it cancels the wait."""
    text = text.replace("set lock_timeout = '500ms'", "set lock_timeout = '0'")
    return re.sub(
        r"\bwhen (.*)\block_not_available\b", r"when \1lock_not_available or query_canceled", text
    )


def statements_of(text: str) -> list[int]:
    """The lines (of the file) at which a statement of the function begins."""
    function = _read(text)
    return [function.body_line + line - 1 for line, _, _ in function.statements]


def _read(text: str) -> _Function:
    named = _NAME.search(text)
    body = _BODY.search(text)
    if named is None or body is None:
        raise ValueError(f"no function in {text[:60]!r}")
    # The guard's file has a statement behind the function.
    end = text.index("$$", body.end() - 2) + 2
    head = text[text.index("create or replace") : end]
    language = "plpgsql" if re.search(r"\blanguage plpgsql\b", head) else "sql"
    body_line = text.count("\n", 0, body.start(1)) + 1
    statements: list[tuple[int, str, list[str]]] = []
    initial: list[str] = []
    if language == "plpgsql":
        # The parser knows no schema but public for types; the lines stay where they are.
        (parsed,) = pglast.parse_plpgsql(_type_names(head) + ";")
        function = parsed["PLpgSQL_function"]
        for datum in function["datums"]:
            default = datum.get("PLpgSQL_var", {}).get("default_val")
            if default is None:
                default = datum.get("PLpgSQL_rec", {}).get("default_val")
            if default is not None:
                initial.append(default["PLpgSQL_expr"]["query"])
        top = function["action"]["PLpgSQL_stmt_block"]
        inner = top["body"][0].get("PLpgSQL_stmt_block") if not top.get("lineno") else None
        # A block of handlers is put into another one, that nobody wrote.
        statements = sorted(_walk(inner or top), key=lambda s: s[0])
        lines = [s[0] for s in statements]
        if len(set(lines)) != len(lines):
            raise ValueError(f"{named[2]}: two statements begin on one line")
    else:
        initial.append(body[1])
    return _Function(named[1], named[2], text, language, body_line, body[1], statements, initial)


def _type_names(head: str) -> str:
    """The same text with the types, in the head and the declarations, called by a known schema."""
    begin = re.search(r"^begin$", head, re.MULTILINE)
    cut = begin.start() if begin else len(head)
    declared = re.sub(r"\bpyjobs(?:_internal)?\.\w+(?![\w%(])", "text", head[:cut])
    return declared + re.sub(r"::pyjobs(?:_internal)?\.\w+", "::text", head[cut:])


_INNER = {"body", "then_body", "else_body", "stmts", "elsif_list", "exceptions", "action"}


def _walk(node: Any) -> Iterator[tuple[int, str, list[str]]]:
    """Every statement below, with its own expressions."""
    if isinstance(node, list):
        for each in node:
            yield from _walk(each)
        return
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        if key.startswith("PLpgSQL_stmt_"):
            own = list(_expressions({k: v for k, v in value.items() if k not in _INNER}))
            # The conditions of ELSIF have no statement of their own.
            for branch in value.get("elsif_list", ()):
                own += _expressions(branch["PLpgSQL_if_elsif"]["cond"])
            if value.get("lineno"):
                yield value["lineno"], key.removeprefix("PLpgSQL_stmt_"), own
        yield from _walk(value)


def _expressions(node: Any) -> Iterator[str]:
    if isinstance(node, list):
        for each in node:
            yield from _expressions(each)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key == "PLpgSQL_expr":
                yield value["query"]
            else:
                yield from _expressions(value)


class _Effects:
    """What an expression does, by its text; rather too much than too little."""

    def __init__(self, functions: dict[str, _Function]) -> None:
        self._functions = functions
        self._done: dict[tuple[str, str], frozenset[Effect]] = {}

    def of(self, expressions: list[str]) -> set[Effect]:
        done: set[Effect] = set()
        for text in expressions:
            done |= self._text(text)
        return done

    def entry(self, name: str) -> frozenset[Effect]:
        """What happens between a call and the first yield within it."""
        key = ("entry", name)
        if key not in self._done:
            self._done[key] = frozenset()
            self._done[key] = frozenset(
                e for e in self.of(self._functions[name].initial) if e[0] not in _UNCHANGED
            )
        return self._done[key]

    def sql(self, name: str) -> frozenset[Effect]:
        return self.entry(name) if self._functions[name].language == "sql" else frozenset()

    def _text(self, text: str) -> set[Effect]:
        found: set[Effect] = set()
        code = re.sub(r"'(?:[^']|'')*'", "''", text)
        locks = re.search(r"\bfor (?:no key )?update\b|\bfor (?:key )?share\b", code)
        written = set(
            re.findall(r"\b(?:update|insert into|delete from)\s+pyjobs_internal\.(\w+)", code)
        )
        for schema, name in re.findall(r"\b(pyjobs(?:_internal)?)\.(\w+)", code):
            if name in self._functions and re.search(rf"\b{schema}\.{name}\s*\(", code):
                if name in _LOCKS:
                    continue
                found |= self.entry(name)
            if schema == "pyjobs_internal" and (name not in self._functions or name in written):
                if name in written or locks:
                    found.add((name, "W"))
                elif "xmax" in code:
                    found.add((name, "X"))
                found.add((name, "R"))
        if "offer_pass" in text:
            found.add(("@pass", "W"))
        for call in re.findall(r"\bpg_(?:try_)?advisory\w+", code):
            named = [_LOCKS[k] for k in _LOCKS if k in code] or ["@other"]
            found |= {(n, "S" if call.endswith("shared") else "W") for n in named}
        return found
