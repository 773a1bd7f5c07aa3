"""Texts of metadata, made fit to be shown."""

import unicodedata
import zlib
from typing import Any

_MOST = 1 << 20  # characters of one text chunk, unpacked


def clean(value: Any, length: int) -> str:
    """One line of at most so many characters, without control and formatting characters; empty for what is no text."""
    if isinstance(value, bytes):
        value = decoded(value[: 4 * length])
    elif isinstance(value, int | float):
        value = format(value, ".10g") if isinstance(value, float) else str(value) if value.bit_length() < 128 else ""
    elif not isinstance(value, str):
        return ""
    # Categories that begin with C: control, format (directions of writing among them), surrogates, unassigned.
    shown = "".join(
        " " if character.isspace() else character if unicodedata.category(character)[0] != "C" else ""
        for character in value[: 4 * length]
    )
    line = " ".join(shown.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def why(error: BaseException) -> str:
    """What a library failed of, in a few words."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"the Python module {error.name} is missing"
    return clean(f"{type(error).__name__}: {error}".removesuffix(": "), 200)


def decoded(value: bytes) -> str:
    """UTF-8, or else Latin-1; ends at the first zero."""
    value = value.split(b"\0")[0]
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def packed_text(chunks: list[tuple[bytes, bytes]]) -> dict[str, str]:
    """Texts of a PNG by keyword, those of the keywords that are read here; of more than 1 MiB none.

    Args:
        chunks: name (`tEXt`, `zTXt` or `iTXt`) and content of each; the first of a keyword counts.
    """
    found: dict[str, str] = {}
    for name, content in chunks:
        key, _, rest = content.partition(b"\0")
        keyword = key[:80].decode("latin-1")
        if keyword not in KEYWORDS or keyword in found:
            continue
        packed = name == b"zTXt"
        if packed:
            rest = rest[1:]  # the method, which is always deflate
        elif name == b"iTXt":
            packed, rest = rest[:1] == b"\1", rest[2:].partition(b"\0")[2].partition(b"\0")[2]
        if packed:
            try:
                unpack = zlib.decompressobj()
                rest = unpack.decompress(rest, _MOST)
                if not unpack.eof:
                    continue
            except zlib.error:
                continue
        found[keyword] = decoded(rest)  # Latin-1 by the standard in all but iTXt, and yet often UTF-8
    return found


KEYWORDS = {
    "Software", "XML:com.adobe.xmp", "parameters", "prompt", "invokeai_metadata", "sd-metadata", "Dream",
    "Comment", "Description", "Source",
}  # fmt: skip
"""Keywords of PNG text chunks that say something of a picture's origin."""
