"""Texts of metadata, made fit to be shown."""

import unicodedata
from typing import Any

from components import metadata


def clean(value: Any, length: int) -> str:
    """One line of at most so many characters, without control and formatting characters; empty for what is no text."""
    if isinstance(value, bytes):
        cut = 4 * length
        while cut < len(value) and value[cut] & 0xC0 == 0x80 and cut > 4 * length - 3:
            cut -= 1  # not within a character of UTF-8
        value = decoded(value[:cut])
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


def user_comment(value: bytes) -> str:
    """EXIF's `UserComment` (Exif 2.32, tag 0x9286), which begins with the name of its character code."""
    code, content = value[:8], value[8:]
    if code == b"UNICODE\0":
        # Of the two byte orders the one whose high bytes are mostly zero.
        big = content[0::2].count(0) >= content[1::2].count(0)
        return content.decode("utf-16-be" if big else "utf-16-le", "replace").strip("\0")
    return decoded(content if code in (b"ASCII\0\0\0", bytes(8)) else value)


def packed_text(chunks: list[tuple[bytes, bytes]]) -> dict[str, str]:
    """Texts of a PNG by keyword, those of the keywords that are read here; of more than 1 MiB none.

    Args:
        chunks: name (`tEXt`, `zTXt` or `iTXt`) and content of each; the first of a keyword counts.
    """
    found: dict[str, str] = {}
    for name, content in chunks:
        keyword = content.partition(b"\0")[0][:80].decode("latin-1")
        if keyword in KEYWORDS and not found.get(keyword):
            # Latin-1 by the standard in all but iTXt, and yet often UTF-8.
            found[keyword] = decoded(metadata.unpacked(name, content))
    return {keyword: text for keyword, text in found.items() if text}


KEYWORDS = {
    "Software", "AIGC", "parameters", "prompt", "invokeai_metadata", "invokeai_graph", "invokeai_workflow",
    "sd-metadata", "Dream", "Comment", "Description", "Source", "fooocus_scheme",
    # Easy Diffusion writes each setting as a text of its own, under one name or another.
    "negative_prompt", "seed", "num_inference_steps", "guidance_scale", "sampler_name", "use_stable_diffusion_model",
    "Prompt", "Negative Prompt", "Seed", "Steps", "Guidance Scale", "Sampler", "Stable Diffusion model",
}  # fmt: skip
"""Keywords of PNG text chunks that say something of a picture's origin."""
