"""A proxy between a client and the server that cuts connections at a chosen moment."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

from psycopg import conninfo

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

# The server's message ReadyForQuery: what was sent is done, and committed if it was to be.
READY = b"Z\x00\x00\x00\x05"
# An ErrorResponse: terminating connection due to administrator command.
GOING = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0"
GOING = b"E" + (len(GOING) + 4).to_bytes(4, "big") + GOING


class Proxy:
    """Forwards to a server; ``dsn`` is as the server's, through the proxy.

    ``cut_after(b"COMMIT")``: the next time that a client sends this, the server does it, and its
    answer gets lost with the connection. ``cut_before``: the server never sees it. ``cut_within``:
    its answer comes, and before the end of it the word that the server goes, as poolers pass it on.
    ``down()``: all connections are cut, and new ones too, until ``up()``.
    """

    def __init__(self, dsn: str) -> None:
        parameters = conninfo.conninfo_to_dict(dsn)
        self._host, self._port = str(parameters["host"]), int(str(parameters["port"]))
        self._parameters = parameters
        self._after: bytes | None = None
        self._before: bytes | None = None
        self._within: bytes | None = None
        self._down = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.cuts = 0
        self._sent: list[bytearray] = []

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._call(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def dsn(self) -> str:
        port = self._server.sockets[0].getsockname()[1]
        # Without encryption the proxy can read what is said.
        parameters = {**self._parameters, "sslmode": "disable", "gssencmode": "disable"}
        return conninfo.make_conninfo("", **{**parameters, "host": "127.0.0.1", "port": port})

    def cut_after(self, text: bytes) -> None:
        self._after = text

    def cut_before(self, text: bytes) -> None:
        self._before = text

    def cut_within(self, text: bytes) -> None:
        self._within = text

    def down(self) -> None:
        self._down = True
        self._call(self._cut_all())

    def up(self) -> None:
        self._down = False

    def queries(self) -> list[tuple[str, str]]:
        """All that clients have asked: the name of the prepared statement, and the text."""
        return [query for sent in self._sent for query in _queries(bytes(sent))]

    def _call(self, coroutine: Coroutine[None, None, object]) -> object:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def _close(self) -> None:
        self._server.close()
        await self._cut_all()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _cut_all(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self._down:
            writer.transport.abort()
            return
        if self._host.startswith("/"):
            path = str(Path(self._host) / f".s.PGSQL.{self._port}")
            there = await asyncio.open_unix_connection(path)
        else:
            there = await asyncio.open_connection(self._host, self._port)
        link = _Link(self, (reader, writer), there)
        self._writers |= {writer, there[1]}
        with contextlib.suppress(OSError):
            await asyncio.gather(link.to_server(), link.to_client())
        self._writers -= {writer, there[1]}
        for end in (writer, there[1]):
            end.transport.abort()


class _Link:
    def __init__(self, proxy: Proxy, here: tuple, there: tuple) -> None:  # type: ignore[type-arg]
        self.proxy = proxy
        self.from_client, self.client = here
        self.from_server, self.server = there
        self.cutting = False
        self.last_word = b""
        self.sent = bytearray()
        proxy._sent.append(self.sent)

    def cut(self) -> None:
        self.proxy.cuts += 1
        if not self.last_word:
            self.client.transport.abort()
        self.server.transport.abort()

    async def to_server(self) -> None:
        while data := await self.from_client.read(65536):
            self.sent += data
            if self.proxy._before and self.proxy._before in data:
                self.proxy._before = None
                self.cut()
                return
            if self.proxy._after and self.proxy._after in data:
                self.proxy._after = None
                self.cutting = True
            if self.proxy._within and self.proxy._within in data:
                self.proxy._within = None
                self.cutting = True
                self.last_word = GOING
            self.server.write(data)
            await self.server.drain()
        self.server.transport.abort()

    async def to_client(self) -> None:
        held = b""
        while data := await self.from_server.read(65536):
            if self.cutting:
                held += data
                if READY in held:
                    if self.last_word:
                        self.client.write(held.partition(READY)[0] + self.last_word)
                        await self.client.drain()
                        self.client.write_eof()
                    self.cut()
                    return
                continue
            self.client.write(data)
            await self.client.drain()
        self.client.transport.abort()


def _queries(sent: bytes) -> Iterator[tuple[str, str]]:
    """Find Query and Parse in what a client has sent, which begins with a startup message."""
    at = int.from_bytes(sent[:4])
    while at + 5 <= len(sent):
        kind, end = sent[at : at + 1], at + 1 + int.from_bytes(sent[at + 1 : at + 5])
        body = sent[at + 5 : end].split(b"\0")
        if kind == b"Q":
            yield "", body[0].decode()
        elif kind == b"P":
            yield body[0].decode(), body[1].decode()
        at = end
