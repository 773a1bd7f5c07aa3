"""The model registry: versions, aliases, promotion and rollback.

Whoever moves the alias `champion`, in the MLflow UI too, the history of champions is kept in the registered model's
tags: one tag an event, never changed, so that nothing is lost when two people promote at once. What was moved elsewhere
is noted at the next look.
"""

import contextlib
import errno
import getpass
import hashlib
import json
import os
import shutil
import socket
import sys
import tempfile
import time
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from components import integrity, stage, tracking
from components.registered import CHAMPION, SUMS
from components.stage import StageError

CHALLENGER = "challenger"
FAILED = "gate_failed"
"""The tag that names the gate's rules that a version fails, separated by commas."""
OVERRULED = "gate_overruled"
"""The tag that says who promoted a version despite these, when and why."""
NETWORKS = "networks"
"""The folder of a version's run that holds its Keras networks, for a warm start or LiteRT."""
LINEAGE = "lineage"
"""The folder of a version's run that holds the list of its files, and the settings and locks by which it was made."""
_EVENT = "champion."
_SETTLE = 2.0  # s between an event and the move of the alias in another process, at most
_REASON = 1000  # characters
_WAITS = (0.1, 0.3, 1.0, 3.0)  # s before a write that failed is tried again


class Gone(StageError):
    """A version is in the registry, and its artifacts are gone or damaged."""


How = Literal["gate", "promoted", "rolled back", "found"]


@dataclass(frozen=True)
class Version:
    """A registered version with what the lists show."""

    number: str
    aliases: list[str]
    tags: dict[str, str]
    run_id: str
    created: int  # ms since 1970


@dataclass(frozen=True)
class Event:
    """One move of the alias `champion`.

    Attributes:
        at: when, ISO 8601 in UTC; of one `found`, when it was noted.
        version: that it was moved to.
        how: by the gate, by a person's command, back by one, or `found`: moved elsewhere, as in the MLflow UI.
        by: who, as user@host; of one `found`, who looked.
        reason: that was given.
    """

    at: str
    version: str
    how: How
    by: str
    reason: str = ""


class Denied(StageError):
    """The registry's server doesn't let this user do that."""


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
        aliases = self._aliases(self._registered())
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

    def version(self, number: str) -> Version:
        """One version.

        Raises:
            StageError: there is no such version.
        """
        versions = {v.number: v for v in self.versions()}
        if number not in versions:
            known = ", ".join(sorted(versions, key=int)) or "none yet; `trueframe run` trains one"
            raise StageError(f"{self.name} has no version {number}; versions: {known}")
        return versions[number]

    def alias(self, alias: str) -> Version | None:
        """The version that an alias points to."""
        return next((v for v in self.versions() if alias in v.aliases), None)

    def promote(self, number: str, *, how: How = "promoted", force: bool = False, reason: str = "") -> None:
        """Make a version the champion.

        Args:
            number: of the version.
            how: it came to that.
            force: despite the gate's rules that it fails.
            reason: is kept in the history, and as a tag of the version where rules were overruled.

        Raises:
            StageError: there is no such version, or it fails a rule and nobody said why it is to be promoted all the
                same.
        """
        version = self.version(number)
        failed = version.tags.get(FAILED)
        if failed and CHAMPION not in version.aliases:
            if not (force and reason):
                raise StageError(
                    f"{self.name} version {number} fails a rule of the gate ({failed}); "
                    f'`trueframe promote {number} --force --reason "..."` promotes it all the same'
                )
            said = f"{_now().isoformat(timespec='seconds')} {_who()}: {reason[:_REASON]} (failed: {failed})"
            self.tag(number, OVERRULED, said)
        events = self.history()
        if CHAMPION not in version.aliases:
            # The alias first: killed in between, the next look notes the move; no event tells of one that never was.
            self._write("set_registered_model_alias", CHAMPION, number)
            self._note(events, number, how, reason)
        if CHALLENGER in version.aliases:
            self._write("delete_registered_model_alias", CHALLENGER)

    def challenge(self, number: str) -> None:
        """Make a version the challenger."""
        self._write("set_registered_model_alias", CHALLENGER, number)

    def tag(self, number: str, key: str, value: str) -> None:
        """Note something on a version."""
        self._write("set_model_version_tag", number, key, value)

    def describe(self, number: str, text: str) -> None:
        """Give a version another description."""
        self._write("update_model_version", number, text)

    def rollback(self, reason: str = "") -> str:
        """Make the champion before this one the champion again, and return its number; deleted ones are skipped.

        Raises:
            StageError: there was none before.
        """
        events = self.history()
        current = self._aliases(self._registered()).get(CHAMPION)
        existing = {v.number for v in self.versions()}
        before = [number for number in line(events) if number in existing and number != current]
        if not before:
            raise StageError(f"{self.name} has no earlier champion; `trueframe promote VERSION` chooses one")
        # The event first: killed in between, the next look finds the old champion still there, which is the truth. The
        # other way around it would look like a promotion, and the next rollback would lead forward again.
        self._note(events, before[-1], "rolled back", reason)
        self._write("set_registered_model_alias", CHAMPION, before[-1])
        return before[-1]

    def history(self) -> list[Event]:
        """The moves of the alias `champion`, the oldest first. One that was made elsewhere is noted now."""
        events, current = self._events()
        if current is None or line(events)[-1:] == [current]:
            return events
        time.sleep(_SETTLE)  # a promotion in another process may be about to note it
        events, again = self._events()
        if again == current and line(events)[-1:] != [current]:
            with contextlib.suppress(Denied):  # who may only read leaves it to the others
                self._note(events, current, "found", "")
            events, _ = self._events()
        return events

    def load(self, number: str) -> Any:
        """The detector of a version (see `components.serve.detector.Detector`).

        Raises:
            StageError: there is no such version, the store fails, or its files are others than were registered.
            Gone: its files are gone or damaged.
        """
        from components.serve.files import Files

        with tempfile.TemporaryDirectory(prefix="trueframe-") as scratch:
            return Files.logged(self.fetch(number, Path(scratch))).load(number)

    def networks(self, number: str, folder: Path) -> dict[str, Path]:
        """A version's Keras networks by the names of its members; none where its run keeps none.

        Args:
            number: of the version.
            folder: an empty one.
        """
        with contextlib.suppress(self.mlflow.exceptions.MlflowException, OSError):
            self.mlflow.artifacts.download_artifacts(
                run_id=self.version(number).run_id, artifact_path=NETWORKS, dst_path=str(folder)
            )
        return {path.stem: path for path in (folder / NETWORKS).glob("*.keras")}

    def look(self, number: str) -> None:
        """See that a version's files are there, without fetching them.

        Raises:
            StageError: the store fails.
            Gone: none of them is there.
        """
        try:
            found = self.mlflow.artifacts.list_artifacts(artifact_uri=f"models:/{self.name}/{number}")
        except (self.mlflow.exceptions.MlflowException, OSError) as error:
            raise self._unusable(number, error) from None
        if not found:
            raise self._unusable(number, FileNotFoundError("no file of it is there"))

    def fetch(self, number: str, folder: Path) -> Path:
        """Copy a version's files, and see that they are those that were registered. Nothing of them is run.

        Args:
            number: of the version.
            folder: an empty one.

        Returns:
            The folder of the MLflow model.

        Raises:
            StageError: there is no such version, the store fails, or they are others than were registered.
            Gone: they are gone or damaged.
        """
        version = self.version(number)
        try:
            uri = f"models:/{self.name}/{number}"
            files = Path(self.mlflow.artifacts.download_artifacts(uri, dst_path=str(folder)))
        except (self.mlflow.exceptions.MlflowException, OSError) as error:
            raise self._unusable(number, error) from None
        for cache in list(files.rglob("__pycache__")):  # of whoever loaded it from where it lies
            shutil.rmtree(cache)
        found, wanted = integrity.listed(files), version.tags.get(SUMS)
        if not found:  # of what is gone from S3, MLflow makes an empty folder
            raise self._unusable(number, FileNotFoundError("no file of it is there"))
        if wanted is None:
            print(f"warning: {self.name} version {number} was registered without a list of its files", file=sys.stderr)
        elif hashlib.sha256(found.encode()).hexdigest() != wanted:
            raise StageError(
                f"{self.name} version {number} is not what was registered: {self._changed(version, found, wanted)}. "
                "Nothing of it was loaded; see who can write to the artifacts, and `trueframe rollback` meanwhile"
            )
        return files

    def _changed(self, version: Version, found: str, wanted: str) -> str:
        """Which files are others, as far as the list that was logged beside them is the one that was registered."""
        path = f"{LINEAGE}/{integrity.NAME}"
        with contextlib.suppress(self.mlflow.exceptions.MlflowException, OSError):
            recorded = self.mlflow.artifacts.load_text(f"runs:/{version.run_id}/{path}")
            if hashlib.sha256(recorded.encode()).hexdigest() == wanted:
                return integrity.differences(recorded, found)
        return f"the list of its files is not the one that was registered either ({path} of its run)"

    def _unusable(self, number: str, error: Exception) -> StageError:
        if tracking.is_outage(error):
            return StageError(tracking.trouble(error))
        if reason := stage.refused(error):
            return StageError(reason)
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT, errno.ENOTDIR):
            return StageError(stage.describe(error))  # a full disk, or no right to read, says nothing of the version
        place = tracking.shown(self.client.get_model_version_download_uri(self.name, number))
        return Gone(
            f"{self.name} version {number} can't be loaded ({tracking.line(error)}); its files are gone or damaged. "
            f"Put them back into {place} from a copy. Without one, `trueframe rollback` goes to the champion before; "
            "where no file is left, the next `trueframe run` registers its network again"
        )

    def _note(self, events: list[Event], version: str, how: How, reason: str) -> None:
        """Add an event, after those that are known, whatever this machine's clock says."""
        at = _now()
        if events:
            at = max(at, datetime.fromisoformat(events[-1].at) + timedelta(microseconds=1))
        event = Event(at.isoformat(timespec="microseconds"), version, how, _who(), reason[:_REASON])
        key = f"{_EVENT}{at:%Y%m%dT%H%M%S.%f}.{uuid.uuid4().hex[:8]}"
        self._write("set_registered_model_tag", key, json.dumps(asdict(event)))

    def _write(self, what: str, *values: str) -> None:
        """Change something of the registered model, again where another process wrote at the same moment.

        MLflow's store looks before it inserts, so of two who first set an alias or tag at once one is told of a broken
        constraint; SQLite may be locked.
        """
        for wait in (*_WAITS, None):
            try:
                getattr(self.client, what)(self.name, *values)
                return
            except self.mlflow.exceptions.MlflowException as error:
                if stage.refused(error):
                    raise Denied(f"{self.name}: {what.replace('_', ' ')}: {stage.refused(error)}") from None
                if wait is None or error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    raise StageError(
                        f"{self.name}: {what.replace('_', ' ')} failed: {tracking.trouble(error)}"
                    ) from None
                time.sleep(wait)

    def _events(self) -> tuple[list[Event], str | None]:
        model = self._registered()
        tags = model.tags if model else {}
        events = [Event(**json.loads(tags[key])) for key in sorted(tags) if key.startswith(_EVENT)]
        return events, self._aliases(model).get(CHAMPION)

    def champion(self) -> str | None:
        """The champion's number, by one question; None where there is none."""
        return self._aliases(self._registered()).get(CHAMPION)

    @staticmethod
    def _aliases(model: Any) -> dict[str, str]:
        return {alias: str(number) for alias, number in model.aliases.items()} if model else {}

    def _registered(self) -> Any:
        """The registered model, or None before the first version."""
        try:
            return self.client.get_registered_model(self.name)
        except self.mlflow.exceptions.MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise


def line(events: list[Event]) -> list[str]:
    """The champions that led to the present one, which is last: what was rolled back is no longer among them."""
    champions: list[str] = []
    for event in events:
        if event.how == "rolled back" and event.version in champions:
            del champions[len(champions) - champions[::-1].index(event.version) :]
        elif champions[-1:] != [event.version]:
            champions.append(event.version)
    return champions


def _now() -> datetime:
    return datetime.now(UTC)


def _who() -> str:
    """The user that MLflow knows, or the system's."""
    try:
        user = os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
