"""The demo's text encoder where ComfyUI expects a CLIP."""

from __future__ import annotations

import copy

import pytest
import torch
from diagdistill_pack.diag_core.demo_text import DemoTextEncoder
from diagdistill_pack.nodes.demo_clip import DemoClip

PROMPT = "a red 3 moves right"
CONTEXT = DemoTextEncoder().encode([PROMPT])


def test_a_prompt_becomes_conditioning():
    clip = DemoClip().clone()
    [[context, own]] = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))
    assert torch.equal(context, CONTEXT) and own == {}


def test_what_callers_add_is_kept():
    clip = DemoClip()
    [[_, own]] = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT), add_dict={"guidance": 3.0})
    assert own == {"guidance": 3.0}


def test_the_older_ways_to_encode():
    clip = DemoClip()
    tokens = clip.tokenize(PROMPT, return_word_ids=True)
    assert torch.equal(clip.encode_from_tokens(tokens), CONTEXT)
    context, pooled = clip.encode_from_tokens(tokens, return_pooled=True)
    assert torch.equal(context, CONTEXT) and pooled is None
    assert torch.equal(clip.encode_from_tokens(tokens, return_pooled=True, return_dict=True)["cond"], CONTEXT)


@pytest.mark.parametrize("name", ["clip_layer", "cond_stage_model", "add_patches"])
def test_what_it_has_not_is_said_with_the_nodes_to_use(name):
    clip = DemoClip()
    with pytest.raises(AttributeError, match=f"'{name}'.*LoraLoaderModelOnly"):
        getattr(clip, name)
    assert not hasattr(clip, name)


def test_it_can_be_copied():
    assert torch.equal(copy.copy(DemoClip()).encode_from_tokens(PROMPT), CONTEXT)
