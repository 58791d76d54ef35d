"""The asynchronous half, which is also the source of the synchronous one: see tools/generate.py."""
