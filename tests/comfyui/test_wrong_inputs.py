"""Wrong inputs: a message at the node that says what to change, and the server goes on."""

from __future__ import annotations

import pytest
from comfy_client import Refused


@pytest.fixture
def complaint(client, graph):
    """(build) -> what ComfyUI says at the node that `build(graph)` returns; a right prompt then still runs."""

    def run(build):
        g = graph()
        node = build(g)
        try:
            over = client.run(g)
        except Refused as refused:
            assert set(refused.messages) == {node.id}, refused.messages
            message = refused.messages[node.id]
        else:
            assert over.outcome == "error"
            assert over.error["node_id"] == node.id, over.message
            message = over.message
        right = graph()
        right.sampled(latent_frames=3)
        client.succeed(right)
        return message

    return run


def sampled(g, model=None, positive=None, latent=None, **inputs):
    """A sampler that a SaveLatent asks for, with what is wrong put in."""
    node = g.sampler(model or g.demo_model(), positive or g.prompt(), latent or g.empty(), **inputs)
    g.save(node)
    return node


def shown_schedule(g, **inputs):
    node = g.add("DiagDistillSchedule", **inputs)
    g.add("PreviewImage", images=node[2])
    return node


@pytest.mark.parametrize("steps", ["", "4,,2", "abc", "100,1000", "0", "1000,2000", "(3 2"])
def test_a_bad_step_list(complaint, steps):
    message = complaint(lambda g: shown_schedule(g, preset="custom", steps=steps))
    assert "steps" in message and len(message) > 40
    if steps:
        assert len(complaint(lambda g: sampled(g, schedule_text=steps))) > 40


def test_a_bad_cycle_names_its_field(complaint):
    assert "cycle" in complaint(lambda g: shown_schedule(g, preset="custom", steps="4", cycle="x"))


def test_a_latent_of_4_channels(complaint):
    message = complaint(lambda g: sampled(g, latent=g.add("EmptyLatentImage", width=64, height=64, batch_size=1)))
    assert "16" in message and "Empty Diagonal Latent" in message


def test_a_latent_of_4_channels_in_the_decoder(complaint):
    def build(g):
        latent = g.add("EmptyLatentImage", width=64, height=64, batch_size=1)
        node = g.add("DiagDistillStreamingDecode", samples=latent, vae=g.add("DiagDistillTinyVAELoader"))
        g.add("PreviewImage", images=node)
        return node

    assert "Empty Diagonal Latent" in complaint(build)


@pytest.mark.parametrize("text", ["", "  \n", "0s:", "0s: a red 3\n0s: a blue 7", "2s: a red 3"])
def test_an_empty_or_broken_timeline(complaint, text):
    def build(g):
        node = g.add("DiagDistillPromptTimeline", clip=g.prompt()[1], text=text)
        sampled(g, positive=node)
        return node

    assert "text" in complaint(build)


@pytest.mark.parametrize("joined", [False, True])
def test_a_timeline_of_two_prompts_whose_text_another_node_changed(complaint, joined):
    def build(g):
        clip = g.prompt()[1]
        timeline = g.add("DiagDistillPromptTimeline", clip=clip, text="0s: a red 3\n1c: a blue 7")
        changed = g.add("ConditioningZeroOut", conditioning=timeline)
        if not joined:
            return sampled(g, positive=changed)
        node = g.add("DiagDistillTimelineJoin", before=changed, after=g.prompt(), at="2c")
        sampled(g, positive=node)
        return node

    assert "Prompt Timeline Join" in complaint(build)


def test_a_length_of_nothing(complaint):
    def build(g):
        node = g.empty(6, length=0.0)
        sampled(g, latent=node)
        return node

    assert "length" in complaint(build)


OUTSIDE = ("nothing.safetensors", "../../../../etc/passwd", "/etc/passwd", "..\\..\\secret.safetensors")


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("field", ["model_name", "lora_name"])
def test_a_missing_model_and_a_path_outside_the_folders(complaint, field, name):
    def build(g):
        node = g.add("DiagDistillModelLoader", **{field: name})
        sampled(g, model=node)
        return node

    message = complaint(build)
    assert field in message and name in message and "no file" in message


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_missing_vae_and_a_path_outside_the_folders(complaint, name):
    message = complaint(lambda g: decoded(g, name))
    assert "vae_name" in message and name in message and "no file" in message


def decoded(g, vae_name):
    """The node that loads the VAE."""
    node = g.add("DiagDistillTinyVAELoader", vae_name=vae_name)
    g.add("PreviewImage", images=g.add("DiagDistillStreamingDecode", samples=g.empty(), vae=node))
    return node


@pytest.mark.parametrize(
    ("name", "said"),
    [("wan_i2v.safetensors", "image"), ("page.safetensors", "page.safetensors"), ("nested/lora.safetensors", "LoRA")],
)
def test_a_wrong_kind_of_model(complaint, name, said):
    def build(g):
        node = g.add("DiagDistillModelLoader", model_name=name)
        sampled(g, model=node, preset="diagdistill", schedule_text="")
        return node

    assert said in complaint(build)


def test_a_wrong_kind_of_model_from_another_loader(complaint):
    message = complaint(
        lambda g: sampled(
            g, model=g.add("UNETLoader", unet_name="wan_i2v.safetensors"), preset="diagdistill", schedule_text=""
        )
    )
    assert "image" in message


def test_guidance_without_a_negative(complaint):
    message = complaint(lambda g: sampled(g, cfg=3.0))
    assert "negative" in message and "cfg" in message


def test_extending_what_was_not_sampled_here(complaint):
    def build(g):
        node = g.add("DiagDistillExtend", latent=g.empty(), length=1.0, unit="chunks")
        sampled(g, latent=node)
        return node

    assert "Start Image Latent" in complaint(build)


@pytest.mark.parametrize("name", ["vae_among_models.safetensors", "ltxv.safetensors"])
def test_a_file_that_is_no_wan_model(complaint, name):
    def build(g):
        node = g.add("DiagDistillModelLoader", model_name=name)
        sampled(g, model=node)
        return node

    message = complaint(build)
    assert name in message and "Wan" in message and "Traceback" not in message


def test_a_model_of_another_family(complaint):
    message = complaint(lambda g: sampled(g, model=g.add("UNETLoader", unet_name="ltxv.safetensors")))
    assert "LTXV" in message and "Load a Wan model" in message


@pytest.mark.parametrize(
    ("name", "said"), [("model_among_vaes.safetensors", "VAE"), ("full_vae.safetensors", "Load VAE")]
)
def test_a_file_that_is_no_tiny_vae(complaint, name, said):
    message = complaint(lambda g: decoded(g, name))
    assert name in message and said in message


def test_streaming_decode_with_another_kind_of_vae(complaint):
    def build(g):
        vae = g.add("VAELoader", vae_name="pixel_space")
        node = g.add("DiagDistillStreamingDecode", samples=g.empty(), vae=vae)
        g.add("PreviewImage", images=node)
        return node

    message = complaint(build)
    assert "Streaming Decode takes" in message or "Tiny VAE Loader" in message


def test_a_join_at_the_beginning_and_at_no_time(complaint):
    def build(g, at):
        node = g.add("DiagDistillTimelineJoin", before=g.prompt(), after=g.prompt(""), at=at)
        sampled(g, positive=node)
        return node

    for at in ("0s", "soon", ""):
        assert "at:" in complaint(lambda g, at=at: build(g, at))


def test_an_unknown_choice(complaint):
    message = complaint(lambda g: sampled(g, preset="best"))
    assert "preset" in message and "diagdistill" in message
