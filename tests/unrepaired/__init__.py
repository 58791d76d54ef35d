"""The design that pyjobs replaces, kept so that tests can show that they would have caught it."""
