"""A storm: all that the interface allows at once, while processes, sessions and servers die.

    python -m tests.storm --minutes 2

Clients run as processes of their own, and keep a ledger outside the database: a line before each
call that changes something, and a line when its commit was acknowledged. Processes are killed with
SIGKILL, sessions ended, the server killed and started again. Afterwards all is let go and worked to
its end, and the verdict compares the ledger, the application's rows and pyjobs' tables by SQL of
its own: what was acknowledged is there, once, and nothing is there that nobody asked for.

``ledger`` is the file, ``actors`` the clients, ``weather`` starts and kills them, ``verdict`` has
the checks, ``broken`` the copies of the functions and of a worker on which a storm must turn red.
"""
