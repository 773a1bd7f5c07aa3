"""Changing params.yaml for people, without losing their comments."""

import difflib
from pathlib import Path
from typing import Any

import yaml
from dvc.utils.serialize import dumps_yaml, parse_yaml_for_update

from components import params
from components.stage import StageError

PARAMS = Path("params.yaml")
PRESETS = Path("presets")


def use(preset: str, *, force: bool, keep_sources: bool = False) -> str:
    """Write params.yaml from a preset, and say what changed.

    A params.yaml that equals no preset was changed by hand, and is kept.

    Args:
        preset: its name.
        force: whether a changed file may be lost.
        keep_sources: whether `ingest.sources` stays as it is; then a change of it is none that would be lost.

    Raises:
        StageError: no such preset, or a changed file that would be lost.
    """
    presets = {p.relative_to(PRESETS).with_suffix("").as_posix(): p for p in sorted(PRESETS.rglob("*.yaml"))}
    if preset not in presets:
        raise StageError(f"no preset is called {preset!r}; there are {', '.join(presets)}")
    new = presets[preset].read_text()
    old = _text() if PARAMS.exists() else ""
    compared = _without_sources if keep_sources else str
    changed = old and compared(old) not in [compared(p.read_text()) for p in presets.values()]
    if old and keep_sources:
        document = parse_yaml_for_update(new, str(presets[preset]))
        document["ingest"]["sources"] = yaml.safe_load(old)["ingest"]["sources"]
        new = dumps_yaml(document)
    if old == new:
        return f"params.yaml is the preset {preset} already"
    if changed and not force:
        raise StageError(
            "params.yaml was changed by hand and is kept; `--keep-sources` keeps its sources alone, `--force` replaces "
            "it, `git diff params.yaml` shows it"
        )
    changes = difflib.unified_diff(old.splitlines(), new.splitlines(), "before", f"preset {preset}", lineterm="", n=0)
    shown = [line for line in changes if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    PARAMS.write_text(new)
    return "\n".join([f"params.yaml is now the preset {preset}:", *shown])


def _text() -> str:
    try:
        return PARAMS.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise StageError(f"{PARAMS}: not UTF-8 ({error}); let an editor save it as UTF-8") from None


def _without_sources(text: str) -> Any:
    try:
        settings = yaml.safe_load(text)
        return {**settings, "ingest": {**settings["ingest"], "sources": None}}
    except (yaml.YAMLError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())
        said = f"{PARAMS}: it has no sources that can be kept ({reason}); mend it, or use --force alone"
        raise StageError(said) from None


def remember_source(name: str, *, only: bool = False, **said: Any) -> str | None:
    """Put a source into `ingest.sources`; what changed, or None where nothing did.

    A catalogue's archive is read once, so its path isn't kept; every other place is looked at again at every run.

    Args:
        name: of the source.
        only: whether the others are taken out.
        said: what the command said of it, by the keys of `ingest.sources`; null where it said nothing.
    """
    sources = params.load(PARAMS).ingest.sources
    known, others = sources.get(name), [other for other in sources if other != name and only]
    said = {key: value for key, value in said.items() if value is not None}
    if "from" in said and Path(said["from"]).is_file():
        del said["from"]
    old = known.model_dump(by_alias=True, exclude_defaults=True) if known else {}
    if known is not None and old == old | said and not others:
        return None
    text = _text()
    document = parse_yaml_for_update(text, str(PARAMS))
    document["ingest"]["sources"][name] = old | said
    for other in others:
        del document["ingest"]["sources"][other]
    PARAMS.write_text(dumps_yaml(document))
    what = ", ".join(f"{key}: {value}" for key, value in said.items())
    changed = f"params.yaml: ingest.sources.{name} {f'has {what}' if what else 'is used from now on'}"
    return changed + (f", without {', '.join(others)}" if others else "")


def remember_model(name: str, values: dict[str, Any]) -> str:
    """Put settings of a candidate, by their dotted names, into `train.models`; what changed."""
    document = parse_yaml_for_update(_text(), str(PARAMS))
    for key, value in values.items():
        *path, last = key.split(".")
        node = document["train"]["models"][name]
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    PARAMS.write_text(dumps_yaml(document))
    return f"params.yaml: train.models.{name} has " + ", ".join(f"{key}: {value}" for key, value in values.items())
