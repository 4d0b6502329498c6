"""Prompts for the server, put together in Python; widgets that are not named have their defaults."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

DEMO = "demo (embedded)"
PROMPT = "a red 3 moves right slowly and bounces, on a navy ground"
OTHER_PROMPT = "a blue 7 moves left fast and stops, on a black ground"


class Node:
    """A node of a graph. `node[1]` is its second output; the node itself stands for its first."""

    def __init__(self, number: str) -> None:
        self.id = number

    def __getitem__(self, output: int) -> list[Any]:
        return [self.id, output]


def widget_defaults(info: Mapping[str, Any]) -> dict[str, Any]:
    """Widget name -> default of a node of /object_info, in the order of its widgets."""
    found = {}
    for group in ("required", "optional"):
        for name, spec in info["input"].get(group, {}).items():
            kind, options = spec[0], spec[1] if len(spec) > 1 else {}
            if isinstance(kind, list) or kind == "COMBO":
                choices = kind if isinstance(kind, list) else options.get("options", [])
                found[name] = options.get("default", choices[0] if choices else "")
            elif kind in ("INT", "FLOAT", "STRING", "BOOLEAN"):
                found[name] = options.get("default", {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}[kind])
    return found


class Graph:
    """Nodes in the format of POST /prompt. `info` is what /object_info says."""

    def __init__(self, info: Mapping[str, Any]) -> None:
        self.info = info
        self.nodes: dict[str, dict[str, Any]] = {}

    def add(self, kind: str, **inputs: Any) -> Node:
        node = Node(str(len(self.nodes) + 1))
        given = {name: value[0] if isinstance(value, Node) else value for name, value in inputs.items()}
        self.nodes[node.id] = {"class_type": kind, "inputs": {**widget_defaults(self.info[kind]), **given}}
        return node

    def fresh(self) -> Graph:
        """Itself, so marked that ComfyUI runs every node of it again instead of showing what it remembers."""
        mark = uuid.uuid4().hex
        for node in self.nodes.values():
            node["inputs"]["_fresh"] = mark  # a part of the cache's key; no node has such an input
        return self

    # The parts that most tests share

    def demo_model(self) -> Node:
        return self.add("DiagDistillModelLoader", model_name=DEMO)

    def prompt(self, text: str = PROMPT) -> Node:
        return self.add("DiagDistillDemoPrompt", text=text)

    def empty(self, latent_frames: int = 6, **inputs: Any) -> Node:
        size = {"width": 64, "height": 64, "length": float(latent_frames), "unit": "latent frames"}
        return self.add("DiagDistillEmptyLatent", **{**size, **inputs})

    def sampler(self, model: Node | list[Any], positive: Node | list[Any], latent: Node | list[Any], **inputs: Any):
        """The Diagonal Sampler with two Euler steps a chunk and no guidance, unless `inputs` say otherwise."""
        settings = {"preset": "custom", "schedule_text": "2", "step": "euler", "seed": 1}
        return self.add("DiagDistillSampler", model=model, positive=positive, latent=latent, **{**settings, **inputs})

    def save(self, latent: Node | list[Any], prefix: str = "latents/test") -> Node:
        return self.add("SaveLatent", samples=latent, filename_prefix=prefix)

    def sampled(self, prompt: str = PROMPT, latent_frames: int = 6, **inputs: Any) -> tuple[Node, Node]:
        """The demo sampled from an empty latent: (sampler, SaveLatent)."""
        sampler = self.sampler(self.demo_model(), self.prompt(prompt), self.empty(latent_frames), **inputs)
        return sampler, self.save(sampler)
