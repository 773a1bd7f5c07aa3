"""One process that answers: it holds one version of the detector for as long as it lives.

Who starts it tells it on stdin what to do and keeps the socket that it listens on; at the end of stdin, however that
comes, it answers what it has and ends. On stdout it says how far it is, and then that it is alive.
"""

import asyncio
import contextlib
import io
import os
import pickle
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from components.params import Monitor, Serve
from components.stage import StageError

LOADED, SERVING, LEAVING, ALIVE = "loaded", "serving", "leaving", "alive"
"""What it says, a line each."""
BEAT = 5.0  # s between two signs of life
_CONNECTIONS = 1000
IDLE = 15  # s after which a connection that isn't used is closed


@dataclass(frozen=True)
class Orders:
    """What a worker is told first; then the folder of an MLflow model and its version, then to serve, then to leave.

    Attributes:
        listening: number of the socket, which is inherited.
    """

    listening: int
    settings: Serve
    monitor: Monitor
    keys: list[str]


def main() -> None:
    """Do as stdin says."""
    for number in (signal.SIGINT, signal.SIGTERM):  # that a terminal or systemd sends to all; the parent ends this
        signal.signal(number, signal.SIG_IGN)
    # The parent may be gone by the time that this says something, or closes what it says.
    with contextlib.suppress(BrokenPipeError), os.fdopen(os.dup(1), "w", buffering=1) as out:
        os.dup2(2, 1)  # whatever a library prints
        with contextlib.suppress(EOFError):
            orders: Orders = pickle.load(sys.stdin.buffer)
            from components.serve.files import Files  # which takes a while, as asking the registry does

            folder, version = pickle.load(sys.stdin.buffer)
            try:
                score = _loaded(Files.logged(Path(folder)).load(version), references=orders.settings.references)
            except Exception as error:
                kind = "" if isinstance(error, StageError) else f"{type(error).__name__}: "
                out.write(" ".join(f"{kind}{error}".split())[:300] + "\n")
                return
            out.write(f"{LOADED}\n")
            pickle.load(sys.stdin.buffer)
            asyncio.run(_serve(orders, score, version, lambda said: out.write(f"{said}\n")))
    os._exit(0)  # a thread that hangs in a decoder is not waited for


def _loaded(champion: Any, *, references: Literal["fast"] | bool) -> Callable[..., Any]:
    """What judges, after it has judged a picture."""
    from PIL import Image

    from components.serve import reference
    from components.serve.cascade import Cascade

    picture = io.BytesIO()
    Image.effect_noise((64, 64), 60).convert("RGB").save(picture, "PNG")
    [row] = champion.score([picture.getvalue()])
    if row["error"]:
        raise ValueError(f"it answers {row}")
    beside = reference.beside(fast=references == "fast") if references else []
    return Cascade([champion, *beside]).score if beside else champion.score


async def _serve(orders: Orders, score: Callable[..., Any], version: str, say: Callable[[str], Any]) -> None:
    import uvicorn

    from components.serve.gateway import Gateway, protocol

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    settings, loop, told = orders.settings, asyncio.get_running_loop(), asyncio.Queue[bool]()
    gateway = Gateway(score, version, settings, orders.keys, orders.monitor)
    config = uvicorn.Config(
        gateway.app,
        http=protocol(settings.read_s),
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=IDLE,
        timeout_graceful_shutdown=round(settings.answer_s),
        proxy_headers="FORWARDED_ALLOW_IPS" in os.environ,  # only who is named there may say who asks
    )
    server = Server(config)

    def listen() -> None:
        with contextlib.suppress(EOFError):
            while True:
                loop.call_soon_threadsafe(told.put_nowait, bool(pickle.load(sys.stdin.buffer)))
        loop.call_soon_threadsafe(told.put_nowait, False)

    async def obey() -> None:
        try:
            while not server.started:
                await asyncio.sleep(0.01)
            say(SERVING)
            if await told.get():
                gateway.leave()
                for listener in server.servers:
                    listener.close()
                say(LEAVING)
                while server.server_state.connections and told.empty():
                    await asyncio.sleep(0.1)
        finally:  # where nobody hears what it says, too
            server.should_exit = True

    async def beat() -> None:
        while not gateway.queue.is_stuck:
            await asyncio.sleep(BEAT)
            say(ALIVE)

    threading.Thread(target=listen, daemon=True).start()
    async with gateway.open():
        others = [asyncio.create_task(obey()), asyncio.create_task(beat())]
        await server.serve(sockets=[socket.socket(fileno=orders.listening)])
        for other in others:
            other.cancel()


if __name__ == "__main__":
    main()
