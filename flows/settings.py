"""Changing params.yaml for people, without losing their comments."""

import difflib
from pathlib import Path

from dvc.utils.serialize import dumps_yaml, parse_yaml_for_update

from components import params
from components.params import Source
from components.stage import StageError

PARAMS = Path("params.yaml")
PRESETS = Path("presets")


def use(preset: str, *, force: bool) -> str:
    """Write params.yaml from a preset, and say what changed.

    A params.yaml that equals no preset was changed by hand, and is kept.

    Raises:
        StageError: no such preset, or a changed file that would be lost.
    """
    presets = {p.relative_to(PRESETS).with_suffix("").as_posix(): p for p in sorted(PRESETS.rglob("*.yaml"))}
    if preset not in presets:
        raise StageError(f"no preset is called {preset!r}; there are {', '.join(presets)}")
    new = presets[preset].read_text()
    old = PARAMS.read_text() if PARAMS.exists() else ""
    if old == new:
        return f"params.yaml is the preset {preset} already"
    if old and not force and old not in {p.read_text() for p in presets.values()}:
        raise StageError(
            "params.yaml was changed by hand and is kept; `--force` replaces it, `git diff params.yaml` shows it"
        )
    changes = difflib.unified_diff(old.splitlines(), new.splitlines(), "before", f"preset {preset}", lineterm="", n=0)
    shown = [line for line in changes if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    PARAMS.write_text(new)
    return "\n".join([f"params.yaml is now the preset {preset}:", *shown])


def remember_source(name: str, from_: str | None) -> str | None:
    """Put a source into `ingest.sources`; what changed, or None where nothing did.

    A catalogue's archive is read once, so its place isn't kept; a folder is read again at every run.
    """
    sources = params.load(PARAMS).ingest.sources
    living = from_ is not None and Path(from_).is_dir()
    known = sources.get(name)
    if known is not None and (not living or known.from_ == from_):
        return None
    text = PARAMS.read_text()
    document = parse_yaml_for_update(text, str(PARAMS))
    entry = dict((known or Source()).model_dump(by_alias=True, exclude_defaults=True))
    document["ingest"]["sources"][name] = {**entry, "from": from_} if living else entry
    PARAMS.write_text(dumps_yaml(document))
    return f"params.yaml: ingest.sources.{name} {'reads ' + str(from_) if living else 'is used from now on'}"
