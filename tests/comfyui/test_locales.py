"""Names and tooltips in every language cover what the nodes offer, and the English ones are the nodes' own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

LOCALES = Path(__file__).resolve().parents[2] / "locales"


def offered(node):
    inputs = {name: spec for part in ("required", "optional") for name, spec in node["input"].get(part, {}).items()}
    return {name: spec[1]["tooltip"] for name, spec in inputs.items()}, node["output_tooltips"]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_language_covers_every_node_input_and_output(object_info, language):
    said = json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))
    nodes = {name: node for name, node in object_info.items() if name.startswith("DiagDistill")}
    assert set(said) == set(nodes)
    for name, node in nodes.items():
        inputs, outputs = offered(node)
        assert set(said[name]["inputs"]) == set(inputs), name
        assert set(said[name]["outputs"]) == {str(number) for number in range(len(outputs))}, name
        texts = [said[name]["display_name"], said[name]["description"]]
        texts += [
            v[key] for part in ("inputs", "outputs") for v in said[name][part].values() for key in ("name", "tooltip")
        ]
        assert all(text.strip() for text in texts), name


def test_the_english_words_are_those_of_the_nodes(object_info):
    said = json.loads((LOCALES / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    for name, words in said.items():
        node = object_info[name]
        inputs, outputs = offered(node)
        assert words["display_name"] == node["display_name"] and words["description"] == node["description"]
        assert {key: value["tooltip"] for key, value in words["inputs"].items()} == inputs
        assert [words["outputs"][str(number)]["tooltip"] for number in range(len(outputs))] == outputs
