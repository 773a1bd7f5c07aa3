"""Files of weights that come with the project: where they are, and that they are what they were."""

import hashlib
from pathlib import Path

import components
from components.stage import StageError

PLACE = Path(components.__file__).parents[1] / "models/encoder"


def names() -> list[str]:
    """The encoders that are here."""
    return sorted(path.stem for path in PLACE.glob("*.onnx"))


def listed() -> dict[str, str]:
    """The SHA-256 of each file, as `SHA256SUMS` has it."""
    lines = (PLACE / "SHA256SUMS").read_text().splitlines()
    return {name: digest for digest, name in (line.split() for line in lines)}


def read(name: str) -> bytes:
    """An encoder's file.

    Raises:
        StageError: it isn't there, is damaged, or is another one.
    """
    path = PLACE / f"{name}.onnx"
    try:
        data, wanted = path.read_bytes(), listed().get(path.name)
    except OSError as error:
        raise StageError(
            f"{path}: the encoder can't be read ({error.strerror}); `git checkout models` brings it"
        ) from None
    if wanted != hashlib.sha256(data).hexdigest():
        raise StageError(f"{path}: not the encoder that SHA256SUMS names; `git checkout models` brings it back")
    return data
