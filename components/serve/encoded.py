"""Files as text, in the ways that callers write them."""

import base64

_ESCAPED = {f"%{code}": chr(int(code, 16)) for code in ("2B", "2b", "2F", "2f", "3D", "3d", "0A", "0a", "0D", "0d")}
_URL_SAFE = str.maketrans("-_", "+/")


def decoded(text: str) -> bytes:
    """The bytes of a file.

    Args:
        text: base64 (RFC 4648), also in the alphabet for URLs, without its padding, or in lines; alone, or in a `data:`
            URL (RFC 2397) of any type.

    Raises:
        ValueError: it is none, in one line.
    """
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        pass
    text = text.strip()
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or head.rpartition(";")[2].strip().lower() != "base64":
            raise ValueError("a data: URL without base64; it has to be data:image/jpeg;base64,…")
    # Spaces stay, which makes it invalid: each may be a + that was lost on the way. All of this is bounded in memory.
    for written, meant in {**_ESCAPED, "\r": "", "\n": "", "\t": ""}.items():
        text = text.replace(written, meant)
    text = text.strip("\r\n\t ").rstrip("=")
    if "+" not in text and "/" not in text:
        text = text.translate(_URL_SAFE)
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        raise ValueError("not valid base64; it has to be a file as base64 text, or as a data: URL") from None
