"""`mlflow models serve`, and word of when it is ready."""

import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

from components.stage import StageError
from flows import commands


def serve(model: str, version: str, host: str, port: int, workers: int) -> None:
    """Serve a model until interrupted.

    Raises:
        StageError: the port is taken, or the server ended.
    """
    with socket.socket() as probe:
        if probe.connect_ex((host, port)) == 0:
            raise StageError(f"port {port} is taken; choose another one with --port")
    where = ["--host", host, "--port", str(port), "--workers", str(workers)]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "-m",
        model,
        "--env-manager",
        "local",
        *where,
    ]
    server = subprocess.Popen(command, env=commands.environment())
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    try:
        while not _answers(f"http://{host}:{port}/ping"):
            if server.poll() is not None:
                raise StageError(f"the server ended with code {server.returncode}; its lines above say why")
            time.sleep(0.2)
        print(
            f"version {version} is ready at http://{host}:{port}/invocations\n"
            f"try: jq -n --arg i \"$(base64 -w0 PICTURE)\" '{{dataframe_records: [{{image: $i}}]}}' | "
            f"curl -s -H 'Content-Type: application/json' -d @- http://{host}:{port}/invocations",
            flush=True,
        )
        if server.wait() not in (0, -signal.SIGTERM, -signal.SIGINT):
            raise StageError(f"the server ended with code {server.returncode}")
    except KeyboardInterrupt:
        server.wait()
    finally:
        if server.poll() is None:
            server.terminate()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
