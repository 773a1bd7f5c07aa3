"""`trueframe serve`: the socket, the settings and a folder, for workers that hold the champion."""

import asyncio
import os
import socket
import tempfile
from pathlib import Path

from components.params import Monitor, Serve
from components.stage import StageError


def serve(name: str, settings: Serve, monitor: Monitor, host: str, port: int, workers: int, *, follow: bool) -> None:
    """Serve the champion until told to end.

    Args:
        name: of the registered model.
        settings: the section `serve`.
        monitor: the section `monitor`.
        host: of the gateway.
        port: of the gateway.
        workers: processes that answer.
        follow: whether to move to new champions.

    Raises:
        StageError: there is no champion, the port is taken, or the model can't be loaded.
    """
    with tempfile.TemporaryDirectory(prefix="trueframe-", ignore_cleanup_errors=True) as scratch:
        # Where all processes keep their metrics; it counts from when prometheus_client is imported, as here.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = scratch
        from components.serve import gateway
        from components.serve.supervisor import Supervisor
        from components.serve.worker import Orders

        keys = gateway.keys()
        try:
            listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except OSError as error:
            raise StageError(
                f"{host}:{port} can't be used ({error.strerror}); choose another one with --port"
            ) from None
        with listening:
            # Answers leave at once: asyncio asks for this only where a socket names its protocol, and this one doesn't.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # who doesn't read the answer is cut off
                listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(settings.read_s * 1000))
            orders = Orders(listening.fileno(), settings, monitor, keys)
            asyncio.run(Supervisor(name, orders, workers, Path(scratch)).run(listening, follow=follow))
