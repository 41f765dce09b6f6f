"""A Unix socket before Redis that loses answers: the command took effect, nobody is told."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path


class LossyLink:
    """Forwards to Redis; loses the answers to so many EXECs, or all there is to say."""

    def __init__(self, target: Path, socket: Path) -> None:
        self._target = target
        self.url = f"unix://{socket}"
        self.losses = 0
        """Answers to EXEC still to be lost; each takes its connection with it."""
        self.silent = False
        """Whether nothing is forwarded any more, and nothing closed."""

    async def serve(self, client: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        """Forward one connection, one round trip after the other."""
        server, commands = await asyncio.open_unix_connection(self._target)
        try:
            while asked := await client.read(2**24):
                if self.silent:
                    await asyncio.sleep(60)
                commands.write(asked)
                told = await server.read(2**24)
                if asked.endswith(b"EXEC\r\n") and self.losses:
                    self.losses -= 1
                    return
                answers.write(told)
        finally:
            commands.close()
            answers.close()


@asynccontextmanager
async def lossy_link(redis_url: str, tmp_path: Path) -> AsyncIterator[LossyLink]:
    """Yield a link to the server at a unix:// address, which loses nothing until it is told."""
    socket = tmp_path / "lossy.sock"
    link = LossyLink(Path(redis_url.removeprefix("unix://")), socket)
    listener = await asyncio.start_unix_server(link.serve, socket, limit=2**24)
    yield link
    listener.close()
