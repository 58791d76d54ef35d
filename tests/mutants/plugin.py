"""For pytest: writes what failed, when and why, to the file that ``MUTANT_REPORT`` names."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

_kept: list[dict[str, Any]] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Iterator[None]:
    report = yield
    if call.excinfo is not None:
        error = call.excinfo.value
        # Part of the report, so that it travels from a worker of xdist.
        report.mutant = {  # type: ignore[attr-defined]
            "type": type(error).__name__,
            "sqlstate": getattr(error, "sqlstate", None) or "",
            "text": str(error)[:2000],
        }
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if os.environ.get("PYTEST_XDIST_WORKER"):
        return
    if report.failed or report.when == "call":
        _kept.append(
            {
                "test": report.nodeid,
                "when": report.when,
                "outcome": report.outcome,
                **getattr(report, "mutant", {}),
            }
        )


def pytest_sessionfinish() -> None:
    if not os.environ.get("PYTEST_XDIST_WORKER"):
        Path(os.environ["MUTANT_REPORT"]).write_text(json.dumps(_kept), "utf-8")
