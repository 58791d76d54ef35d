"""Arguments that nobody should send, mixed with right ones so that calls get far.

Every value is the text of its type as a client sends it, bytes for what is no UTF-8, or None for
null. A call is a dict of them; an argument that is left out has its default.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

Value = str | bytes | None

# The server refuses these when it reads an argument, before a function is called: the type's own
# input says no. Which SQLSTATE, for what, on 14 to 18. Anything else must be the functions' own.
SERVER_REFUSES = {
    "22003": "a number beyond bigint, int or numeric",
    "22007": "not a time or an interval at all",
    "22008": "a time or an interval beyond the range of its type",
    "22015": "an interval whose fields are beyond its range",
    "22023": "a time zone that there is not",
    "22021": "not UTF-8, or a NUL in it",
    "22P02": "not a number, boolean, array, enum or JSON at all; a lone surrogate in JSON",
    "22P05": "\\u0000 in JSON",
    "2202E": "an array whose dimensions contradict each other",
    "54000": "an array with more dimensions or elements than there can be",
    "54001": "JSON nested deeper than the server's stack (max_stack_depth)",
    "54023": "JSON too large for its type",
}

DEEP = 3000  # levels; the server takes about twice that, Python's parser a third
BEYOND = 200_000  # levels; the server's stack does not
MEGABYTE = 1 << 20

ODD_TEXTS = [
    "",
    " ",
    "\n\r\t",
    "\x01\x1b[2J\x1b]0;title\x07\x9b",
    "'; drop schema pyjobs cascade; --",
    '"',
    "\\",
    "\\'",
    "$$",
    "%s %n %d %I %L %% %",
    "{}",
    "{a,b}",
    "null",
    "NULL",
    "\u202eright to left\u202c",
    "مرحبا שלום",
    "e\u0301" * 100,
    "\u200b\u200d\ufeff",
    "\U0001f469\u200d\U0001f52c",
    "\U0010ffff\ufffe\uffff",
    "x" * 200,
    "x" * 201,
    "\U0001f600" * 200,
    "\U0001f600" * 201,
    "x" * 10_000,
    "x" * 10_001,
    "x" * MEGABYTE,
]
NO_TEXTS: list[Value] = [b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"a\xf5", b"\xf0\x9f\x98"]

WHOLE = [0, 1, -1, 2, 100, 1000, 1001, 1_000_000, 1_000_001, 2**31 - 1, 2**31, -(2**31)]
WHOLE += [-(2**31) - 1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**40]
NO_NUMBERS = ["", "x", "1.5", "1e3", "NaN", "Infinity", "0x10", "1_000", " 1 ", "\u0661"]
NUMERICS = [
    *("0", "1", "0.5", "-0.0000001", "1.0000001", "-1", "NaN", "Infinity", "-Infinity", "1e131071"),
    *("1e131072", "1e-16383", "0." + "0" * 16000 + "1", "9" * 131072, "x", "", ".5", "1e400"),
]
TIMES = [
    *("now", "today", "epoch", "infinity", "-infinity", "2026-01-01", "2026-01-01 00:00+15:59"),
    *("4714-11-24 00:00:00+00 BC", "4714-11-23 00:00:00+00 BC", "0001-01-01 BC", "294277-01-01"),
    *("294276-12-31 23:59:59.999999+00", "2026-02-30", "2026-06-30 23:59:60", "24:00", "", "x"),
    *("10000-01-01", "2026-01-01 Europe/Nowhere", "allballs", "J2451187"),
]
INTERVALS = [
    *("0", "1 second", "1 microsecond", "-1 microsecond", "1 minute", "1 day", "24:00:00.000001"),
    *("infinity", "-infinity", "178000000 years", "-178000000 years", "2147483647 days", "1 month"),
    *("1 month -30 days", "365 days", "365 days 00:00:00.000001", "12 months", "P1Y", "@ 1 ago"),
    *("9223372036854775807 microseconds", "2562047788 hours", "1e300 days", "", "x", "NaN"),
    *("1 year -364 days", "-1 day 24:00:01", "6000 years"),
]
BOOLEANS = ["true", "false", "t", "off", "1", "yes", "", "maybe", "2"]
STATUSES = ["CREATED", "PENDING", "STARTED", "RETRY", "CANCELING", "UNKNOWN"]
STATUSES += ["SUCCESS", "FAILURE", "REVOKED", "success", "", "DONE", " SUCCESS"]
ARRAYS = [
    *("{}", "{null}", "{{a},{b}}", "{a,null}", "[5:6]={a,b}", "[0:0]={q}", "[-1:0]={a,b}"),
    *("[1:1][-2:-1]={{a,b}}", "{{}}", "{a", "a}", "", "{,}", '{""}', "{a,a}", "{{a},{b,c}}"),
    *("{" * 6 + "a" + "}" * 6, "{" * 7 + "a" + "}" * 7, "[1:2147483647]={a}", "{NULL,'NULL'}"),
    "{" + ",".join(f"n{i}" for i in range(100)) + "}",
    "{" + ",".join(f"n{i}" for i in range(101)) + "}",
    "{" + "x" * MEGABYTE + "}",
]
NUMBER_ARRAYS = [
    *("{}", "{null}", "{{1},{2}}", "{1,null}", "[5:6]={1,2}", "{1,1}", "{0}", "{-1}", "{1"),
    *("{9223372036854775807}", "{9223372036854775808}", "[2:2]={1}", "{{}}", "{x}", "{1.5}"),
    "{" + ",".join(str(i) for i in range(100_001)) + "}",
]
ODD_JSON = [
    *("null", "true", "0", '""', "[]", "{}", "[null]", '{"": null}', "[[]]", "[{}]", "-0", "1e400"),
    *("1e131071", "1e-400", "9" * 5000, "1" * 131072, "1e131072", "0.1e-16383", "NaN", "Infinity"),
    *(
        '"\\u0000"',
        '{"\\u0000": 1}',
        '"\\ud800"',
        '"\\udc00\\ud800"',
        '"\\ud83d\\ude00"',
        '"\\uZZ"',
    ),
    *('{"a": 1, "a": 2}', '[{"index": 0, "index": 1, "error": "e", "error": 3}]', "'", "", "[1,]"),
    *("\x01", '"\x01"', "[1 2]", "{1: 2}", "\ufeff[]", '"\u202e"', " [ 1 ] ", "//", '"\\u202e"'),
    "[" * DEEP + "]" * DEEP,
    '{"a":' * DEEP + "1" + "}" * DEEP,
    "[" + "[" * DEEP + "]" * DEEP + "]",
    '[{"index": 0, "error": ' + "[" * DEEP + "]" * DEEP + "}]",
    "[" * BEYOND + "]" * BEYOND,
    '{"a":' * BEYOND,
    json.dumps("x" * MEGABYTE),
    json.dumps({"x" * 100_000: 1}),
    json.dumps(["x" * MEGABYTE, 1]),
    json.dumps(list(range(20_000))),
    json.dumps({str(i): i for i in range(5_000)}),
]
ODD_FAILED = [
    '[{"index": 0, "error": "e", "error": "again"}]',
    '[{"index": 0.0, "error": "e"}]',
    '[{"index": 1e0, "error": "e"}]',
    '[{"index": 0e5, "error": "e"}, {"index": 0.00, "error": "e"}]',
    '[{"index": -0, "error": "e"}]',
    '[{"index": 1e131071, "error": "e"}]',
    '[{"index": 1e-16000, "error": "e"}]',
    '[{"index": 2147483647, "error": "e"}]',
    '[{"index": 2147483648, "error": "e"}]',
    '[{"index": 0, "error": ""}]',
    '[{"index": 0, "error": "%s\\u001b[2J\\n"}]',
    '[{"index": 0, "error": "' + "x" * MEGABYTE + '"}]',
    '[{"index": 0, "error": "e"}, null]',
    '[{"INDEX": 0, "error": "e"}]',
    '[[0, "e"]]',
    '{"index": 0, "error": "e"}',
]
ODD_COUNTERS = [
    '{"n": 9223372036854775807}',
    '{"n": 9223372036854775808}',
    '{"n": 1.0}',
    '{"n": 1e2}',
    '{"n": 1.5}',
    '{"n": 1e-400}',
    '{"n": -1}',
    '{"n": -0}',
    '{"n": 1, "n": 2}',
    '{"n": "1"}',
    '{"n": null}',
    '{"n": true}',
    '{"n": [1]}',
    '{"": 1}',
    '{"%s": 1}',
    '{"' + "x" * 200 + '": 1}',
    '{"' + "x" * 201 + '": 1}',
    '{"\\u202e": 1}',
]


@dataclass(frozen=True)
class Target:
    """A batch of the population, or a job without any (batch 0)."""

    job_id: int
    batch_id: int
    lease_epoch: int
    items: int
    leased: bool
    status: str = ""
    sealed: bool = True


def _json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# No lone surrogates: they cannot be said in UTF-8. As escapes they are among ODD_JSON.
_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=8,
).map(_json_text)
_ITEMS = st.lists(st.integers(0, 9) | _TEXT | st.none(), max_size=7).map(_json_text)

_hostile_text = st.sampled_from([*ODD_TEXTS, *NO_TEXTS, None]) | _TEXT
_hostile_json = st.sampled_from([*ODD_JSON, *NO_TEXTS, None]) | _JSON
_HOSTILE: dict[str, st.SearchStrategy[Value]] = {
    "text": _hostile_text,
    "jsonb": _hostile_json,
    "integer": st.sampled_from([*map(str, WHOLE), *NO_NUMBERS, None])
    | st.integers(-(2**33), 2**33).map(str),
    "bigint": st.sampled_from([*map(str, WHOLE), *NO_NUMBERS, None])
    | st.integers(-(2**65), 2**65).map(str),
    "numeric": st.sampled_from([*NUMERICS, None]) | st.decimals().map(str),
    "timestamp with time zone": st.sampled_from([*TIMES, None])
    | st.datetimes().map(lambda at: f"{at} UTC"),
    "interval": st.sampled_from([*INTERVALS, None])
    | st.integers(-(2**63), 2**63).map(lambda n: f"{n} microseconds"),
    "boolean": st.sampled_from([*BOOLEANS, None]),
    "text[]": st.sampled_from([*ARRAYS, *NO_TEXTS, None])
    | st.lists(_TEXT | st.none(), max_size=4).map(
        lambda names: "{" + ",".join("NULL" if n is None else _json_text(n) for n in names) + "}"
    ),
    "bigint[]": st.sampled_from([*NUMBER_ARRAYS, None])
    | st.lists(st.integers(-5, 200) | st.none(), max_size=4).map(
        lambda ids: "{" + ",".join("NULL" if i is None else str(i) for i in ids) + "}"
    ),
    "pyjobs.job_status": st.sampled_from([*STATUSES, None]),
}

_LANES = ["q", "q2", "paused lane", "done", "default"]
_SANE: dict[str, st.SearchStrategy[Value]] = {
    "queue": st.sampled_from(_LANES),
    "queues": st.sampled_from(
        ["{q}", "{q,q2}", "{done}", "{paused lane}", "{none}", "[5:6]={q,x}"]
    ),
    "worker": st.sampled_from(["w", "w2"]),
    "items": _ITEMS,
    "params": _ITEMS,
    "batch_size": st.sampled_from(["1", "2", "1000000"]),
    "priority": st.sampled_from(["0", "5", "-2147483648", "2147483647"]),
    "run_at": st.sampled_from(["now", "294276-12-31", "4714-11-24 00:00:00+00 BC"]),
    "name": st.none() | st.just("name"),
    "dedupe_key": st.none() | st.sampled_from(["key", "other"]),
    "failure_threshold": st.sampled_from(["0", "1", "0.5", "1e-16000"]),
    "max_attempts": st.sampled_from(["1", "1000"]),
    "stages": st.sampled_from(["{process}", "{a,b}", "[3:4]={a,b}"]),
    "barriers": st.sampled_from(["{}", "{b}", "{a,b}"]),
    "stage": st.none() | st.sampled_from(["a", "b", "process"]),
    "max_batches": st.sampled_from(["1", "3", "1000000"]),
    "max_jobs": st.sampled_from(["1", "3", "1000000"]),
    "lease": st.sampled_from(["1 minute", "1 microsecond", "1 day"]),
    "retry_in": st.sampled_from(["0", "1 second", "365 days"]),
    "grace": st.sampled_from(["0", "1 second", "365 days"]),
    "stale_after": st.none() | st.sampled_from(["0", "1 day", "365 days"]),
    "older_than": st.sampled_from(["0", "1 day", "6000 years"]),
    "reason": st.sampled_from(["why", "%s\n"]),
    "status": st.sampled_from(["RETRY", "FAILURE", "SUCCESS", "REVOKED"]),
    "error": st.none() | st.sampled_from(["why", "%s\n"]),
    "detail": st.none() | st.just("why"),
    "sqlstate": st.sampled_from(["PJ001", "40001", "00000"]),
}


def _odd_only(argument: str) -> list[str]:
    return {"failed": ODD_FAILED, "counters": ODD_COUNTERS}.get(argument, [])


def _failed(items: int) -> st.SearchStrategy[str]:
    """As record_batch wants it, for a batch of so many items."""
    return st.sets(st.integers(0, max(0, items - 1)), max_size=items).map(
        lambda indexes: _json_text([{"index": i, "error": f"%s {i}"} for i in sorted(indexes)])
    )


def _counters() -> st.SearchStrategy[str]:
    return st.dictionaries(
        st.sampled_from(["n", "m", "%"]), st.integers(0, 2**63 - 1), max_size=3
    ).map(_json_text)


@st.composite
def calls(
    draw: st.DrawFn, signature: dict[str, str], required: int, targets: list[Target]
) -> dict[str, Value]:
    """Arguments of a function.

    signature   the arguments' types by their names, in their order
    required    how many have no default
    targets     what the ids are taken from: the first, or where many are asked for all
    """
    many = "batch_ids" in signature
    chosen = targets if many else targets[:1]
    first = chosen[0]
    # Often all is right but one, at times all is wrong.
    wildness = draw(st.sampled_from([0, 0, 1, 1, 1, 2, 20]))
    wild = set(
        draw(st.lists(st.sampled_from(sorted(signature)), min_size=1, max_size=wildness))
        if wildness and signature
        else []
    )
    given: dict[str, Value] = {}
    for number, (argument, kind) in enumerate(signature.items()):
        if argument in wild:
            odd = _odd_only(argument)
            given[argument] = draw(st.sampled_from(odd) | _HOSTILE[kind] if odd else _HOSTILE[kind])
        elif number >= required and draw(st.booleans()):
            continue
        elif argument == "job_id":
            given[argument] = str(first.job_id)
        elif argument == "batch_id":
            given[argument] = str(first.batch_id)
        elif argument == "batch_ids":
            given[argument] = "{" + ",".join(str(t.batch_id) for t in chosen) + "}"
        elif argument == "lease_epoch":
            given[argument] = str(first.lease_epoch - draw(st.sampled_from([0, 0, 0, 1])))
        elif argument == "lease_epochs":
            given[argument] = "{" + ",".join(str(t.lease_epoch) for t in chosen) + "}"
        elif argument == "failed":
            each = [draw(_failed(t.items)) for t in chosen]
            given[argument] = f"[{','.join(each)}]" if many else each[0]
        elif argument == "counters":
            each = [draw(_counters()) for _ in chosen]
            given[argument] = f"[{','.join(each)}]" if many else each[0]
        elif argument == "next_items":
            given[argument] = draw(st.none() | _ITEMS)
        elif argument in _SANE:
            given[argument] = draw(_SANE[argument])
        else:
            given[argument] = draw(_HOSTILE[kind])
    return given
