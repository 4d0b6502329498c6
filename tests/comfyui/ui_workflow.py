"""A saved workflow (the front end's format) as a prompt for the server, as the front end would send it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NOTES = {"Note", "MarkdownNote"}
_MUTED = 2


def to_prompt(workflow: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    """`info` is what /object_info says.

    Raises:
        ValueError: a node that the server does not know, or values that are not those of the node's widgets.
    """
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        kind = node["type"]
        if kind in NOTES or node.get("mode") == _MUTED:
            continue
        if kind not in info:
            raise ValueError(f"there is no node {kind}")
        inputs = widget_values(node, info[kind])
        for entry in node.get("inputs", ()):
            if entry.get("link") is not None:
                inputs[entry["name"]] = links[entry["link"]]
        prompt[str(node["id"])] = {"class_type": kind, "inputs": inputs}
    return prompt


def widget_values(node: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    """Widget name -> saved value. Seeds are followed by a value of their own: what happens to them after a run."""
    options = {name: (*spec, {})[1] for group in info["input"].values() for name, spec in group.items()}
    values, found = list(node.get("widgets_values") or ()), {}
    for name in (entry["name"] for entry in node.get("inputs", ()) if "widget" in entry):
        if not values:
            raise ValueError(f"{node['type']} {node['id']}: there is no value for {name}")
        value = values.pop(0)
        if name in options:  # a button, as that for uploads, has a value too
            found[name] = value
        if options.get(name, {}).get("control_after_generate"):
            values.pop(0)
    if values:
        raise ValueError(f"{node['type']} {node['id']}: {values} belong to no widget")
    return found
