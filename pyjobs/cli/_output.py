"""What it prints: tables and lines for people, JSON for programs, errors on standard error."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable

STATUS_STYLE = {
    "CREATED": "dim",
    "PENDING": "cyan",
    "STARTED": "cyan",
    "RETRY": "yellow",
    "CANCELING": "yellow",
    "UNKNOWN": "magenta",
    "SUCCESS": "bold green",
    "FAILURE": "bold red",
    "REVOKED": "bold yellow",
}


@dataclasses.dataclass
class _Form:
    as_json: bool = False


_form = _Form()


def choose(*, as_json: bool) -> None:
    """Whether this run prints JSON."""
    _form.as_json = as_json


def wants_json() -> bool:
    """Whether this run prints JSON."""
    return _form.as_json


def console() -> Console:
    """Standard output as it is now. A pipe has no width, so nothing is cut or folded there."""
    made = Console(highlight=False)
    if not made.is_terminal:
        made = Console(highlight=False, width=10_000, soft_wrap=True)
    return made


def plain(value: Any) -> Any:
    """A result in JSON's types: a dataclass is an object, a time is ISO 8601."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(one) for one in value]
    return value


def as_json(value: Any, *, line: bool = False) -> None:
    """Print a document; `line` prints it on one line, for a stream of them."""
    print(json_text(plain(value), indent=None if line else 2), flush=line)


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON that can be read, and that cannot steer a terminal either: such characters escaped."""
    return "".join(
        one if one.isprintable() or one == "\n" else json.dumps(one)[1:-1]
        for one in json.dumps(value, ensure_ascii=False, indent=indent)
    )


def say(text: str | Text) -> None:
    """Print a line for people."""
    console().print(
        printable(text) if isinstance(text, str) else text, soft_wrap=True, markup=False
    )


def gap() -> None:
    """An empty line between two tables in a pipe; on a terminal they have room already."""
    if not console().is_terminal:
        print()


def answer(document: Any, text: str | Text) -> None:
    """Print the one or the other, as was asked for."""
    if _form.as_json:
        as_json(document)
    else:
        say(text)


def rows(document: Sequence[Any], columns: Sequence[str], nothing: str) -> None:
    """Print dataclasses as a table of these fields, or `nothing` where there are none."""
    if _form.as_json:
        as_json(document)
    elif not document:
        say(nothing)
    else:
        table(columns, ([getattr(one, name) for name in columns] for one in document))


def table(columns: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    """Print a table: folded to the terminal's width; in a pipe a line for each row, nothing cut."""
    out = console()
    cells = [[cell(value, brief=out.is_terminal) for value in line] for line in lines]
    if not out.is_terminal:
        _aligned(columns, cells)
        return
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for number, name in enumerate(columns):
        numbers = all(_is_number(line[number].plain) for line in cells)
        made.add_column(
            name.replace("_", " "), justify="right" if numbers else "left", overflow="fold"
        )
    for line in cells:
        made.add_row(*line)
    out.print(made)


def _aligned(columns: Sequence[str], cells: Sequence[Sequence[Text]]) -> None:
    """Columns of equal width, one line a row, whatever the values hold."""
    texts = [
        list(columns),
        *([" ".join(one.plain.split()) or "-" for one in line] for line in cells),
    ]
    widths = [max(len(line[number]) for line in texts) for number in range(len(columns))]
    for line in texts:
        padded = (one.ljust(width) for one, width in zip(line, widths, strict=True))
        print("  ".join(padded).rstrip())


def cell(value: Any, *, brief: bool = False) -> Text:
    """A value for people. In brief, a time of today has no date and another no seconds."""
    if isinstance(value, Text):
        return value
    if value is None:
        return Text("")
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, str):
        return Text(printable(value), style=STATUS_STYLE.get(value, ""))
    if isinstance(value, datetime):
        local = value.astimezone()
        today = local.date() == datetime.now().astimezone().date()
        form = "%Y-%m-%d %H:%M:%S" if not brief else "%H:%M:%S" if today else "%Y-%m-%d %H:%M"
        return Text(local.strftime(form).replace(" ", "\N{NO-BREAK SPACE}" if brief else " "))
    if isinstance(value, Decimal):
        return Text(f"{value.normalize():f}")
    if isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
        return Text(printable(", ".join(value)))
    if isinstance(value, Mapping | Sequence):
        return Text(json_text(plain(value)))
    return Text(str(value))


def printable(text: str) -> str:
    """Text that cannot steer a terminal, whoever wrote it into the database."""
    return "".join(
        one if one.isprintable() or one == "\n" else "\N{REPLACEMENT CHARACTER}" for one in text
    )


def _is_number(text: str) -> bool:
    return not text or text.replace(".", "", 1).lstrip("-").isdigit()


def duration(seconds: float) -> str:
    """Seconds as people say them: the two largest units."""
    left = round(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if left >= size or (unit == "s" and not parts):
            parts.append(f"{left // size} {unit}")
            left %= size
    return " ".join(parts[:2])


def error(message: str, sqlstate: str | None, detail: str | None, hint: str | None) -> None:
    """Say what went wrong on standard error, in the form that was asked for."""
    if _form.as_json:
        document = {"sqlstate": sqlstate, "message": message, "detail": detail, "hint": hint}
        print(json_text({"error": document}), file=sys.stderr)
        return
    lines = Text.assemble(("error: ", "bold red"), printable(message))
    for label, text in (("DETAIL", detail), ("HINT", hint)):
        if text:
            lines.append(f"\n{label}: ", style="bold")
            lines.append(printable(text))
    Console(stderr=True, highlight=False).print(lines, soft_wrap=True)
