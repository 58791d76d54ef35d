# Made from pyjobs/_async/__init__.py by tools/generate.py: edit that one, and run it.
"""The asynchronous half, which is also the source of the synchronous one: see tools/generate.py."""
