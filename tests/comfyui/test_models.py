"""Models of other loaders, LoRA and fp8, on a small random model of Wan 1.3B's layout."""

from __future__ import annotations

import pytest
import torch

WAN = "wan_small.safetensors"


@pytest.fixture
def sample(client, graph, latents):
    """(model) -> latents: `model(graph)` returns the MODEL; everything is run anew."""

    def run(model):
        g = graph()
        sampler = g.sampler(model(g), g.prompt(), g.empty(), preset="diagdistill", schedule_text="")
        saved = g.save(sampler)
        return latents(client.succeed(g.fresh()), saved)

    return run


def ours(g, name=WAN, **inputs):
    return g.add("DiagDistillModelLoader", model_name=name, **inputs)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_unet_loader_and_wrapped_checkpoints_give_the_same(sample):
    plain = sample(ours)
    assert plain.isfinite().all() and plain.std() > 0.1
    assert torch.equal(sample(lambda g: g.add("UNETLoader", unet_name=WAN)), plain)
    assert torch.equal(sample(lambda g: ours(g, "self_forcing_dmd.pt")), plain)


def test_a_model_that_says_nothing_of_its_settings_is_reported_where_they_were_to_be_its_own(client, graph):
    def status(name, preset):
        g = graph()
        sampler = g.sampler(ours(g, name), g.prompt(), g.empty(), preset=preset, schedule_text="")
        g.save(sampler)
        return client.succeed(g.fresh()).outputs[sampler.id]["diagdistill"][0]

    assert "says nothing of its settings" in status(WAN, "from model")
    assert "says nothing" not in status(WAN, "diagdistill")
    assert "says nothing" not in status("self_forcing_dmd.pt", "from model")


def test_a_lora_changes_the_result_and_unloads(sample):
    def with_lora(g, strength=1.0):
        return g.add("LoraLoaderModelOnly", model=ours(g), lora_name="small.safetensors", strength_model=strength)

    plain, changed = sample(ours), sample(with_lora)
    assert difference(changed, plain) > 0.01
    assert torch.equal(sample(ours), plain)
    assert torch.equal(sample(with_lora), changed)
    # Merged while it loads, it does the same.
    merged = sample(lambda g: ours(g, lora_name="small.safetensors", lora_strength=1.0))
    assert difference(merged, changed) < 0.1 * difference(changed, plain)


@pytest.mark.parametrize("dtype", ["fp8_e4m3fn", "fp8_e5m2"])
def test_fp8_weights_run(sample, dtype):
    plain = sample(ours)
    for result in (
        sample(lambda g: ours(g, dtype=dtype)),
        sample(lambda g: g.add("UNETLoader", unet_name=WAN, weight_dtype=dtype)),
    ):
        assert result.isfinite().all()
        assert 0 < difference(result, plain) < 0.1


def test_a_lora_on_fp8_weights_runs(sample):
    def model(g, *, lora):
        loaded = ours(g, dtype="fp8_e4m3fn")
        return g.add("LoraLoaderModelOnly", model=loaded, lora_name="small.safetensors") if lora else loaded

    plain, changed = sample(lambda g: model(g, lora=False)), sample(lambda g: model(g, lora=True))
    assert changed.isfinite().all() and difference(changed, plain) > 0.01
    assert torch.equal(sample(lambda g: model(g, lora=False)), plain)
