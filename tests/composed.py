"""deploy/compose.yaml as processes of this machine: the same commands and environments, on ports that are free."""

import re
import socket
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
PORTS = {"postgres": 5432, "s3": 9000, "mlflow": 5000, "prefect": 4200, "worker": 8080, "gateway": 5001, "page": 7860}


class Compose:
    """The file, with the variables of an environment file filled in.

    Args:
        variables: of the environment file, as it stands in the file.
    """

    def __init__(self, variables: dict[str, str]) -> None:
        self.services: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())[
            "services"
        ]
        self.ports = {service: _free_port() for service in PORTS}
        self.variables = variables

    def command(self, service: str) -> list[str]:
        said = self.services[service]
        return [self.here(word) for word in (*said.get("entrypoint", ()), *said["command"])]

    def environment(self, service: str) -> dict[str, str]:
        said = self.services[service]["environment"]
        return {name: "127.0.0.1" if name.endswith("HOST") else self.here(value) for name, value in said.items()}

    def probe(self, service: str) -> list[str]:
        """The health check's command."""
        return [self.here(word) for word in self.services[service]["healthcheck"]["test"][1:]]

    def here(self, text: str) -> str:
        """A word with its variables filled in, and this machine's address and free ports in place of theirs."""

        def fill(found: re.Match[str]) -> str:
            name, sign, word = found.groups()
            value = self.variables.get(name, "")
            assert value or sign == "-", f"{name} has no value"
            return value or word

        text = re.sub(r"\$\{(\w+):([-?])([^}]*)\}", fill, text).replace("$$", "$")
        text = re.sub(rf"\b(?:{'|'.join(PORTS)})(?=:\d)", "127.0.0.1", text).replace("0.0.0.0", "127.0.0.1")
        for service, port in PORTS.items():
            text = re.sub(rf"(?<![\w.]){port}(?!\w)", str(self.ports[service]), text)
        return text


def read_variables(text: str) -> dict[str, str]:
    """What an environment file says."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)  # type: ignore[misc]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
