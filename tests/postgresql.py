"""A real PostgreSQL (the binaries of `pgserver`) that listens on a port and asks for a password."""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Postgres:
    """A server; `user` may do everything in it."""

    folder: Path
    port: int
    user: str
    password: str
    process: subprocess.Popen[bytes] | None = None

    def connect(self, database: str) -> Any:
        import psycopg2

        where = {"host": "127.0.0.1", "port": self.port, "user": self.user, "password": self.password}
        connection = psycopg2.connect(dbname=database, **where)
        connection.autocommit = True
        return connection

    def run(self, database: str, script: str) -> None:
        """Run a script's statements, each by itself."""
        lines = [line for line in script.splitlines() if not line.startswith("--")]
        with closing(self.connect(database)) as connection:
            for statement in filter(str.strip, "\n".join(lines).split(";")):
                connection.cursor().execute(statement)

    def start(self) -> None:
        """Until it answers."""
        import psycopg2

        options = [
            "listen_addresses=127.0.0.1",
            "fsync=off",
            "shared_buffers=32MB",
            f"unix_socket_directories={self.folder}",
        ]
        command = [self.folder / "pgserver/pginstall/bin/postgres", "-D", self.folder / "data", "-p", str(self.port)]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *(word for option in options for word in ("-c", option))],
                stdout=log,
                stderr=log,
                **_identity(self.folder),
            )
        end = time.monotonic() + 60
        while True:
            try:
                self.connect("postgres").close()
                return
            except psycopg2.OperationalError:
                said = (self.folder / "server.log").read_text()
                assert self.process.poll() is None and time.monotonic() < end, said
                time.sleep(0.1)

    def stop(self) -> None:
        """Cut all connections."""
        if self.process is not None:
            self.process.send_signal(2)  # SIGINT: a fast shutdown
            self.process.wait(60)
            self.process = None


@contextmanager
def serve(port: int, user: str, password: str) -> Iterator[Postgres]:
    """A new server with the database `postgres`."""
    pgserver = pytest.importorskip("pgserver", reason="`pip install pgserver` brings a PostgreSQL")
    # Not in pytest's folder, which root keeps to itself: PostgreSQL refuses to run as root.
    folder = Path(tempfile.mkdtemp(prefix="trueframe-postgres-"))
    try:
        packages = Path(pgserver.__file__).parents[1]
        for part in ("pgserver/pginstall", "pgserver.libs"):  # the one looks for the other beside it
            shutil.copytree(packages / part, folder / part)
        (folder / "password").write_text(password)
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            for path in (folder, folder / "password"):
                os.chown(path, nobody.pw_uid, nobody.pw_gid)
        where = ["-D", folder / "data", "-U", user, f"--pwfile={folder / 'password'}"]
        made = subprocess.run(
            [
                folder / "pgserver/pginstall/bin/initdb",
                *where,
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
            ],
            capture_output=True,
            text=True,
            **_identity(folder),
        )
        assert made.returncode == 0, made.stderr
        server = Postgres(folder, port, user, password)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


def _identity(folder: Path) -> dict[str, Any]:
    """Whose process it is to be, and where."""
    if os.geteuid():
        return {"cwd": folder}
    nobody = pwd.getpwnam("nobody")
    return {"cwd": folder, "user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
