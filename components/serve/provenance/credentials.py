"""Content Credentials: signed C2PA manifests (https://c2pa.org), checked by the C2PA's own library."""

import io
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

from components.serve.provenance import source_types
from components.serve.provenance.text import clean, why
from components.stage import StageError

TRUST_LIST = "TRUEFRAME_C2PA_TRUST_LIST"
"""Environment variable: a file of PEM certificates whose signers are trusted, such as the C2PA's own trust list."""

_MEANINGS = {
    "trusted": "unchanged since it was signed, by a signer on the trust list",
    "valid": "unchanged since it was signed, but the signer is not on a trust list: anybody can make such a signature",
    "invalid": "changed after it was signed, or not signed as it must be: what it says is worth nothing",
    "unreadable": "there is a manifest, but it is damaged",
    "unchecked": "there is a manifest, but it can't be checked here, which says nothing of the picture",
}
# What a signer's certificate must be meant for, one of: C2PA claims, e-mail, documents; and time stamps, their status.
_PURPOSES = (
    "1.3.6.1.4.1.62558.2.1\n1.3.6.1.5.5.7.3.4\n1.3.6.1.5.5.7.3.36\n1.3.6.1.4.1.311.76.59.1.9\n"
    "1.3.6.1.5.5.7.3.8\n1.3.6.1.5.5.7.3.9\n"
)
_MANIFEST = bytes.fromhex("63326d6100110010800000aa00389b71")  # JUMBF type of a manifest
_MOST_MANIFESTS = 64
_MOST = 16  # actions, ingredients or problems that are shown


def trust_list() -> str:
    """The PEM certificates of trusted signers; empty without a list, and then no signer is trusted.

    Raises:
        StageError: the file that `TRUEFRAME_C2PA_TRUST_LIST` names can't be read, or holds no certificate.
    """
    path = os.environ.get(TRUST_LIST, "")
    if not path:
        return ""
    try:
        certificates = Path(path).read_text("ascii")
    except (OSError, ValueError) as error:
        raise StageError(f"{TRUST_LIST}: {path}: {error}; name a PEM file, or unset it") from None
    if "-----BEGIN CERTIFICATE-----" not in certificates:
        raise StageError(f"{TRUST_LIST}: {path}: no PEM certificate in it; name another file, or unset it")
    return certificates


def read(data: bytes, media_type: str) -> dict[str, Any]:
    """Check and read the manifest of a file that holds one. Nothing is fetched from the network.

    Args:
        data: a whole file.
        media_type: of the file.

    Returns:
        `state`: `trusted`, `valid` (but by an unknown signer), `invalid`, `unreadable`, or `unchecked` where the
        library or the trust list is missing, or doesn't know such files; its `meaning`; and of these what is there:
        `problems` (codes of the C2PA specification with an explanation), `signer`, `signed` (a time), `generator`,
        `actions`, `digital_source_types`, and `ingredients`, manifests of what the picture was made from, each with
        `signer`, `generator`, `actions` and `digital_source_types`.
    """
    try:
        library, context = _library(), _context(trust_list())
    except StageError:  # which names a path of the server's
        return _stated("unchecked", ["the list of trusted signers can't be read"])
    except Exception as error:  # missing, or made for another system
        return _stated("unchecked", [why(error)])
    try:
        if data.count(_MANIFEST) > _MOST_MANIFESTS:
            raise ValueError(f"more than {_MOST_MANIFESTS} manifests")
        with library.Reader(media_type, io.BytesIO(data), context=context) as reader:
            store = dict(json.loads(reader.json()))
        active = store.get("active_manifest")
        manifests = store["manifests"]
        found = _manifest(manifests[active])
        state = {"Trusted": "trusted", "Valid": "valid"}.get(store["validation_state"], "invalid")
        ingredients = [_manifest(one) for label, one in list(manifests.items())[:_MOST] if label != active]
    except library.C2paError.NotSupported as error:
        return _stated("unchecked", [clean(str(error), 200)])
    except (library.C2paError, LookupError, ValueError, TypeError, AttributeError) as error:
        return _stated("unreadable", [clean(str(error), 200)])
    problems = [
        clean(f"{one.get('code')}: {one.get('explanation')}", 200) for one in store.get("validation_status") or []
    ]
    shown = _stated(state, list(dict.fromkeys(problems))[:_MOST])
    return {**shown, **found, **({"ingredients": ingredients} if ingredients else {})}


def _stated(state: str, problems: list[str]) -> dict[str, Any]:
    return {"state": state, "meaning": _MEANINGS[state], **({"problems": problems} if problems else {})}


def _library() -> Any:
    """Loaded when the first file needs it: it is large, and few do."""
    import c2pa  # type: ignore[import-untyped]

    return c2pa


@cache
def _context(certificates: str) -> Any:
    trust = {"trust_config": _PURPOSES} | ({"trust_anchors": certificates} if certificates else {})
    return _library().Context.from_dict(
        {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}, "trust": trust}
    )


def _manifest(manifest: dict[str, Any]) -> dict[str, Any]:
    signature = manifest.get("signature_info") or {}
    names = [clean(signature.get(key), 100) for key in ("common_name", "issuer")]
    tool = (manifest.get("claim_generator_info") or [{}])[0]
    actions = [
        action
        for assertion in manifest.get("assertions") or []
        if str(assertion.get("label", "")).startswith("c2pa.actions")
        for action in assertion["data"].get("actions") or []
    ]
    said = dict.fromkeys(_action(action) for action in actions[:_MOST])
    kinds = {
        kind["term"]: kind for kind in (source_types.explain(action.get("digitalSourceType")) for action in actions)
    }
    found = {
        "signer": ", ".join(dict.fromkeys(name for name in names if name)),
        "signed": clean(signature.get("time"), 40),
        "generator": _named(tool) or clean(manifest.get("claim_generator"), 100),
        "actions": list(said),
        "digital_source_types": [kind for term, kind in kinds.items() if term][:_MOST],
    }
    return {key: value for key, value in found.items() if value}


def _action(action: dict[str, Any]) -> str:
    """What was done, and with what: `created (Model X)`."""
    agent = action.get("softwareAgent")
    tool = _named(agent) if isinstance(agent, dict) else clean(agent, 100)
    what = clean(action.get("action"), 100).removeprefix("c2pa.")
    return f"{what} ({tool})" if tool else what


def _named(tool: dict[str, Any]) -> str:
    return clean(" ".join(clean(tool.get(key), 80) for key in ("name", "version")), 100)
