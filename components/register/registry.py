"""The model registry: versions, aliases, promotion and rollback."""

import json
from dataclasses import dataclass
from typing import Any

from components import tracking
from components.stage import StageError

CHAMPION, CHALLENGER = "champion", "challenger"
_HISTORY = "champion_history"


@dataclass(frozen=True)
class Version:
    """A registered version with what the lists show."""

    number: str
    aliases: list[str]
    tags: dict[str, str]
    run_id: str
    created: int  # ms since 1970


class Registry:
    """One registered model in MLflow's registry.

    Args:
        name: of the registered model.

    Raises:
        StageError: MLflow can't be reached.
    """

    def __init__(self, name: str) -> None:
        self.mlflow = tracking.connect()
        self.client = self.mlflow.MlflowClient()
        self.name = name

    def versions(self) -> list[Version]:
        """All versions, the newest first; none before the first registration."""
        aliases = self._aliases()
        found = self.client.search_model_versions(f"name = '{self.name}'", max_results=1000)
        return sorted(
            (
                Version(
                    str(v.version),
                    sorted(a for a, number in aliases.items() if number == str(v.version)),
                    dict(v.tags),
                    v.run_id or "",
                    v.creation_timestamp,
                )
                for v in found
            ),
            key=lambda v: -int(v.number),
        )

    def alias(self, alias: str) -> Version | None:
        """The version that an alias points to."""
        return next((v for v in self.versions() if alias in v.aliases), None)

    def promote(self, number: str) -> None:
        """Make a version the champion, and remember the one before.

        Raises:
            StageError: there is no such version.
        """
        version = self._check(number)
        before = self._aliases().get(CHAMPION)
        history = self._history()
        if before is not None and (not history or history[-1] != before):
            history.append(before)  # moved in the MLflow UI
        if not history or history[-1] != number:
            history.append(number)
        self._remember(history)
        self.client.set_registered_model_alias(self.name, CHAMPION, number)
        if CHALLENGER in version.aliases:
            self.client.delete_registered_model_alias(self.name, CHALLENGER)

    def challenge(self, number: str) -> None:
        """Make a version the challenger."""
        self.client.set_registered_model_alias(self.name, CHALLENGER, number)

    def rollback(self) -> str:
        """Make the champion before this one the champion again, and return its number.

        Raises:
            StageError: there was none before.
        """
        current = self._aliases().get(CHAMPION)
        history = self._history()
        if history and history[-1] == current:
            history.pop()
        existing = {v.number for v in self.versions()}
        while history and history[-1] not in existing:
            history.pop()
        if current is None or not history:
            raise StageError(f"{self.name} has no earlier champion; `trueframe promote VERSION` chooses one")
        self._remember(history)
        self.client.set_registered_model_alias(self.name, CHAMPION, history[-1])
        return history[-1]

    def load(self, number: str) -> Any:
        """The detector of a version (see `components.serve.detector.Detector`).

        Raises:
            StageError: there is no such version, or its files are gone or damaged.
        """
        from components import networks

        self._check(number)
        networks.load_keras()
        try:
            model = self.mlflow.pyfunc.load_model(f"models:/{self.name}/{number}")
            return model.unwrap_python_model().detector
        except (self.mlflow.exceptions.MlflowException, OSError, KeyError, ValueError) as error:
            raise StageError(
                f"{self.name} version {number} can't be loaded ({str(error).splitlines()[0]}); "
                "its artifacts are gone or damaged. `trueframe rollback` goes to the champion before"
            ) from None

    def _check(self, number: str) -> Version:
        versions = {v.number: v for v in self.versions()}
        if number not in versions:
            known = ", ".join(sorted(versions, key=int)) or "none yet; `trueframe run` trains one"
            raise StageError(f"{self.name} has no version {number}; versions: {known}")
        return versions[number]

    def _aliases(self) -> dict[str, str]:
        model = self._registered()
        return {alias: str(number) for alias, number in model.aliases.items()} if model else {}

    def _history(self) -> list[str]:
        model = self._registered()
        return [str(number) for number in json.loads(model.tags.get(_HISTORY, "[]"))] if model else []

    def _registered(self) -> Any:
        """The registered model, or None before the first version."""
        try:
            return self.client.get_registered_model(self.name)
        except self.mlflow.exceptions.MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    def _remember(self, history: list[str]) -> None:
        self.client.set_registered_model_tag(self.name, _HISTORY, json.dumps(history))
