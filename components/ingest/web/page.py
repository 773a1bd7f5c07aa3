"""Web pages: the images that one shows, and its licence."""

import re
import warnings
from pathlib import PurePosixPath
from urllib.parse import urldefrag, urljoin

from bs4 import BeautifulSoup, ParserRejectedMarkup, Tag, XMLParsedAsHTMLWarning

from components import images

warnings.filterwarnings("ignore", category=XMLParsedAsHTMLWarning)  # XHTML is read as HTML on purpose


def read(data: bytes, url: str) -> tuple[list[str], str | None]:
    """The addresses of a page's images, each once, and its licence: an address, or the words that link to it.

    Of an image in several sizes the largest is taken, and of one that links to an image file that file.
    """
    try:
        soup = BeautifulSoup(data, "lxml")
    except ParserRejectedMarkup:
        return [], None
    base = _address(url, _attribute(soup.select_one("base[href]"), "href")) or url
    terms = soup.select_one('a[rel~="license" i], link[rel~="license" i]')
    licence = _address(base, _attribute(terms, "href")) or (terms and terms.get_text(" ", strip=True)) or None
    shown: dict[str, None] = {}
    inside: set[int] = set()  # tags in one that stands for an image: what they show is the same again, but smaller
    for tag in soup.select("*"):
        image = _address(base, _image(tag))
        if id(tag.parent) in inside:
            inside.add(id(tag))
        elif image and _suffix(image) != ".svg":
            inside.add(id(tag))
            shown[image] = None
    return list(shown), licence


def _image(tag: Tag) -> str:
    """What a tag shows or links to, if that is an image."""
    if tag.name == "meta" and _attribute(tag, "property") == "og:image":
        return _attribute(tag, "content")
    if tag.name == "a" and _suffix(_attribute(tag, "href")) in images.SUFFIXES:
        return _attribute(tag, "href")
    if tag.name in ("picture", "img"):
        forms = [tag, *tag.find_all(["source", "img"], recursive=False)]
        largest = _largest(", ".join(_attribute(form, "srcset") for form in forms))
        return largest or _attribute(forms[-1], "src")
    return ""


def _largest(srcset: str) -> str:
    """The candidate with the largest width or density."""
    sizes = {"": 0.0}
    # A comma ends an address only after a size or before white space: it may be part of one.
    for candidate in re.split(r"(?<=\d[wx]),|,\s", srcset):
        url, size, *_ = [*str(candidate).strip(" \t\r\n\f,").split(), "", ""]
        if not url.lower().startswith("data:"):
            sizes.setdefault(url, float(size[:-1]) if re.fullmatch(r"\d+(\.\d+)?[wx]", size) else 1.0)
    return max(sizes, key=lambda url: sizes[url])


def _address(base: str, reference: str) -> str | None:
    try:
        url = urldefrag(urljoin(base, reference)).url if reference else ""
    except ValueError:
        return None
    return url if url.lower().startswith(("http://", "https://")) else None


def _suffix(url: str) -> str:
    return PurePosixPath(re.split("[?#]", url)[0]).suffix.lower()


def _attribute(tag: Tag | None, name: str) -> str:
    return str(tag.get(name) or "").strip() if tag else ""
