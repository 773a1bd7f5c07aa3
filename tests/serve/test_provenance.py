"""What a file says of its origin is found where its structure keeps it, and nowhere else."""

import io
import json
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import fuzz
import numpy as np
import pytest
import signing
from PIL import Image

from components.serve import provenance
from components.serve.provenance import credentials, source_types, xmp
from components.serve.provenance.text import clean
from components.stage import StageError

Encode = Callable[..., bytes]

MADE_BY_AI = {"term": "trainedAlgorithmicMedia", "meaning": "made by AI: a model that was trained on examples"}
NOTHING = {"note": provenance.NOTHING}
MEDIA = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "TIFF": "image/tiff",
    "AVIF": "image/avif",
    "HEIF": "image/heic",
}
KINDS = (*MEDIA, "JPEG2000", "BMP")


@pytest.fixture(scope="module")
def authority() -> signing.Authority:
    return signing.Authority()


@pytest.fixture
def plain(encode: Encode, picture: Callable[..., Image.Image]) -> Callable[[str], bytes]:
    fuzz.valid()  # registers HEIF for writing
    return lambda kind: encode(picture(1), kind)


def png_text(**texts: str) -> bytes:
    return fuzz.png(1, 1, extra=[(b"tEXt", key.encode() + b"\0" + text.encode()) for key, text in texts.items()])


def jpeg_segment(data: bytes, marker: int, content: bytes) -> bytes:
    return data[:2] + struct.pack(">BBH", 0xFF, marker, 2 + len(content)) + content + data[2:]


def png_chunk(data: bytes, name: bytes, content: bytes) -> bytes:
    """A chunk after the header."""
    chunk = struct.pack(">L", len(content)) + name + content + struct.pack(">L", zlib.crc32(name + content))
    return data[:33] + chunk + data[33:]


def webp_chunk(data: bytes, name: bytes, content: bytes) -> bytes:
    content += bytes(len(content) % 2)
    body = data[8:] + name + struct.pack("<L", len(content)) + content
    return b"RIFF" + struct.pack("<L", len(body)) + body


def gif_extension(data: bytes, head: bytes, content: bytes) -> bytes:
    """Before the trailer, in sub-blocks."""
    blocks = b"".join(bytes([len(content[n : n + 255])]) + content[n : n + 255] for n in range(0, len(content), 255))
    return data[:-1] + head + blocks + b"\0;"


def box(data: bytes, name: bytes, content: bytes) -> bytes:
    return data + struct.pack(">L4s", 8 + len(content), name) + content


def with_xmp(kind: str, plain: Callable[[str], bytes], encode: Encode, picture: Callable[..., Image.Image]) -> bytes:
    """A file with the packet where its format keeps it."""
    if kind in ("JPEG", "WEBP", "AVIF", "HEIF"):
        return encode(picture(1), kind, xmp=fuzz.XMP)
    if kind == "PNG":
        return png_chunk(plain(kind), b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + fuzz.XMP)
    if kind == "TIFF":
        return encode(picture(1), kind, tiffinfo={700: fuzz.XMP})
    if kind == "GIF":
        trailer = bytes([1, *range(255, -1, -1), 0])
        return plain(kind)[:-1] + b"!\xff\x0bXMP DataXMP" + fuzz.XMP + trailer + b";"
    return box(plain(kind), b"uuid", bytes.fromhex("be7acfcb97a942e89c71999491e3afac") + fuzz.XMP)


def elsewhere(kind: str, data: bytes, hidden: bytes) -> bytes:
    """The bytes in a comment, or a part that is for something else."""
    return {
        "JPEG": lambda: jpeg_segment(jpeg_segment(data, 0xFE, hidden), 0xE5, hidden),
        "PNG": lambda: png_chunk(png_chunk(data, b"prVt", hidden), b"tEXt", b"Remark\0" + hidden),
        "WEBP": lambda: webp_chunk(data, b"JUNK", hidden),
        "GIF": lambda: gif_extension(gif_extension(data, b"!\xfe", hidden), b"!\xff\x0bNETSCAPE2.0", hidden),
        "AVIF": lambda: box(data, b"free", hidden),
        "HEIF": lambda: box(data, b"free", hidden),
        "JPEG2000": lambda: box(data, b"free", hidden),
    }[kind]()


HIDDEN = {
    "xmp": fuzz.XMP,
    "jpeg xmp": b"\xff\xe1\1\xf0http://ns.adobe.com/xap/1.0/\0" + fuzz.XMP,
    "settings": b"parameters\0" + fuzz.SETTINGS.encode(),
    "chunk": png_chunk(bytes(33), b"tEXt", b"parameters\0" + fuzz.SETTINGS.encode())[33:],
    "phrase": b"trainedAlgorithmicMedia c2pa jumb caBX AIGC",
    "store": b"\0\0\0\x3cjumb\0\0\0\x28jumd" + bytes.fromhex("6332706100110010800000aa00389b71") + b"c2pa",
    "box": box(b"", b"uuid", bytes.fromhex("d8fec3d61b0e483c92975828877ec481") + b"c2pa"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", HIDDEN)
def test_what_stands_after_the_end_says_nothing(plain: Callable[[str], bytes], kind: str, what: str) -> None:
    data = plain(kind)
    if what == "box" and kind in ("AVIF", "HEIF"):
        pytest.skip("there a box at the end is a part of the file")
    assert provenance.read(data) == NOTHING
    assert provenance.read(data + HIDDEN[what]) == NOTHING


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("BMP", "TIFF")])
@pytest.mark.parametrize("what", HIDDEN)
def test_what_stands_in_a_comment_or_another_part_says_nothing(
    plain: Callable[[str], bytes], kind: str, what: str
) -> None:
    hidden = HIDDEN[what][:240]  # whole in one of a GIF's sub-blocks
    data = elsewhere(kind, plain(kind), hidden)
    assert hidden in data
    Image.open(io.BytesIO(data)).load()
    assert provenance.read(data) == NOTHING
    assert provenance.read(elsewhere(kind, plain(kind), HIDDEN[what])) == NOTHING


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "PNG"])
@pytest.mark.parametrize("what", HIDDEN)
def test_what_pixels_spell_says_nothing(encode: Encode, kind: str, what: str) -> None:
    hidden = HIDDEN[what]
    if kind == "PNG":
        data = fuzz.png(len(hidden), 1, zlib.compress(b"\0" + hidden, 0), colour=0)
    else:
        data = encode(Image.fromarray(np.frombuffer(hidden, np.uint8)[None]), kind)
    assert hidden in data and Image.open(io.BytesIO(data)).tobytes() == hidden
    assert provenance.read(data) == NOTHING


@pytest.mark.parametrize("what", HIDDEN)
def test_what_a_jpeg_s_scan_spells_says_nothing(plain: Callable[[str], bytes], what: str) -> None:
    data = plain("JPEG")
    at = data.index(b"\xff\xda") + 20
    assert provenance.read(data[:at] + HIDDEN[what] + data[at:]) == NOTHING


def test_stealth_settings_in_an_alpha_channel_say_nothing(encode: Encode) -> None:
    """As NovelAI hides them: in the lowest bits, column by column."""
    message = b"stealth_pngcomp" + struct.pack(">L", 8 * 40) + bytes(40)
    bits = np.unpackbits(np.frombuffer(message, np.uint8))
    alpha = np.full((64, 64), 254, np.uint8)
    alpha.T.flat[: len(bits)] |= bits
    image = Image.new("RGBA", (64, 64))
    image.putalpha(Image.fromarray(alpha))
    assert provenance.read(encode(image, "PNG")) == NOTHING


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "BMP"])
def test_xmp_is_read_where_a_format_keeps_it(
    plain: Callable[[str], bytes], encode: Encode, picture: Callable[..., Image.Image], kind: str
) -> None:
    data = with_xmp(kind, plain, encode, picture)
    Image.open(io.BytesIO(data)).load()
    expected = {"digital_source_type": MADE_BY_AI, "software": "a tool", "note": provenance.NOTE}
    assert provenance.read(data) == expected


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
def test_a_camera_is_read_where_a_format_keeps_it(
    plain: Callable[[str], bytes], encode: Encode, picture: Callable[..., Image.Image], kind: str
) -> None:
    exif = Image.Exif()
    exif[271], exif[272], exif[305] = "Canon\0", "EOS R5", "Firmware 1.8"
    exif.get_ifd(0x8769).update({0x9003: "2024:05:06 07:08:09", 0xA434: "RF 50mm F1.2"})
    plain(kind)
    found = provenance.read(encode(picture(1), kind, exif=exif))
    inner = {} if kind == "TIFF" else {"lens": "RF 50mm F1.2", "taken": "2024:05:06 07:08:09"}  # Pillow leaves it out
    assert found == {
        "camera": {"make": "Canon", "model": "EOS R5", **inner},
        "software": "Firmware 1.8",
        "note": provenance.NOTE,
    }


def test_big_endian_exif_is_read(encode: Encode, picture: Callable[..., Image.Image]) -> None:
    exif = Image.Exif()
    exif.endian = ">"
    exif[272], exif[274] = "Z 9", 1
    assert provenance.read(encode(picture(1), "JPEG", exif=exif))["camera"] == {"model": "Z 9"}


def packet(inside: str, before: str = "", attributes: str = "") -> bytes:
    return (
        f'{before}<x:xmpmeta xmlns:x="adobe:ns:meta/" xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"'
        ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
        ' xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/" xmlns:xmpMM="http://ns.adobe.com/xap/1.0/mm/">'
        f'<rdf:RDF><rdf:Description rdf:about="" {attributes}>{inside}</rdf:Description></rdf:RDF></x:xmpmeta>'
    ).encode()


SOURCE = "<Iptc4xmpExt:DigitalSourceType>{}</Iptc4xmpExt:DigitalSourceType>"


@pytest.mark.parametrize(
    "xml",
    [
        packet(SOURCE.format("digitalCapture")),
        packet(SOURCE.format("<rdf:Alt><rdf:li>digitalCapture</rdf:li></rdf:Alt>")),
        packet("", attributes='Iptc4xmpExt:DigitalSourceType="digitalCapture"'),
        packet('<Iptc4xmpExt:DigitalSourceType rdf:resource="digitalCapture"/>'),
        packet(SOURCE.format("digitalCapture")).decode().encode("utf-16"),
        packet(SOURCE.format("digitalCapture")) + b"\0\0 \n",
        packet(SOURCE.format("digitalCapture"))[:-20],
    ],
)
def test_every_way_to_write_a_property(xml: bytes) -> None:
    assert xmp.read(xml) == {"DigitalSourceType": "digitalCapture"}


@pytest.mark.parametrize(
    "xml",
    [
        packet(f"<xmpMM:Ingredients><rdf:Bag><rdf:li>{SOURCE.format('print')}</rdf:li></rdf:Bag></xmpMM:Ingredients>"),
        packet(f"<xmpMM:History><rdf:Description>{SOURCE.format('print')}</rdf:Description></xmpMM:History>"),
        packet(SOURCE.format("print").replace("Iptc4xmpExt:D", "xmpMM:D")),
        packet(f"<!-- {SOURCE.format('print')} --><![CDATA[{SOURCE.format('print')}]]>"),
        packet(SOURCE.format("&e;"), '<!DOCTYPE x [<!ENTITY e "print">]>'),
        packet(SOURCE.format("&e;"), '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/hostname">]>'),
        b'<?xml version="1.0" encoding="no-such"?>' + packet(SOURCE.format("print")),
        b"<a>" * 100_000,
        b"",
    ],
)
def test_what_is_no_property_of_the_picture_is_not_read(xml: bytes) -> None:
    assert xmp.read(xml) == {}


def test_what_is_nested_deeper_than_64_ends_the_packet() -> None:
    for deep, found in ((61, {"DigitalSourceType": "print"}), (62, {})):  # inside of three others
        assert xmp.read(packet("<xmpMM:a>" * deep + "</xmpMM:a>" * deep + SOURCE.format("print"))) == found


@pytest.mark.parametrize("name", ["xmp-laughs", "xmp-outside", "xmp-deep"])
def test_xml_bombs_do_nothing(name: str) -> None:
    assert provenance.read(fuzz.bombs()[name]) == NOTHING


def test_every_term_of_the_vocabulary_has_a_meaning() -> None:
    for scheme in ("http", "https"):
        address = f"{scheme}://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture"
        assert source_types.explain(address) == {"term": "digitalCapture", "meaning": "taken with a digital camera"}
    assert source_types.explain("http://c2pa.org/digitalsourcetype/empty")["meaning"] == "begun from nothing"
    assert source_types.explain("newTerm") == {"term": "newTerm"}


VOCABULARY = "cv.iptc.org/newscodes/digitalsourcetype/"


@pytest.mark.parametrize(
    "spelled",
    [
        "http://" + VOCABULARY + "trainedAlgorithmicMedia",
        "https://" + VOCABULARY + "trainedAlgorithmicMedia/",
        "http://www." + VOCABULARY + "trainedAlgorithmicMedia",
        "https://www.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia/",
        "HTTP://CV.IPTC.ORG/NewsCodes/DigitalSourceType/TrainedAlgorithmicMedia",
        VOCABULARY + "trainedalgorithmicmedia",
        "//" + VOCABULARY + "trainedAlgorithmicMedia",
        "http://" + VOCABULARY + "trainedAlgorithmicMedia?lang=en-GB",
        "http://" + VOCABULARY + "trainedAlgorithmicMedia#top",
        "https://c2pa.org/digitalsourcetype/trainedAlgorithmicMedia/",
        "digsrctype:trainedAlgorithmicMedia",
        "DigSrcType:TRAINEDALGORITHMICMEDIA",
        " trainedAlgorithmicMedia ",
    ],
)
@pytest.mark.parametrize("form", ["attribute", "element", "resource", "item"])
def test_a_digital_source_type_is_known_however_it_is_spelled(spelled: str, form: str) -> None:
    xml = {
        "attribute": packet("", attributes=f'Iptc4xmpExt:DigitalSourceType="{spelled}"'),
        "element": packet(SOURCE.format(spelled)),
        "resource": packet(f'<Iptc4xmpExt:DigitalSourceType rdf:resource="{spelled}"/>'),
        "item": packet(SOURCE.format(f'<rdf:Bag><rdf:li rdf:resource="{spelled}"/></rdf:Bag>')),
    }[form]
    assert provenance.read(jpeg_xmp(xml)) == {"digital_source_type": MADE_BY_AI, "note": provenance.NOTE}


@pytest.mark.parametrize(
    "other", ["http://example.org/newscodes/digitalsourcetype/print", "x:print", "prints", "/print"]
)
def test_what_is_no_term_of_the_vocabulary_has_no_meaning(other: str) -> None:
    assert source_types.explain(other) == {"term": other}


def test_several_digital_source_types_are_all_told() -> None:
    items = "".join(f"<rdf:li>{term}</rdf:li>" for term in ("digitalCapture", VOCABULARY + "print/", "DigitalCapture"))
    found = provenance.read(jpeg_xmp(packet(SOURCE.format(f"\n <rdf:Bag>\n {items} </rdf:Bag>\n"))))
    capture = {"term": "digitalCapture", "meaning": "taken with a digital camera"}
    print_ = {"term": "print", "meaning": "scanned from a print"}
    assert (found["digital_source_type"], found["digital_source_types"]) == (capture, [capture, print_])


def jpeg_xmp(xml: bytes) -> bytes:
    return jpeg_segment(fuzz.valid()["jpeg-progressive"], 0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xml)


def data_set(record: int, number: int, text: bytes, extended: bool = False) -> bytes:
    size = struct.pack(">HL", 0x8004, len(text)) if extended else struct.pack(">H", len(text))
    return bytes([0x1C, record, number]) + size + text


def resource(kind: int, content: bytes, name: bytes = b"", pad: bool = True, signature: bytes = b"8BIM") -> bytes:
    padded = bytes([len(name)]) + name + bytes((len(name) + 1) % 2)
    return (
        signature
        + struct.pack(">H", kind)
        + padded
        + struct.pack(">L", len(content))
        + content
        + bytes(len(content) % 2 if pad else 0)
    )


UTF8 = data_set(1, 90, b"\x1b%G")
VERSION = data_set(2, 0, b"\0\4")
CREDIT = data_set(2, 110, "Gemäß KI".encode())
IPTC = {
    "record 2 alone": resource(0x0404, CREDIT),
    "record 1 before it": resource(0x0404, UTF8 + VERSION + CREDIT),
    "record 3 before it": resource(0x0404, data_set(3, 10, b"x") + CREDIT),
    "record 1 behind it": resource(0x0404, CREDIT + UTF8),
    "record 7, 8 and 9 behind it": resource(0x0404, CREDIT + b"".join(data_set(n, 10, b"x") for n in (7, 8, 9))),
    "an extended length": resource(0x0404, data_set(2, 120, b"x" * 40_000, True) + CREDIT),
    "an extended length of its own": resource(0x0404, data_set(2, 110, "Gemäß KI".encode(), True)),
    "Latin-1": resource(0x0404, data_set(2, 110, "Gemäß KI".encode("latin-1"))),
    "zeros between": resource(0x0404, UTF8 + b"\0\0\0" + CREDIT),
    "others before it": resource(0x0425, bytes(16)) + resource(0x03ED, bytes(16), b"ab") + resource(0x0404, CREDIT),
    "names of odd and of even length": resource(0x0425, b"", b"odd") + resource(0x0404, UTF8 + CREDIT, b"even"),
    "one of odd length": resource(0x0425, b"abc") + resource(0x0404, CREDIT),
    "one of odd length that is not padded": resource(0x0425, b"abc", pad=False) + resource(0x0404, CREDIT),
    "other signatures": resource(0x0425, b"abcd", signature=b"MeSa") + resource(0x0404, CREDIT),
    "two of them": resource(0x0404, UTF8 + VERSION) + resource(0x0404, CREDIT),
}  # fmt: skip


@pytest.mark.parametrize("how", IPTC)
def test_iptc_is_read_whatever_comes_before_it(how: str) -> None:
    expected = {"credit": "Gemäß KI", "note": provenance.NOTE}
    resources, jpeg = IPTC[how], fuzz.valid()["jpeg-progressive"]
    assert provenance.read(jpeg_segment(jpeg, 0xED, b"Photoshop 3.0\0" + resources)) == expected
    half = len(resources) // 2
    halves = jpeg_segment(jpeg, 0xED, b"Photoshop 3.0\0" + resources[half:])
    assert provenance.read(jpeg_segment(halves, 0xED, b"Photoshop 3.0\0" + resources[:half])) == expected
    lines = f"\niptc\n{len(resources)}\n{resources.hex()}".encode()
    if len(lines) < 10_000:
        assert provenance.read(png_text(**{"Raw profile type iptc": lines.decode()})) == expected


def test_iptc_among_a_tiff_s_photoshop_resources_is_read(encode: Encode, picture: Callable[..., Image.Image]) -> None:
    for tags in ({33723: UTF8 + CREDIT}, {34377: resource(0x0404, UTF8 + CREDIT)}):
        assert provenance.read(encode(picture(1), "TIFF", tiffinfo=tags))["credit"] == "Gemäß KI"


@pytest.mark.parametrize(
    "records",
    [
        b"\x1c",
        b"\x1c\2\x6e",
        b"\x1c\2\x6e\xff\xff",
        b"\x1c\2\x6e\x80\4",
        b"\x1c\2\x6e\x80\4\xff\xff\xff\xff",
        b"\2" * 99,
    ],
)
def test_iptc_that_ends_early_says_nothing(records: bytes) -> None:
    data = jpeg_segment(fuzz.valid()["jpeg-progressive"], 0xED, b"Photoshop 3.0\0" + resource(0x0404, records))
    assert provenance.read(data) == NOTHING


def test_iptc_credit_and_program() -> None:
    records = b"".join(
        b"\x1c\2" + bytes([number]) + struct.pack(">H", len(text)) + text
        for number, text in ((65, b"Editor"), (70, b"3.1"), (110, b"Made with AI"))
    )
    resource = b"8BIM\4\4\0\0" + struct.pack(">L", len(records)) + records + bytes(len(records) % 2)
    other = b"8BIM\4\x25\3abc" + struct.pack(">L", 3) + b"xyz\0"
    data = jpeg_segment(fuzz.valid()["jpeg-progressive"], 0xED, b"Photoshop 3.0\0" + other + resource)
    assert provenance.read(data) == {"software": "Editor 3.1", "credit": "Made with AI", "note": provenance.NOTE}


# --- generators -------------------------------------------------------------------------------------------------------

A1111 = (
    "a cat, (masterpiece:1.2)\nin a hat\nNegative prompt: blurry\nSteps: 20, Sampler: DPM++ 2M, CFG scale: 7, "
    'Seed: 42, Size: 512x512, Model hash: abc, Model: dreamy_v1, Lora hashes: "x: y", Version: v1.9'
)
A1111_FOUND = {
    "tool": "AUTOMATIC1111",
    "prompt": "a cat, (masterpiece:1.2) in a hat",
    "negative_prompt": "blurry",
    "model": "dreamy_v1",
    "sampler": "DPM++ 2M",
    "steps": "20",
    "cfg_scale": "7",
    "seed": "42",
}
COMFYUI: dict[str, Any] = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 42, "steps": 20, "cfg": 8.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
            "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sdxl.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 512, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["4", 1]}},
}  # fmt: skip
COMFYUI_FOUND = {
    "tool": "ComfyUI",
    "prompt": "a cat",
    "negative_prompt": "blurry",
    "model": "sdxl.safetensors",
    "sampler": "euler",
    "steps": "20",
    "cfg_scale": "8",
    "seed": "42",
}
FLUX = {
    "1": {"class_type": "SamplerCustomAdvanced", "inputs": {"sampler": ["3", 0], "guider": ["4", 0]}},
    "3": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
    "5": {"class_type": "UNETLoader", "inputs": {"unet_name": "flux.safetensors"}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["7", 0]}},
}  # fmt: skip
FOOOCUS = {
    "base_model": "juggernaut", "base_model_hash": "abc", "guidance_scale": 4.0, "sampler": "dpmpp_2m", "steps": 30,
    "prompt": "a cat", "negative_prompt": "blurry", "scheduler": "karras", "seed": "42", "version": "Fooocus v2.5",
}  # fmt: skip
INVOKEAI = {
    "positive_prompt": "a cat", "negative_prompt": "blurry", "scheduler": "euler", "steps": 30, "cfg_scale": 7.5,
    "seed": 42, "model": {"model_name": "sdxl", "base_model": "sdxl"},
}  # fmt: skip
INVOKEAI_FOUND = {
    "tool": "InvokeAI", "prompt": "a cat", "negative_prompt": "blurry", "model": "sdxl", "sampler": "euler",
    "steps": "30", "cfg_scale": "7.5", "seed": "42",
}  # fmt: skip
SWARMUI = {
    "sui_image_params": {
        "prompt": "a cat", "negativeprompt": "blurry", "model": "Flux/flux1-dev", "seed": 42, "steps": 25,
        "cfgscale": 1.0, "comfyuisampler": "euler", "scheduler": "normal", "swarm_version": "0.9.3.1",
    },
    "sui_extra_data": {"date": "2026-01-25"},
}  # fmt: skip
SWARMUI_FOUND = {
    "tool": "SwarmUI", "prompt": "a cat", "negative_prompt": "blurry", "model": "Flux/flux1-dev", "sampler": "euler",
    "steps": "25", "cfg_scale": "1", "seed": "42",
}  # fmt: skip
RUINED = {
    "Prompt": "a cat", "Negative": "blurry", "steps": 24, "cfg": 4.5, "seed": 42, "sampler_name": "dpmpp_2m",
    "scheduler": "simple", "base_model_name": "sdxl", "software": "RuinedFooocus",
}  # fmt: skip
RUINED_FOUND = {
    "tool": "RuinedFooocus", "prompt": "a cat", "negative_prompt": "blurry", "model": "sdxl", "sampler": "dpmpp_2m",
    "steps": "24", "cfg_scale": "4.5", "seed": "42",
}  # fmt: skip
EASY = {
    "prompt": "a cat", "negative_prompt": "blurry", "use_stable_diffusion_model": "sd-v1-5", "sampler_name": "euler_a",
    "num_inference_steps": "25", "guidance_scale": "7.5", "seed": "42",
}  # fmt: skip
EASY_NAMES = {
    "prompt": "Prompt", "negative_prompt": "Negative Prompt", "use_stable_diffusion_model": "Stable Diffusion model",
    "sampler_name": "Sampler", "num_inference_steps": "Steps", "guidance_scale": "Guidance Scale", "seed": "Seed",
}  # fmt: skip
EASY_FOUND = {
    "tool": "Easy Diffusion", "prompt": "a cat", "negative_prompt": "blurry", "model": "sd-v1-5", "sampler": "euler_a",
    "steps": "25", "cfg_scale": "7.5", "seed": "42",
}  # fmt: skip
NOVELAI = {"prompt": "a cat", "steps": 28, "scale": 5.0, "seed": 42, "sampler": "k_euler", "uc": "blurry"}


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ({"parameters": A1111}, A1111_FOUND),
        ({"prompt": json.dumps(COMFYUI), "workflow": json.dumps({"nodes": [], "links": []})}, COMFYUI_FOUND),
        ({"prompt": json.dumps(COMFYUI)}, COMFYUI_FOUND),
        (
            {"prompt": json.dumps(FLUX)},
            {"tool": "ComfyUI", "prompt": "a cat", "model": "flux.safetensors", "sampler": "euler"},
        ),
        (
            {"parameters": json.dumps(FOOOCUS), "fooocus_scheme": "fooocus"},
            {
                "tool": "Fooocus",
                "prompt": "a cat",
                "negative_prompt": "blurry",
                "model": "juggernaut",
                "sampler": "dpmpp_2m",
                "steps": "30",
                "cfg_scale": "4",
                "seed": "42",
            },
        ),
        (
            {"invokeai_metadata": json.dumps(INVOKEAI), "invokeai_graph": "{}"},
            INVOKEAI_FOUND,
        ),
        (
            {"Dream": '"a cat [blurry]" -s 50 -S 42 -W 512 -H 512 -C 7.5 -A k_lms'},
            {
                "tool": "InvokeAI",
                "prompt": "a cat",
                "negative_prompt": "blurry",
                "sampler": "k_lms",
                "steps": "50",
                "cfg_scale": "7.5",
                "seed": "42",
            },
        ),
        (
            {
                "Title": "AI generated image",
                "Description": "a cat",
                "Software": "NovelAI",
                "Source": "Stable Diffusion 1D44365E",
                "Comment": json.dumps(NOVELAI),
            },
            {
                "tool": "NovelAI",
                "prompt": "a cat",
                "negative_prompt": "blurry",
                "model": "Stable Diffusion",
                "sampler": "k_euler",
                "cfg_scale": "5",
                "seed": "42",
            },
        ),
        (
            {"invokeai_metadata": json.dumps({**INVOKEAI, "model": {"key": "1", "name": "flux", "base": "flux"}})},
            {**INVOKEAI_FOUND, "model": "flux"},
        ),
        ({"invokeai_metadata": json.dumps({"positive_prompt": "a cat"})}, {"tool": "InvokeAI", "prompt": "a cat"}),
        ({"invokeai_metadata": "{", "invokeai_graph": "{}"}, {"tool": "InvokeAI", "settings": ["invokeai_metadata"]}),
        ({"invokeai_graph": json.dumps({"nodes": {}})}, {"tool": "InvokeAI"}),
        ({"Dream": "a cat"}, {"tool": "InvokeAI", "settings": ["Dream"]}),
        ({"parameters": json.dumps(SWARMUI)}, SWARMUI_FOUND),
        ({"parameters": json.dumps({"sui_image_params": {"swarm_version": "0.9.1"}})}, {"tool": "SwarmUI"}),
        (
            {"parameters": json.dumps(SWARMUI | {"sui_extra_data": {"original_prompt": "x" * 100_000}})},
            SWARMUI_FOUND,
        ),
        ({"parameters": json.dumps(RUINED)}, RUINED_FOUND),
        ({"parameters": json.dumps(json.dumps(RUINED))}, RUINED_FOUND),
        (
            {"parameters": json.dumps({"version": "Fooocus v2.1", "prompt": "a cat"})},
            {"tool": "Fooocus", "prompt": "a cat"},
        ),
        (EASY, EASY_FOUND),
        ({EASY_NAMES[key]: value for key, value in EASY.items()}, EASY_FOUND),
        (
            {"Description": "a cat, studio light --v 6.1 --ar 3:2 Job ID: 01234567-89ab-cdef-0123-456789abcdef"},
            {"tool": "Midjourney", "prompt": "a cat, studio light --v 6.1 --ar 3:2"},
        ),
        ({"parameters": A1111.replace("v1.9", "f2.0.1v1.10.1-previous-6")}, {**A1111_FOUND, "tool": "Forge"}),
        ({"parameters": A1111.replace("v1.9", "neo")}, {**A1111_FOUND, "tool": "Forge"}),
        ({"parameters": A1111.replace("v1.9", "Fooocus v2.5.5")}, {**A1111_FOUND, "tool": "Fooocus"}),
        ({"parameters": A1111.replace("v1.9", "ComfyUI")}, {**A1111_FOUND, "tool": "ComfyUI"}),
        ({"parameters": A1111.replace("Version", "App: SD.Next, Version")}, {**A1111_FOUND, "tool": "SD.Next"}),
        ({"parameters": A1111 + ", Civitai resources: []"}, {**A1111_FOUND, "tool": "Civitai"}),
        ({"parameters": "a cat\nSteps: 20, App: SD.Next"}, {"tool": "SD.Next", "settings": ["parameters"]}),
        (
            {"parameters": A1111.replace("a cat", "Version: f2")},
            A1111_FOUND | {"prompt": A1111_FOUND["prompt"].replace("a cat", "Version: f2")},
        ),
        ({"parameters": "a cat, Steps: 20"}, {"settings": ["parameters"]}),
        ({"sd-metadata": "{"}, {"settings": ["sd-metadata"]}),
    ],
)
def test_generators_are_read_as_they_write_png(texts: dict[str, str], expected: dict[str, Any]) -> None:
    assert provenance.read(png_text(**texts))["generator"] == expected


@pytest.mark.parametrize(
    "texts", [{"Comment": "made with care"}, {"prompt": "a cat"}, {"prompt": "[1]"}, {"prompt": "{}"}]
)
def test_other_texts_are_no_settings(texts: dict[str, str]) -> None:
    assert "generator" not in provenance.read(png_text(**texts))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF"])
@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + A1111.encode("utf-16-be"),
        b"UNICODE\0" + A1111.encode("utf-16-le"),
        b"ASCII\0\0\0" + A1111.encode(),
    ],
)
def test_automatic1111_in_a_user_comment(
    encode: Encode, picture: Callable[..., Image.Image], kind: str, comment: bytes
) -> None:
    exif = Image.Exif()
    exif[270] = "a picture"
    exif.get_ifd(0x8769)[0x9286] = comment
    assert provenance.read(encode(picture(1), kind, exif=exif))["generator"] == A1111_FOUND


def test_comfyui_in_the_camera_s_tags_of_a_webp(encode: Encode, picture: Callable[..., Image.Image]) -> None:
    exif = Image.Exif()
    exif[271], exif[272] = "workflow:{}", "prompt:" + json.dumps(COMFYUI)
    assert provenance.read(encode(picture(1), "WEBP", exif=exif)) == {
        "generator": COMFYUI_FOUND,
        "note": provenance.NOTE,
    }


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
@pytest.mark.parametrize(("settings", "expected"), [(SWARMUI, SWARMUI_FOUND), (EASY, EASY_FOUND)])
def test_settings_as_json_in_exif(
    encode: Encode, picture: Callable[..., Image.Image], kind: str, settings: Any, expected: dict[str, str]
) -> None:
    comment, model = Image.Exif(), Image.Exif()
    comment.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + json.dumps(settings).encode("utf-16-le")
    model[272] = json.dumps(settings)
    for exif in (comment, model):
        found = provenance.read(encode(picture(1), kind, exif=exif))
        assert found == {"generator": expected, "note": provenance.NOTE}


def test_settings_as_json_in_xmp() -> None:
    said = json.dumps({"c": "a cat", "uc": "blurry", "model": "sdxl", "sampler": "Euler A", "scale": 7, "seed": 42})
    comment = '<exif:UserComment xmlns:exif="http://ns.adobe.com/exif/1.0/"><rdf:Alt><rdf:li xml:lang="x-default">'
    xml = packet(comment + said + "</rdf:li></rdf:Alt></exif:UserComment>")
    assert provenance.read(jpeg_xmp(xml))["generator"] == {
        "tool": "Draw Things",
        "prompt": "a cat",
        "negative_prompt": "blurry",
        "model": "sdxl",
        "sampler": "Euler A",
        "cfg_scale": "7",
        "seed": "42",
    }


# --- China's label ----------------------------------------------------------------------------------------------------

LABEL = {
    "Label": "1", "ContentProducer": "001191110102MACQD9K64010000", "ProduceID": "4fd20e68",
    "ReservedCode1": "c2ln" * 200, "ContentPropagator": "00119144", "PropagateID": "37fda03b", "ReservedCode2": "",
}  # fmt: skip
LABEL_FOUND = {
    "label": "1", "producer": "001191110102MACQD9K64010000", "produce_id": "4fd20e68", "propagator": "00119144",
    "propagate_id": "37fda03b", "meaning": "made by AI",
}  # fmt: skip
NAMED = json.dumps({"AIGC": LABEL})
WRITTEN = {
    "the object": json.dumps(LABEL),
    "the object by its name": NAMED,
    "a text of JSON": json.dumps(json.dumps(LABEL)),
    "its name with a text": json.dumps({"AIGC": json.dumps(LABEL)}),
    "escaped quotes": json.dumps(json.dumps(LABEL))[1:-1],
    "with room": json.dumps(LABEL, indent=4),
    "a number": json.dumps(LABEL | {"Label": 1}),
}


def escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("form", ["element", "attribute", "item"])
def test_china_s_label_is_read_from_xmp(written: str, form: str) -> None:
    name, value = 'xmlns:TC260="http://www.tc260.org.cn/ns/AIGC/1.0/"', escaped(WRITTEN[written])
    xml = {
        "element": packet(f"<TC260:AIGC>{value}</TC260:AIGC>", attributes=name),
        "attribute": packet("", attributes=f'{name} TC260:AIGC="{value}"'),
        "item": packet(f"<TC260:AIGC><rdf:Seq><rdf:li>{value}</rdf:li></rdf:Seq></TC260:AIGC>", attributes=name),
    }[form]
    expected = {"aigc": LABEL_FOUND, "note": provenance.NOTE}
    assert provenance.read(jpeg_xmp(xml)) == expected
    assert provenance.read(fuzz.png(1, 1, extra=[(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xml)])) == expected


@pytest.mark.parametrize("written", WRITTEN)
def test_china_s_label_is_read_from_png_text(written: str) -> None:
    text = WRITTEN[written].encode()
    for chunk in ((b"tEXt", b"AIGC\0" + text), (b"zTXt", b"AIGC\0\0" + zlib.compress(text))):
        assert provenance.read(fuzz.png(1, 1, extra=[chunk])) == {"aigc": LABEL_FOUND, "note": provenance.NOTE}


@pytest.mark.parametrize("tag", [270, 0x9286, 0x927C])
@pytest.mark.parametrize("written", ["the object", "the object by its name", "its name with a text", "escaped quotes"])
def test_china_s_label_is_read_from_exif(
    encode: Encode, picture: Callable[..., Image.Image], tag: int, written: str
) -> None:
    text = WRITTEN[written]
    for head in (b"ASCII\0\0\0", bytes(8), b"") if tag == 0x9286 else (b"",):
        exif = Image.Exif()
        if tag == 270:
            exif[tag] = text
        else:
            exif.get_ifd(0x8769)[tag] = head + text.encode()
        found = provenance.read(encode(picture(1), "JPEG", exif=exif))
        assert found == {"aigc": LABEL_FOUND, "note": provenance.NOTE}


@pytest.mark.parametrize(
    ("label", "meaning"),
    [("1", "made by AI"), ("2", "possibly made by AI"), (3, "suspected to be made by AI"), ("4", ""), ("AIGC", "")],
)
def test_what_china_s_label_means(label: Any, meaning: str) -> None:
    found = provenance.read(png_text(AIGC=json.dumps({"Label": label})))["aigc"]
    assert found == {"label": str(label)} | ({"meaning": meaning} if meaning else {})


@pytest.mark.parametrize(
    "text",
    ["", "1", "{", "[]", "null", '"{"', "{}", '{"AIGC": 1}', '{"AIGC": null}', '{"Label": []}', '{"Label": {"a": 1}}',
     '{"AIGC":' * 1000, "[" * 10_000, '{\\"AIGC', '{"Label": 1e999999}', '{"Label": ' + "9" * 5000 + "}",
     json.dumps({"Label": "1", "ProduceID": "x" * 100_000}), "&quot;" * 100],
)  # fmt: skip
def test_a_damaged_or_huge_label_says_nothing(text: str) -> None:
    found = provenance.read(png_text(AIGC=text, Comment=text, Description=text)).get("aigc", {})
    assert found in ({}, {"label": "inf"})


def test_other_objects_are_no_label(encode: Encode, picture: Callable[..., Image.Image]) -> None:
    exif = Image.Exif()
    exif[270] = '{"Label": "1", "name": "a cat"}'
    assert provenance.read(encode(picture(1), "JPEG", exif=exif)) == NOTHING


def test_packed_text_counts_and_bombs_do_not() -> None:
    packed = b"parameters\0\0" + zlib.compress(A1111.encode())
    assert provenance.read(fuzz.png(1, 1, extra=[(b"zTXt", packed)]))["generator"] == A1111_FOUND
    international = b"parameters\0\1\0en\0\0" + zlib.compress(A1111.replace("cat", "кот").encode())
    found = provenance.read(fuzz.png(1, 1, extra=[(b"iTXt", international)]))["generator"]
    assert found["prompt"].startswith("a кот")
    for name in ("png-text", "png-itxt", "png-texts", "png-json"):
        assert provenance.read(fuzz.bombs()[name]) == NOTHING


def test_a_graph_that_would_take_hours_is_cut() -> None:
    """Thousands of samplers that each lead through thousands of nodes with thousands of inputs."""
    many, following = {f"i{k}": k for k in range(20)}, ("model", "conditioning")
    chain = {
        str(n): {"class_type": "X", "inputs": {"text": "a", **many, **{key: [str(n + 1), 0] for key in following}}}
        for n in range(1500)
    }
    inputs = {**COMFYUI["3"]["inputs"], "model": ["0", 0], "positive": ["0", 0]}
    samplers = {f"s{n}": {"class_type": "KSampler", "inputs": inputs} for n in range(1500)}
    text = json.dumps(samplers | chain)
    assert len(text) < 1 << 20
    assert provenance.read(png_text(prompt=text))["generator"]["tool"] == "ComfyUI"


def test_texts_are_short_and_of_one_line() -> None:
    assert clean("a\0b\x1b[31m\u202e\n c\ud800", 100) == "ab[31m c"
    assert clean(b"caf\xc3\xa9\0rest", 100) == "café"
    assert clean(b"caf\xe9", 100) == "café"
    assert clean("x" * 1000, 100) == "x" * 99 + "…"
    assert [clean(value, 9) for value in (None, [], {}, 10**5000, 7.0)] == ["", "", "", "", "7"]
    shown = provenance.read(png_text(parameters="ä" * 5000 + "\n" + A1111.partition("\n")[2]))
    assert shown["generator"] == {**A1111_FOUND, "prompt": "ä" * 299 + "…"}


# --- Content Credentials ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MEDIA)
def test_a_signed_file_says_who_signed_what(
    authority: signing.Authority, plain: Callable[[str], bytes], kind: str
) -> None:
    found = provenance.read(authority.sign(plain(kind), MEDIA[kind]))
    assert found == {
        "c2pa": {
            "state": "valid",
            "meaning": "unchanged since it was signed, but the signer is not on a trust list: anybody can make such a "
            "signature",
            "problems": ["signingCredential.untrusted: signing certificate untrusted"],
            "signer": "Test Signer, Test Organisation",
            "generator": "A Generator 1.2",
            "actions": ["created (Model X)"],
            "digital_source_types": [MADE_BY_AI],
        },
        "note": provenance.NOTE,
    }


@pytest.mark.parametrize("purpose", [signing.EMAIL, signing.CLAIMS])
def test_a_signer_on_the_trust_list_is_trusted(
    plain: Callable[[str], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, purpose: str
) -> None:
    ours, other = signing.Authority(purpose), signing.Authority(purpose)
    monkeypatch.setenv(credentials.TRUST_LIST, str(tmp_path / "list.pem"))
    (tmp_path / "list.pem").write_text(ours.root)
    found = provenance.read(ours.sign(plain("JPEG"), "image/jpeg"))["c2pa"]
    assert found["state"] == "trusted" and "problems" not in found
    found = provenance.read(other.sign(plain("JPEG"), "image/jpeg"))["c2pa"]
    assert found["state"] == "valid" and "untrusted" in found["problems"][0]


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_trust_list_that_is_none_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    if content:
        (tmp_path / "list.pem").write_text(content)
    monkeypatch.setenv(credentials.TRUST_LIST, str(tmp_path / "list.pem"))
    with pytest.raises(StageError, match=r"TRUEFRAME_C2PA_TRUST_LIST: .*list\.pem: "):
        credentials.trust_list()


@pytest.mark.parametrize("kind", MEDIA)
def test_a_changed_file_is_invalid(authority: signing.Authority, plain: Callable[[str], bytes], kind: str) -> None:
    data = plain(kind)
    signed = authority.sign(data, MEDIA[kind])
    # A piece of the picture, which stands in the signed file as it was.
    at = next(n for n in range(len(data) // 2, len(data)) if signed.count(data[n : n + 12]) == 1)
    place = signed.index(data[at : at + 12])
    found = provenance.read(signed[:place] + bytes([signed[place] ^ 1]) + signed[place + 1 :])["c2pa"]
    assert found["state"] == "invalid"
    assert any("mismatch" in problem for problem in found["problems"])


def test_a_changed_manifest_is_invalid(authority: signing.Authority, plain: Callable[[str], bytes]) -> None:
    signed = authority.sign(plain("JPEG"), "image/jpeg")
    found = provenance.read(signed.replace(b"Model X", b"Model Y"))["c2pa"]
    assert found["state"] == "invalid"
    found = provenance.read(signed.replace(b"A Generator", b"B Generator"))["c2pa"]
    assert found["state"] == "invalid"


def test_a_damaged_manifest_is_unreadable(authority: signing.Authority, plain: Callable[[str], bytes]) -> None:
    signed = authority.sign(plain("PNG"), "image/png")
    found = provenance.read(signed.replace(b"jumdc2ma", b"jumdxxxx"))["c2pa"]
    assert found["state"] == "unreadable" and found["problems"]


def test_more_than_64_manifests_are_not_read(authority: signing.Authority, plain: Callable[[str], bytes]) -> None:
    signed = authority.sign(plain("JPEG"), "image/jpeg")
    mark = credentials._MANIFEST
    assert signed.count(mark) == 1 and provenance.read(signed + mark * 63)["c2pa"]["signer"]
    found = provenance.read(signed + mark * 64)["c2pa"]
    assert (found["state"], found["problems"]) == ("unreadable", ["more than 64 manifests"])


def test_what_a_picture_was_made_from_says_its_own(authority: signing.Authority, plain: Callable[[str], bytes]) -> None:
    part = authority.sign(plain("JPEG"), "image/jpeg")
    actions = [{"action": "c2pa.created", "digitalSourceType": "http://c2pa.org/digitalsourcetype/empty"}]
    edit = {**signing.MANIFEST, "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": actions}}]}
    found = provenance.read(authority.sign(plain("JPEG"), "image/jpeg", edit, (part,)))["c2pa"]
    assert found["digital_source_types"] == [{"term": "empty", "meaning": "begun from nothing"}]
    assert found["ingredients"][0]["digital_source_types"] == [MADE_BY_AI]
    assert found["ingredients"][0]["signer"] == "Test Signer, Test Organisation"


def test_nothing_is_fetched(authority: signing.Authority, plain: Callable[[str], bytes]) -> None:
    """A manifest may lie elsewhere, at an address that the file names; whoever asks there tells who looks at it."""
    asked = []

    class Listener(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    server = HTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/manifest.c2pa"
    data = authority.sign(plain("JPEG"), "image/jpeg", remote=address)
    assert address.encode() in data
    assert provenance.read(data) == NOTHING
    # And where there is a place for a manifest too, so that the library is asked.
    again = jpeg_segment(data, 0xEB, b"JP\0\1\0\0\0\1" + HIDDEN["store"])
    assert provenance.read(again)["c2pa"]["state"] == "unreadable"
    server.shutdown()
    assert asked == []


class Panic(BaseException):
    """As libraries in Rust have it: no `Exception`."""


@pytest.mark.parametrize(
    "error",
    [RuntimeError("its own"), RecursionError(), MemoryError(), SystemExit(3), GeneratorExit(), Panic("at line 7")],
)
@pytest.mark.parametrize(
    ("module", "reader", "named", "loses"),
    [
        ("components.metadata", "walk", "metadata", {"camera", "software", "digital_source_type", "generator", "c2pa"}),
        ("components.serve.provenance", "_exif", "EXIF", {"camera"}),
        ("components.serve.provenance", "packed_text", "texts", {"generator"}),
        ("components.serve.provenance.xmp", "read", "XMP", {"digital_source_type"}),
        ("components.serve.provenance", "_iptc", "IPTC", set()),
        ("components.serve.provenance.credentials", "read", "Content Credentials", {"c2pa"}),
        ("components.serve.provenance.generators", "read", "a generator's settings", {"generator"}),
        ("components.serve.provenance.source_types", "explain", "", {"digital_source_type", "c2pa"}),
    ],
)
def test_a_reader_that_breaks_costs_what_it_reads(
    authority: signing.Authority,
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    reader: str,
    named: str,
    loses: set[str],
    error: BaseException,
) -> None:
    data = authority.sign(fuzz.valid()["png"], "image/png")
    whole = provenance.read(data)
    assert whole.keys() == {"camera", "software", "digital_source_type", "generator", "c2pa", "note"}

    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(f"{module}.{reader}", broken)
    found = provenance.read(data)
    assert whole.keys() - found.keys() == loses
    assert (
        found["note"].startswith(provenance.NOTE) and f"Not read, as its reader failed here: {named}" in found["note"]
    )
    assert type(error).__name__ in found["note"]


def test_only_who_works_at_the_keyboard_ends_a_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(provenance, "_exif", stopped)
    with pytest.raises(KeyboardInterrupt):
        provenance.read(fuzz.valid()["jpeg"])


def test_a_signature_that_cannot_be_checked_here_is_not_called_damaged(
    authority: signing.Authority, plain: Callable[[str], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed = authority.sign(plain("JPEG"), "image/jpeg")
    # An older library doesn't know every kind of file.
    assert credentials.read(plain("JPEG2000"), "image/jp2")["state"] == "unchecked"
    # The trust list was there at the start, and is gone.
    monkeypatch.setenv(credentials.TRUST_LIST, str(tmp_path / "gone.pem"))
    found = provenance.read(signed)["c2pa"]
    assert (found["state"], found["problems"]) == ("unchecked", ["the list of trusted signers can't be read"])
    monkeypatch.delenv(credentials.TRUST_LIST)

    def unloadable() -> None:
        raise OSError("libc2pa_c.so: version `GLIBC_2.99' not found")

    monkeypatch.setattr(credentials, "_library", unloadable)
    found = provenance.read(signed)["c2pa"]
    assert found["state"] == "unchecked" and "GLIBC_2.99" in found["problems"][0]
    assert "damaged" not in found["meaning"]


def test_only_files_that_need_them_load_the_libraries(tmp_path: Path, jpeg: Callable[..., bytes]) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    code = (
        "import pathlib, sys; from components.serve import provenance;"
        f"provenance.read(pathlib.Path({str(tmp_path / 'a.jpg')!r}).read_bytes());"
        "assert not {'c2pa', 'sd_parsers', 'pillow_heif'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_whatever_the_bytes_it_can_be_written_as_json() -> None:
    rng = np.random.default_rng(0)
    heads = [data[:64] for data in fuzz.valid().values()] + [b"", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", b"GIF89a"]
    for head in heads:
        for _ in range(20):
            data = head + rng.integers(0, 256, 300, np.uint8).tobytes()
            json.dumps(provenance.read(data), ensure_ascii=False, allow_nan=False).encode()
