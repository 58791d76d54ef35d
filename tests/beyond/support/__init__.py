"""What the tests beyond the server need: a primary with a standby, load, old servers."""
