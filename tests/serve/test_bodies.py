"""What callers send: forms and texts of files, as other programs write them."""

import base64
import random
from collections.abc import Mapping
from email.utils import encode_rfc2231

import pytest
import served

from components import images
from components.serve import bodies
from components.serve.detector import as_bytes
from components.serve.log import _decoded
from components.serve.queue import Options, Refused

PICTURE = served.picture(1)
TEXT = base64.b64encode(PICTURE).decode()
Files = list[tuple[str | None, bytes]]


def form(*parts: tuple[str, bytes], boundary: str = "x--y") -> tuple[dict[str, str], bytes]:
    """Headers and body; a part is its headers, in lines, and its content."""
    body = b"".join(
        f"--{boundary}\r\n".encode()
        + "".join(f"{line}\r\n" for line in head.splitlines()).encode()
        + b"\r\n"
        + content
        + b"\r\n"
        for head, content in parts
    )
    return {"content-type": f"multipart/form-data; boundary={boundary}"}, body + f"--{boundary}--\r\n".encode()


def read(headers: Mapping[str, str], body: bytes, most: int = 4, **query: str) -> tuple[Files, Options]:
    return bodies.from_files(headers, query, body, most)


def refusal(headers: Mapping[str, str], body: bytes, most: int = 4) -> tuple[int, str]:
    with pytest.raises(Refused) as caught:
        read(headers, body, most)
    assert "\n" not in caught.value.reason
    return caught.value.status, caught.value.reason


@pytest.mark.parametrize(
    ("head", "name"),
    [
        ('Content-Disposition: form-data; name="file"; filename="a b.jpg"', "a b.jpg"),
        ("Content-Disposition: form-data; name=file; filename=a.jpg", "a.jpg"),
        ('content-disposition: FORM-DATA; NAME="picture"; FileName="a.jpg"', "a.jpg"),
        ('Content-Disposition: form-data; filename="a;b\\"c.jpg"', 'a;b"c.jpg'),
        ('Content-Disposition: form-data; name="file"; filename="naïve 猫.jpg"', "naïve 猫.jpg"),
        ("Content-Disposition: form-data; name=\"file\"; filename*=UTF-8''na%C3%AFve.jpg", "naïve.jpg"),
        ("Content-Disposition: form-data; name=\"file\"; filename*=iso-8859-1'en'na%EFve.jpg", "naïve.jpg"),
        ('Content-Disposition: form-data; name="file"; filename="x.jpg"; filename*=UTF-8\'\'%E7%8C%AB.jpg', "猫.jpg"),
        ('Content-Disposition: form-data; name="file"; filename*=UTF-8\'\'%E7%8C%AB.jpg; filename="x.jpg"', "猫.jpg"),
        ("Content-Disposition: form-data; filename*0=long; filename*1=name.jpg", "longname.jpg"),
        ("Content-Disposition: form-data; name=\"file\"; filename*=no-such-charset''a%FF.jpg", "a%FF.jpg"),
        ('Content-Disposition: form-data; name="file"; filename=""', None),
        ('Content-Disposition: form-data; name="file"\nContent-Type: image/jpeg', None),
        ('Content-Disposition: form-data; name="file"\nContent-Type: IMAGE/PNG; charset=binary', None),
        ('Content-Disposition: form-data; name="file"\nContent-Type: application/octet-stream', None),
        ("Content-Type: image/jpeg", None),
        ('Content-Disposition: form-data; name="f"; filename="a.jpg"\nContent-Type: text/plain', "a.jpg"),
        ('Content-Disposition: form-data; name="f"; filename="a.jpg"\nContent-Transfer-Encoding: 8BIT', "a.jpg"),
        ('Content-Disposition: form-data; name="explain"; filename="a.jpg"', "a.jpg"),
    ],
)
def test_a_part_that_is_a_file(head: str, name: str | None) -> None:
    files, options = read(*form((head, PICTURE)))
    assert files == [(name if name != "a%FF.jpg" else files[0][0], PICTURE)]
    assert options == Options()


def test_what_is_encoded_for_the_way_is_decoded() -> None:
    head = 'Content-Disposition: form-data; name="file"; filename="a.jpg"\nContent-Transfer-Encoding: '
    lines = base64.encodebytes(PICTURE).replace(b"\n", b"\r\n")
    assert read(*form((head + "BASE64", lines)))[0] == [("a.jpg", PICTURE)]
    assert read(*form((head + "quoted-printable", b"=ff=D8=\r\nx")))[0] == [("a.jpg", b"\xff\xd8x")]
    assert refusal(*form((head + "base64", PICTURE))) == (400, "'a.jpg' is not the base64 that it is said to be")
    assert refusal(*form((head + "x-uuencode", b"x")))[0] == 415
    assert "Content-Encoding gzip" in refusal(*form(("Content-Encoding: gzip\nContent-Type: image/jpeg", b"x")))[1]


def test_fields_beside_files() -> None:
    file = ('Content-Disposition: form-data; name="file"; filename="a.jpg"', PICTURE)
    none_chosen = (
        'Content-Disposition: form-data; name="more"; filename=""\nContent-Type: application/octet-stream',
        b"",
    )
    field = 'Content-Disposition: form-data; name="{}"\nContent-Type: text/plain; charset=utf-8'
    files, options = read(
        *form(file, none_chosen, (field.format("threshold"), b"0.25"), (field.format("explain"), b"True"))
    )
    assert files == [("a.jpg", PICTURE)] and options == Options(True, 0.25)
    assert read(*form(file, (field.format("threshold"), b"0.25")), threshold="0.75")[1].threshold == 0.25
    odd = "'()+_,-./:=?"
    assert read({"content-type": f'multipart/form-data; boundary="{odd}"'}, form(file, boundary=odd)[1])[0] == files
    _, body = form(file)
    quoted = {"content-type": 'Multipart/Form-Data; charset=utf-8; Boundary="x--y"'}
    assert read(quoted, body + b"an epilogue")[0] == files


def test_forms_that_are_refused_say_what_would_be_read() -> None:
    disposition = 'Content-Disposition: form-data; name="file"'
    file = f'{disposition}; filename="a.jpg"'
    headers, body = form((file, PICTURE))
    assert refusal({"content-type": "multipart/form-data"}, body)[1].startswith(
        "the content type of a form has to name"
    )
    assert refusal(headers, body[:-10]) == (400, "a damaged form: it ends before its last boundary")
    assert refusal(headers, b"")[0] == 400
    assert refusal(headers, body.replace(b"\r\n", b"\n"))[0] == 400
    assert refusal(*form((disposition, TEXT.encode())))[1].startswith(
        "the field 'file' has no file name and no image type"
    )
    assert refusal(*form((f"{disposition}\nContent-Type: text/plain", b"x")))[0] == 400
    assert refusal(*form((f'{disposition}; filename=""', b""))) == (
        400,
        "no file among the fields; curl sends a file with -F file=@photo.jpg",
    )
    nested = refusal(*form((f"{disposition}\nContent-Type: multipart/mixed; boundary=z", body)))
    assert nested == (415, "a part of the form is multipart/mixed; each file has to be a part of its own")
    assert refusal(*form(*[(file, b"x")] * 5)) == (413, "5 files; a request may have 4")
    assert refusal(*form(*[(file, b"x")] * 500))[0] == 413
    assert refusal(*form((f"X: {'y' * 100_000}", b"x")))[0] == 400


def test_damaged_forms_are_read_or_refused() -> None:
    """Whatever is cut, changed or doubled; no other exception, and names that JSON can hold."""
    names = [("UTF-7", "+2AA-"), ("unicode_escape", r"\ud800"), ("utf-16", "%00%D8"), ("idna", "xn--%00"), ("", "%ZZ")]
    heads = [f"Content-Disposition: form-data; filename*={encode_rfc2231(text, charset)}" for charset, text in names]
    heads += [f"Content-Disposition: form-data; filename*={charset}''{text}" for charset, text in names]
    heads += ["Content-Disposition: " + '";' * 2000, "Content-Disposition: ;=;*=;filename*;filename*9*=x", "x:"]
    rng = random.Random(0)
    for head in heads:
        headers, body = form((head, b"x"), ("Content-Type: image/jpeg", b"y"))
        for n in range(60):
            data = bytearray(body)
            for _ in range(n % 4):
                at = rng.randrange(len(data))
                data[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
            try:
                files, _ = read(headers, bytes(data), 4)
            except Refused as refused:
                assert refused.status in (400, 413, 415) and len(refused.reason) < 300 and "\n" not in refused.reason
            else:
                assert all(name is None or name.encode().decode() == name for name, _ in files)


def _url_safe(text: str) -> str:
    return text.translate(str.maketrans("+/", "-_"))


@pytest.mark.parametrize("size", range(60, 63))
def test_a_text_of_a_file_is_read_as_others_write_it(size: int) -> None:
    data = (bytes(range(251, 256)) * 20)[:size]  # with + and / in it, and any padding
    text = base64.b64encode(data).decode()
    assert "+" in text and "/" in text
    for written in (
        text,
        text.rstrip("="),
        f" {text}\n",
        base64.encodebytes(data).decode(),
        "\r\n".join(text[at : at + 7] for at in range(0, len(text), 7)),
        "\n\t".join((text[:8], text[8:])),
        _url_safe(text),
        _url_safe(text).rstrip("="),
        _url_safe(base64.encodebytes(data).decode()),
        text.replace("+", "%2B").replace("/", "%2f").replace("=", "%3D"),
        f"data:image/jpeg;base64,{text}",
        f"DATA:image/PNG;charset=utf-8;BASE64,{text}",
        f"data:;base64,{text.rstrip('=')}",
        f"data:text/plain;name=a%2Cb.jpg;base64,\n{_url_safe(text)}\n",
    ):
        assert as_bytes(written) == data, written
        assert _decoded(written) == data, "the log takes it for the same"


@pytest.mark.parametrize(
    "text",
    [
        "no base64!",
        TEXT[:40] + " " + TEXT[41:],  # a + that was lost on the way
        "+-+-",  # of two alphabets
        "QQ==QQ==",
        "Q",
        "QUJDR",
        "/9j/é",
        "https://example.org/a.jpg",
        "data:image/jpeg;base64",
        "data:image/svg+xml,%3Csvg/%3E",
        "data:image/jpeg;base64url,QUJD",
        "data:image/jpeg;base64,QUJ!",
        "data:",
        "%41%42",
        '"QUJD"',
    ],
)
def test_what_is_no_text_of_a_file_says_what_would_be(text: str) -> None:
    with pytest.raises(
        images.ImageError, match=r"^`image` is (not valid base64|a data: URL without base64); it has to be"
    ):
        as_bytes(text)
    assert _decoded(text) is None
