"""What ComfyUI knows of the pack's nodes."""

from __future__ import annotations

import pytest
from comfy_server import PACK

NODES = {
    "DiagDistillModelLoader": "Diagonal Model Loader",
    "DiagDistillSchedule": "Diagonal Schedule",
    "DiagDistillPromptTimeline": "Prompt Timeline",
    "DiagDistillTimelineJoin": "Prompt Timeline Join",
    "DiagDistillDemoPrompt": "Demo Prompt Encode",
    "DiagDistillEmptyLatent": "Empty Diagonal Latent",
    "DiagDistillStartLatent": "Start Image Latent",
    "DiagDistillExtend": "Extend Video",
    "DiagDistillSampler": "Diagonal Sampler",
    "DiagDistillSamplerSelect": "Diagonal Sampler Select",
    "DiagDistillStream": "Diagonal Stream",
    "DiagDistillSaveState": "Save Video State",
    "DiagDistillLoadState": "Load Video State",
    "DiagDistillTinyVAELoader": "Tiny VAE Loader",
    "DiagDistillStreamingDecode": "Streaming Decode",
}


def test_every_node_is_there_and_no_other(object_info):
    ours = {name for name, info in object_info.items() if info["python_module"].startswith("custom_nodes.ComfyUI-Diag")}
    assert ours == set(NODES)


def test_the_pack_is_imported_without_complaint(server):
    signs = ("could not be loaded", "IMPORT FAILED")
    complaints = [line for line in server.log().splitlines() if any(sign in line for sign in signs)]
    assert complaints == []


@pytest.mark.parametrize("node", NODES)
def test_a_node_says_what_it_is(object_info, node):
    info = object_info[node]
    assert info["display_name"] == NODES[node]
    assert info["category"] == "DiagDistill"
    assert info["description"].strip()
    inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    assert inputs
    for name, (_, options) in inputs.items():
        assert options.get("tooltip", "").strip(), f"{node}.{name} has no tooltip"
    assert len(info["output_tooltips"]) == len(info["output"]) > 0
    assert all(tooltip and tooltip.strip() for tooltip in info["output_tooltips"])


@pytest.mark.parametrize("node", NODES)
def test_a_node_has_help_in_the_app(client, node):
    page = client.get(f"extensions/ComfyUI-DiagDistill/docs/{node}.md").decode()
    assert page == (PACK / "web" / "docs" / f"{node}.md").read_text(encoding="utf-8")
    assert len(page) > 300
