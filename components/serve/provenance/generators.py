"""Settings that image generators of the Stable Diffusion family leave in their files, read by sd-parsers.

sd-parsers' own search of the pixels (NovelAI's "stealth" metadata) is not used: pixels say nothing here. Nor are its
readers of files, which remember the last one by its address in memory.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from components.serve.provenance import aigc
from components.serve.provenance.text import clean, decoded, user_comment

# Lengths up to which a text is read; some of sd-parsers' patterns take quadratic time.
_LONGEST = {"parameters": 16_384, "Dream": 4_096, "Source": 256, "Description": 16_384}
_LONGEST_JSON = 1 << 20
_JSON = ("prompt", "invokeai_metadata", "sd-metadata", "Comment")
_MOST_NODES, _MOST_SAMPLERS, _MOST_LINKS = 500, 4, 2_000
_SAMPLER = ("sampler_name", "steps", "cfg")
_INPUTS = (*_SAMPLER, "scheduler", "seed", "noise_seed", "model", "ckpt_name", "unet_name", "positive", "negative")
_DESCRIPTION, _MODEL, _USER_COMMENT, _WORKFLOWS = 270, 272, 0x9286, (b"prompt:", b"workflow:")

# What tools call a setting, in objects of JSON and in texts.
_NAMES = {
    "prompt": ("prompt", "positive_prompt", "Prompt", "c"),
    "negative_prompt": ("negative_prompt", "negativeprompt", "Negative", "Negative Prompt", "uc"),
    "model": ("model", "base_model_name", "base_model", "use_stable_diffusion_model", "Stable Diffusion model"),
    "sampler": ("sampler", "sampler_name", "comfyuisampler", "Sampler", "scheduler"),
    "steps": ("steps", "num_inference_steps", "Steps"),
    "cfg_scale": ("cfg_scale", "cfgscale", "guidance_scale", "Guidance Scale", "cfg", "scale"),
    "seed": ("seed", "Seed"),
}
_JOB = re.compile(r"\s*Job ID: [0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\s*$")
# What writes settings as AUTOMATIC1111 does says so in their last line.
_APP = re.compile(r"(?:^|, )App: ([^,]+)")
_VERSION = re.compile(r"(?:^|, )Version: ([^,]+)")
_VERSIONS = {r"f\d|forge|neo": "Forge", "Fooocus": "Fooocus", "ComfyUI": "ComfyUI", "Vlad": "SD.Next"}


def read(texts: Mapping[str, str], exif: Mapping[int, bytes | int], comment: str = "") -> dict[str, Any]:
    """Settings of the generator that a file names.

    Args:
        texts: of a PNG, by keyword.
        exif: values by tag.
        comment: of the user, in XMP.

    Returns:
        `tool` (such as `AUTOMATIC1111` or `ComfyUI`) and of these what is there: `prompt`, `negative_prompt`, `model`,
        `sampler`, `steps`, `cfg_scale`, `seed`. Of settings that can't be read, `settings` names the places. Empty
        where there are none.
    """
    everything = dict(texts) | _of_exif(exif)
    if told := _told(everything, comment):
        return told
    settings = {key: value for key, value in everything.items() if key in (*_LONGEST, *_JSON)}
    if not settings.keys() & {"parameters", "prompt", "invokeai_metadata", "sd-metadata", "Dream", "Comment"}:
        return {}
    settings = {
        key: value[-_LONGEST[key] :] if key in _LONGEST else value
        for key, value in settings.items()
        if key in _LONGEST or len(value) <= _LONGEST_JSON
    }
    from sd_parsers.parsers import MANAGED_PARSERS, ComfyUIParser

    graph, variant = _graph(settings), _variant(settings.get("parameters", ""))
    parsers: list[Any] = list(MANAGED_PARSERS)
    for parser in parsers:
        try:
            found = parser().parse(_comfyui(graph) if parser is ComfyUIParser else settings)
            if shown := _shown(found):
                tool = found.generator.value
                return {"tool": (variant if tool == "AUTOMATIC1111" else "") or tool, **shown}
        except Exception:  # not the settings of this one; damaged ones raise whatever they like
            continue
    if graph:
        return {"tool": "ComfyUI", **_loosely(graph)}
    places = sorted(settings.keys() & {"parameters", "invokeai_metadata", "sd-metadata", "Dream"})
    tool = "InvokeAI" if {"invokeai_metadata", "Dream"} & set(places) else variant
    return {**({"tool": tool} if tool else {}), "settings": places} if places else {}


def is_settings(value: bytes | int) -> bool:
    """Whether an EXIF value holds settings: ComfyUI and SwarmUI keep them where cameras keep their names."""
    return isinstance(value, bytes) and value.startswith((*_WORKFLOWS, b"{"))


def _told(texts: Mapping[str, str], comment: str) -> dict[str, Any]:
    """Settings that are an object of JSON, or texts, which only one tool writes; empty for others."""
    parameters = _object(texts.get("parameters", ""))
    swarm, invoke, drawn = parameters.get("sui_image_params"), _invokeai(texts), _object(comment)
    if isinstance(swarm, dict):
        return {"tool": "SwarmUI", **_named(swarm)}
    if invoke is not None:
        return {"tool": "InvokeAI", **_named(invoke)}
    if parameters.get("software") == "RuinedFooocus":
        return {"tool": "RuinedFooocus", **_named(parameters)}
    if parameters and (str(parameters.get("version")).startswith("Fooocus") or "fooocus_scheme" in texts):
        return {"tool": "Fooocus", **_named(parameters)}
    for record in (parameters, texts):
        if "use_stable_diffusion_model" in record or "Stable Diffusion model" in record:
            return {"tool": "Easy Diffusion", **_named(record)}
    if "c" in drawn and "uc" in drawn:
        return {"tool": "Draw Things", **_named(drawn)}
    if job := _JOB.search(texts.get("Description", "")[-200:]):
        return {"tool": "Midjourney", "prompt": clean(texts["Description"][: -len(job.group())], 300)}
    return {}


def _invokeai(texts: Mapping[str, str]) -> dict[str, Any] | None:
    """What InvokeAI says of a picture; empty where there are only nodes, null where it is not InvokeAI's."""
    if found := _object(texts.get("invokeai_metadata", "")):
        return found
    graphs = (_object(texts.get(key, "")) for key in ("invokeai_graph", "invokeai_workflow"))
    return {} if any(graphs) and "invokeai_metadata" not in texts else None


def _object(text: str) -> dict[str, Any]:
    """An object of JSON, which RuinedFooocus writes as a text; empty for what is none."""
    value: Any = text
    try:
        for _ in range(2):
            if isinstance(value, str) and len(value) <= _LONGEST_JSON:
                value = json.loads(value)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _named(record: Mapping[str, Any]) -> dict[str, str]:
    """Settings by our names, from a tool's own."""
    found = {}
    for name, keys in _NAMES.items():
        value = next((record[key] for key in keys if record.get(key) not in (None, "")), "")
        if isinstance(value, dict):  # InvokeAI's models
            value = value.get("name") or value.get("model_name")
        found[name] = clean(value, 300 if "prompt" in name else 100)
    return {name: value for name, value in found.items() if value}


def _variant(parameters: str) -> str:
    """Which of the programs that write settings as AUTOMATIC1111 does it was; empty for itself and unknown ones."""
    last = parameters.rstrip().rpartition("\n")[2]
    if app := _APP.search(last):
        return clean(app.group(1), 40)
    if "Civitai resources: " in last:
        return "Civitai"
    version = _VERSION.search(last)
    said = version.group(1).strip() if version else ""
    return next((tool for begins, tool in _VERSIONS.items() if re.match(begins, said)), "")


def _of_exif(exif: Mapping[int, bytes | int]) -> dict[str, str]:
    """What JPEG and WebP hold: a user comment as `parameters`, ComfyUI's texts under their names."""
    found: dict[str, str] = {}
    for tag, value in exif.items():
        if not isinstance(value, bytes):
            continue
        if value.startswith(_WORKFLOWS):
            key, _, workflow = decoded(value).partition(":")
            found[key] = workflow
        elif tag == _MODEL and is_settings(value):
            found["parameters"] = decoded(value)
        elif tag == _DESCRIPTION:
            found["Description"] = decoded(value)
    comment = exif.get(_USER_COMMENT)
    if isinstance(comment, bytes) and len(comment) > 8 and _like_settings(said := user_comment(comment)):
        found["parameters"] = said
    return found


def _like_settings(comment: str) -> bool:
    """A user comment can be anything; settings are JSON, or name their steps."""
    return (comment.lstrip().startswith("{") and not aigc.read([], [comment])) or "Steps:" in comment


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
