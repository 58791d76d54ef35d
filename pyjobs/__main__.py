"""`python -m pyjobs` is the program `pyjobs`."""

from __future__ import annotations

from pyjobs.cli import app

if __name__ == "__main__":
    app()
