"""Settings that image generators of the Stable Diffusion family leave in their files, read by sd-parsers.

sd-parsers' own search of the pixels (NovelAI's "stealth" metadata) is not used: pixels say nothing here. Nor are its
readers of files, which remember the last one by its address in memory.
"""

import json
from collections.abc import Mapping
from typing import Any

from components.serve.provenance.text import clean, decoded

# Lengths up to which a text is read; some of sd-parsers' patterns take quadratic time.
_LONGEST = {"parameters": 16_384, "Dream": 4_096, "Source": 256, "Description": 16_384}
_LONGEST_JSON = 1 << 20
_JSON = ("prompt", "invokeai_metadata", "sd-metadata", "Comment")
_MOST_NODES, _MOST_SAMPLERS, _MOST_LINKS = 500, 4, 2_000
_SAMPLER = ("sampler_name", "steps", "cfg")
_INPUTS = (*_SAMPLER, "scheduler", "seed", "noise_seed", "model", "ckpt_name", "unet_name", "positive", "negative")
_USER_COMMENT, _WORKFLOWS = 0x9286, (b"prompt:", b"workflow:")


def read(texts: Mapping[str, str], exif: Mapping[int, bytes | int]) -> dict[str, Any]:
    """Settings of the generator that a file names.

    Args:
        texts: of a PNG, by keyword.
        exif: values by tag.

    Returns:
        `tool` (`AUTOMATIC1111`, `ComfyUI`, `Fooocus`, `InvokeAI` or `NovelAI`) and of these what is there: `prompt`,
        `negative_prompt`, `model`, `sampler`, `steps`, `cfg_scale`, `seed`. Of settings that can't be read,
        `settings` names the places. Empty where there are none.
    """
    settings = {key: value for key, value in (dict(texts) | _of_exif(exif)).items() if key in (*_LONGEST, *_JSON)}
    if not settings.keys() & {"parameters", "prompt", "invokeai_metadata", "sd-metadata", "Dream", "Comment"}:
        return {}
    settings = {
        key: value[-_LONGEST[key] :] if key in _LONGEST else value
        for key, value in settings.items()
        if key in _LONGEST or len(value) <= _LONGEST_JSON
    }
    from sd_parsers.parsers import MANAGED_PARSERS, ComfyUIParser

    graph = _graph(settings)
    parsers: list[Any] = list(MANAGED_PARSERS)
    for parser in parsers:
        try:
            found = parser().parse(_comfyui(graph) if parser is ComfyUIParser else settings)
            if shown := _shown(found):
                return {"tool": found.generator.value, **shown}
        except Exception:  # not the settings of this one; damaged ones raise whatever they like
            continue
    if graph:
        return {"tool": "ComfyUI", **_loosely(graph)}
    places = sorted(settings.keys() & {"parameters", "invokeai_metadata", "sd-metadata", "Dream"})
    return {"settings": places} if places else {}


def is_workflow(value: bytes | int) -> bool:
    """Whether an EXIF value is a workflow of ComfyUI, which keeps them where cameras keep their names."""
    return isinstance(value, bytes) and value.startswith(_WORKFLOWS)


def _of_exif(exif: Mapping[int, bytes | int]) -> dict[str, str]:
    """What JPEG and WebP hold: a user comment as `parameters`, ComfyUI's texts under their names."""
    found: dict[str, str] = {}
    for value in exif.values():
        if isinstance(value, bytes) and is_workflow(value):
            key, _, workflow = decoded(value).partition(":")
            found[key] = workflow
    comment = exif.get(_USER_COMMENT)
    if isinstance(comment, bytes) and len(comment) > 8:
        code, content = comment[:8], comment[8:]
        if code == b"UNICODE\0":
            # Of the two byte orders the one whose high bytes are mostly zero.
            big = content[0::2].count(0) >= content[1::2].count(0)
            found["parameters"] = content.decode("utf-16-be" if big else "utf-16-le", "replace").strip("\0")
        else:
            found["parameters"] = decoded(content if code in (b"ASCII\0\0\0", bytes(8)) else comment)
    if not _like_settings(found.get("parameters", "")):
        found.pop("parameters", None)
    return found


def _like_settings(comment: str) -> bool:
    """A user comment can be anything; settings are JSON, or name their steps."""
    return comment.lstrip().startswith("{") or "Steps:" in comment


def _graph(settings: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """ComfyUI's nodes by number with the inputs that matter; empty for what is none."""
    try:
        nodes = json.loads(settings.get("prompt", ""))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(nodes, dict):
        return {}
    graph: dict[str, dict[str, Any]] = {}
    samplers = 0
    for number, node in nodes.items():
        if not isinstance(node, dict) or not isinstance(node.get("inputs"), dict) or "class_type" not in node:
            continue
        inputs = {
            key: value
            for key, value in node["inputs"].items()
            if key in _INPUTS or key in ("text", "clip", "conditioning", "text_embeds") or _link(value)
        }
        samplers += all(key in inputs for key in _SAMPLER)
        if samplers > _MOST_SAMPLERS or len(graph) == _MOST_NODES:
            break
        graph[number] = {"class_type": clean(node["class_type"], 100), "inputs": dict(list(inputs.items())[:32])}
    return graph


def _link(value: Any) -> bool:
    """An input that comes from another node: its number, and which of its outputs."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)


def _comfyui(graph: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The graph as sd-parsers reads it, with links from the nodes themselves: not every file has a workflow."""
    links = [
        [0, value[0], 0, number, 0, "CLIP" if key == "clip" else key.upper()]
        for number, node in graph.items()
        for key, value in node["inputs"].items()
        if _link(value)
    ]
    return {"prompt": graph, "workflow": {"links": links[:_MOST_LINKS]}}


def _loosely(graph: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The first value of each kind, of a graph whose sampler is cut into several nodes."""

    def first(*keys: str) -> str:
        values = (node["inputs"].get(key) for node in graph.values() for key in keys)
        return next((value for value in values if isinstance(value, str) and value), "")

    found = {
        "prompt": clean(first("text"), 300),
        "model": clean(first("ckpt_name", "unet_name"), 100),
        "sampler": clean(first("sampler_name"), 100),
    }
    return {key: value for key, value in found.items() if value}


def _shown(found: Any) -> dict[str, str]:
    sampler = found.samplers[0]  # none: no settings
    models = [one.model for one in found.samplers if one.model]
    prompts = {
        key: ", ".join(dict.fromkeys(prompt.value for one in found.samplers for prompt in getattr(one, f"{key}s")))
        for key in ("prompt", "negative_prompt")
    }
    shown = {
        **{key: clean(value, 300) for key, value in prompts.items()},
        "model": clean(models[0].name or models[0].hash, 100) if models else "",
        "sampler": clean(sampler.name, 100),
        **{key: clean(sampler.parameters.get(key), 40) for key in ("steps", "cfg_scale", "seed")},
    }
    return {key: value for key, value in shown.items() if value}
