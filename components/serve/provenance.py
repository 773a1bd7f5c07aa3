"""What a file says of its own origin. It is shown beside the score and never mixed into it."""

from typing import Any

from PIL import ExifTags, Image

# The text chunks in which generators of the Stable Diffusion family keep their settings.
_GENERATOR_KEYS = (
    "parameters",
    "prompt",
    "workflow",
    "sd-metadata",
    "invokeai_metadata",
    "Dream",
    "fooocus_scheme",
)


def read(image: Image.Image) -> dict[str, Any]:
    """Read an opened image's metadata as its file structure holds it.

    A camera's or a generator's name can be forged, and a missing one proves nothing.

    Returns:
        Of these what is there: `camera` (EXIF make and model), `software` (EXIF or text chunk), and
        `generator_settings` (names of the text chunks in which image generators keep theirs).
    """
    found: dict[str, Any] = {}
    try:
        exif = image.getexif()
    except Exception:  # damaged metadata is no metadata
        exif = Image.Exif()
    camera = [_text(exif[tag]) for tag in (ExifTags.Base.Make, ExifTags.Base.Model) if exif.get(tag)]
    if camera:
        found["camera"] = " ".join(camera)
    software = exif.get(ExifTags.Base.Software) or image.info.get("Software")
    if software:
        found["software"] = _text(software)
    settings = [key for key in _GENERATOR_KEYS if key in image.info]
    if settings:
        found["generator_settings"] = settings
    return found


def _text(value: Any) -> str:
    return str(value).strip("\0 ")[:200]
