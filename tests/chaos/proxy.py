"""A network before Redis that fails in every way; what it does can be changed at any moment.

It listens on TCP in a thread of its own and forwards to the server's Unix socket.
"""

import asyncio
import socket
import struct
import threading
from asyncio import StreamReader, StreamWriter
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal, Self

from service.store.names import DEFAULT as names

Mode = Literal["pass", "cut", "silent", "late", "reset", "half"]
"""Forward; close at once; swallow everything; answer late; RST; end what is to be read."""
DELAY_S = 0.3
_CHUNK = 2**20
_APPEND = f"XADD\r\n${len(names.log)}\r\n{names.log}\r\n".encode()
"""What an EXEC holds that adds a batch to the log; one that only tells an event adds elsewhere."""
_NO_LINGER = struct.pack("ii", 1, 0)


class Proxy:
    """Between a service and the server at a unix:// address; use it as a context manager."""

    def __init__(self, redis_url: str) -> None:
        self._target = Path(redis_url.removeprefix("unix://"))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._open: set[StreamWriter] = set()
        self._mode: Mode = "pass"
        self.lose_every = 0
        """One in so many answers to EXEC is lost, and its connection with it; 0 for none."""
        self.execs: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        """EXECs seen, and answers lost: `append` of the API, `other` of the worker."""
        self.url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        self.url = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def become(self, mode: Mode) -> None:
        """Change what happens to every connection, old and new."""
        self._mode = mode
        if mode not in ("silent", "late"):
            self._loop.call_soon_threadsafe(self._end_all)

    async def _listen(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=_CHUNK)
        return f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _end(self) -> None:
        self._server.close()
        self._mode = "cut"
        self._end_all()
        while self._open:  # noqa: ASYNC110  each connection ends by itself
            await asyncio.sleep(0.01)

    def _end_all(self) -> None:
        for writer in self._open:
            self._end_one(writer)

    def _end_one(self, writer: StreamWriter) -> None:
        if self._mode == "half":
            with suppress(OSError):
                writer.write_eof()
            return
        if self._mode == "reset":
            raw: socket.socket = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        writer.transport.abort()

    async def _serve(self, client: StreamReader, answers: StreamWriter) -> None:
        server, commands = await asyncio.open_unix_connection(self._target, limit=_CHUNK)
        self._open.add(answers)
        if self._mode in ("cut", "reset", "half"):
            self._end_one(answers)
        asked: list[str] = []  # EXECs whose answers have not come back

        def note(data: bytes) -> bool:
            if data.endswith(b"EXEC\r\n"):
                asked.append("append" if _APPEND in data else "other")
            return False

        def loses(_: bytes) -> bool:
            return bool(asked) and self._loses(asked.pop())

        pumps = {
            asyncio.create_task(self._pump(client, commands, note)),
            asyncio.create_task(self._pump(server, answers, loses)),
        }
        try:
            _, left = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in left:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            commands.transport.abort()
            answers.transport.abort()
            self._open.discard(answers)

    async def _pump(
        self, source: StreamReader, target: StreamWriter, ends: Callable[[bytes], bool]
    ) -> None:
        """Forward until there is no more, or `ends` says so of what was read."""
        with suppress(OSError):
            while data := await source.read(_CHUNK):
                if self._mode == "late":
                    await asyncio.sleep(DELAY_S / 2)
                if ends(data):
                    return
                if self._mode in ("pass", "late"):
                    target.write(data)
                    await target.drain()

    def _loses(self, kind: str) -> bool:
        self.execs[kind] += 1
        if not self.lose_every or self.execs[kind] % self.lose_every:
            return False
        self.lost[kind] += 1
        return True
