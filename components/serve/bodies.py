"""What callers send: a request's head and body in, images and options out. Knows nothing of who answers."""

import base64
import contextlib
import quopri
from collections.abc import Mapping
from email.message import Message
from email.utils import collapse_rfc2231_value
from typing import Any

import orjson
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError

from components.serve.queue import Options, Refused

_JSON = (
    'the body has to be {"dataframe_records": [{"image": "<base64 of the file>"}]}, or the same as dataframe_split, '
    "inputs or instances"
)
_FORMATS = {"dataframe_records", "dataframe_split", "inputs", "instances"}
_CHARSETS = {"utf-8", "utf8", "us-ascii", "iso-8859-1", "windows-1252"}  # base64 reads the same in all of them
_BOM = b"\xef\xbb\xbf"
_CURL = "curl sends a file with -F file=@photo.jpg"
_FIELDS = 8  # of a form, that are no files
_OPTIONS = {"explain", "threshold"}

Headers = Mapping[str, str]
Rows = tuple[list[str | None], Options]
Files = tuple[list[tuple[str | None, bytes]], Options]


def from_json(headers: Headers, body: bytes) -> Rows:
    """The images of a JSON body, as MLflow's own server takes it: base64 text each, or null for what is no text.

    Args:
        headers: of the request, by names in lower case.
        body: of the request.

    Raises:
        Refused: it isn't one.
    """
    _as_it_is(headers)
    media, parameters = _media(headers)
    if media.rpartition("/")[2] != "json" and not media.endswith("+json"):
        raise Refused(415, f"{media or 'no content type'}; this takes application/json, and /v1/check takes files")
    charset = parameters.get("charset", "utf-8")
    if charset.lower() not in _CHARSETS:
        raise Refused(415, f"JSON in {charset[:40]}; this takes UTF-8")
    try:
        said = orjson.loads(body.removeprefix(_BOM))
    except orjson.JSONDecodeError as error:
        raise Refused(400, f"not JSON: {_line(error)}") from None
    if not isinstance(said, dict) or not set(said) <= {*_FORMATS, "params"} or len(said.keys() - {"params"}) != 1:
        raise Refused(400, _JSON)
    params = said.pop("params", None) or {}
    if not isinstance(params, dict):
        raise Refused(400, 'params has to be an object: {"explain": true, "threshold": 0.5}')
    [(form, content)] = said.items()
    images = _split(content) if form == "dataframe_split" else _column(form, content)
    return [image if isinstance(image, str) else None for image in images], _options(params)


def from_files(headers: Headers, query: Mapping[str, str], body: bytes, most: int) -> Files:
    """Names and bytes of the files of an upload, and what its query and its other fields ask for.

    Args:
        headers: of the request, by names in lower case.
        query: of its address.
        body: of the request.
        most: files that a form may have.

    Raises:
        Refused: it is none.
    """
    _as_it_is(headers)
    media, parameters = _media(headers)
    if media.startswith("image/") or media in ("application/octet-stream", ""):
        return [(None, body)], _options(_read(query))
    if media != "multipart/form-data":
        raise Refused(
            415,
            f"{media}; this takes image/*, application/octet-stream or multipart/form-data (/invocations takes JSON)",
        )
    fields = dict(query)
    files: list[tuple[str | None, bytes]] = []
    for part in _parts(parameters.get("boundary", ""), body, most + _FIELDS):
        if part.is_empty:  # what a browser sends where no file was chosen
            continue
        if part.is_file:
            files.append((part.filename or None, part.decoded()))
        elif part.name in _OPTIONS:
            fields[part.name] = part.text
        else:
            raise Refused(400, f"the field {part.name[:40]!r} has no file name and no image type; {_CURL}")
    if len(files) > most:
        raise Refused(413, f"{len(files):,} files; a request may have {most:,}")
    if not files:
        raise Refused(400, f"no file among the fields; {_CURL}")
    return files, _options(_read(fields))


def _as_it_is(headers: Headers) -> None:
    """Refuse what is compressed: a small body may become one of any size."""
    said = ",".join(value for name, value in headers.items() if name == "content-encoding").lower()
    codings = [coding for coding in map(str.strip, said.split(",")) if coding not in ("", "identity")]
    if codings:
        raise Refused(415, f"Content-Encoding {', '.join(codings)[:80]}; this takes bodies that are not compressed")


def _column(form: str, content: Any) -> list[Any]:
    """The images of rows, or of the columns that `inputs` and `instances` may be."""
    if form in ("inputs", "instances") and isinstance(content, dict) and "image" in content:
        column = content["image"]
        return column if isinstance(column, list) else [column]
    if not isinstance(content, list):
        raise Refused(400, f"{form} has to be a list: {_JSON}")
    of_text = form != "dataframe_records"
    return [
        row.get("image") if isinstance(row, dict) else row if of_text and isinstance(row, str) else None
        for row in content
    ]


def _split(content: Any) -> list[Any]:
    columns, rows = (content.get("columns"), content.get("data")) if isinstance(content, dict) else (None, None)
    if not isinstance(columns, list) or not isinstance(rows, list) or columns.count("image") != 1:
        raise Refused(400, 'dataframe_split has to be {"columns": ["image"], "data": [["<base64 of the file>"]]}')
    at = columns.index("image")
    return [row[at] if isinstance(row, list) and at < len(row) else None for row in rows]


class _Part:
    """One part of a form.

    Raises:
        Refused: it is compressed, or a form of its own.
    """

    def __init__(self, headers: Headers, content: bytes) -> None:
        _as_it_is(headers)
        self._headers, self._content = headers, content
        media, _ = _media(headers)
        if media.startswith("multipart/"):
            raise Refused(415, f"a part of the form is {media}; each file has to be a part of its own")
        _, said = _parameters(headers.get("content-disposition", ""))
        self.name, self.filename = said.get("name", ""), said.get("filename")
        is_typed = media.startswith("image/") or media == "application/octet-stream"
        self.is_file = self.filename is not None or is_typed
        self.is_empty = not self.filename and not content and self.is_file

    @property
    def text(self) -> str:
        """What a field says."""
        return self._content.decode(errors="replace")

    def decoded(self) -> bytes:
        """A file's bytes, whatever they were encoded in for the way."""
        coding = self._headers.get("content-transfer-encoding", "binary").strip().lower()
        if coding in ("binary", "8bit", "7bit"):
            return self._content
        if coding == "quoted-printable":
            return quopri.decodestring(self._content)
        if coding != "base64":
            raise Refused(
                415, f"Content-Transfer-Encoding {coding[:40]}; this takes binary, base64 or quoted-printable"
            )
        try:
            return base64.b64decode(self._content.translate(None, b" \t\r\n"), validate=True)
        except ValueError:
            raise Refused(400, f"{self.filename or self.name!r} is not the base64 that it is said to be") from None


def _parts(boundary: str, body: bytes, most: int) -> list[_Part]:
    """The parts of a form (RFC 7578)."""
    if not boundary:
        raise Refused(400, "the content type of a form has to name its boundary: multipart/form-data; boundary=…")
    found: list[tuple[dict[str, str], bytearray]] = []
    name, value = bytearray(), bytearray()
    ends: list[bool] = []

    def begin() -> None:
        if len(found) == most:
            raise Refused(413, f"more than {most:,} parts in a form")
        found.append(({}, bytearray()))

    def end_header() -> None:
        found[-1][0][_text(name).strip().lower()] = _text(value)
        name.clear()
        value.clear()

    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": begin,
                "on_part_data": lambda data, start, end: found[-1][1].extend(data[start:end]),
                "on_header_field": lambda data, start, end: name.extend(data[start:end]),
                "on_header_value": lambda data, start, end: value.extend(data[start:end]),
                "on_header_end": end_header,
                "on_end": lambda: ends.append(True),
            },
        )
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError) as error:
        raise Refused(400, f"a damaged form: {_line(error)}") from None
    if not ends:
        raise Refused(400, "a damaged form: it ends before its last boundary")
    return [_Part(headers, bytes(content)) for headers, content in found]


def _text(said: bytearray) -> str:
    try:
        return said.decode()
    except UnicodeDecodeError:
        return said.decode("latin-1")


def _options(params: Mapping[str, Any]) -> Options:
    unknown = sorted(set(params) - _OPTIONS)
    if unknown:
        raise Refused(400, f"params has no {unknown[0][:40]!r}; it has explain and threshold")
    explain, threshold = params.get("explain", False), params.get("threshold")
    if not isinstance(explain, bool):
        raise Refused(400, "explain has to be true or false")
    is_number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
    if threshold is not None and not (is_number and 0 <= threshold <= 1):
        raise Refused(400, "threshold has to be a number from 0 to 1")
    return Options(explain, None if threshold is None else float(threshold))


def _read(asked: Mapping[str, str]) -> dict[str, Any]:
    """The words of a query or a form as `params` has them."""
    words = {"true": True, "1": True, "false": False, "0": False}
    read: dict[str, Any] = dict(asked)
    if "explain" in read:
        read["explain"] = words.get(read["explain"].lower())
    if "threshold" in read:
        with contextlib.suppress(ValueError):
            read["threshold"] = float(read["threshold"])
    return read


def _media(headers: Headers) -> tuple[str, dict[str, str]]:
    media, parameters = _parameters(headers.get("content-type", ""))
    return media[:80], parameters


def _parameters(value: str) -> tuple[str, dict[str, str]]:
    """A header's value in lower case and its parameters; those of RFC 2231 (`filename*=UTF-8''na%C3%AFve.jpg`) win."""
    message = Message()
    message["said"] = value[:4096]
    try:
        (first, _), *rest = message.get_params([("", "")], "said")
    except (TypeError, ValueError):  # as of a parameter both whole and in numbered pieces
        raise Refused(400, f"a header that can't be read: {_line(value)[:80]}") from None
    return first.strip().lower(), {name.lower(): _plain(text) for name, text in rest}


def _plain(said: Any) -> str:
    try:
        text = collapse_rfc2231_value(said)
    except ValueError:  # a charset that decodes only what is right
        text = said[2]
    return text.strip().encode(errors="replace").decode()


def _line(error: object) -> str:
    return " ".join(str(error).split())[:200]
