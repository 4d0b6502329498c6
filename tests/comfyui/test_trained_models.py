"""What the training exports, in ComfyUI's own loaders: the whole student, and a LoRA on the model it began with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diag_core.checkpoint import load_dit
from diag_core.demo_text import DemoTextEncoder
from diag_core.settings import WAN_NEGATIVE_PROMPT
from training.__main__ import main
from training.wan.embeddings import make_embeddings

BASE, STUDENT, LORA = "wan_small.safetensors", "trained.safetensors", "trained_lora.safetensors"


@pytest.fixture(scope="module")
def trained(server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two iterations of stage 1 with a LoRA, exported both ways into the server's folders."""
    out, models = tmp_path_factory.mktemp("trained"), server.base / "models"
    base = models / "diffusion_models" / BASE
    make_embeddings(
        out / "embeddings", ["a red 3 moves right", "a blue 7"], WAN_NEGATIVE_PROMPT, encoder="demo",
        load=lambda: DemoTextEncoder(512, 4096), text_len=512,
    )  # fmt: skip
    fields = ["steps=2", "batch=1", "generator_every=1", "video.width=32", "video.height=32", "video.latent_frames=6",
              "lora.rank=4", "lora.alpha=8", "learning_rate=0.3", "ema=0", "weights_precision=fp32"]  # fmt: skip
    command = ["stage1", "--generator", base, "--teacher", base, "--embeddings", out / "embeddings", "--out", out]
    assert main([*map(str, command), "--device", "cpu", *fields]) == 0
    result = str(out / "stage1.safetensors")
    assert main(["export", result, "--out", str(models / "diffusion_models" / STUDENT), "--dtype", "fp32"]) == 0
    assert main(["export", result, "--out", str(models / "loras" / LORA), "--lora", "--dtype", "fp32"]) == 0
    return models


@pytest.fixture
def sample(client, graph, latents, trained):
    """(model) -> latents: `model(graph)` returns the MODEL."""

    def run(model, **inputs):
        g = graph()
        saved = g.save(g.sampler(model(g), g.prompt(), g.empty(), **{"schedule_text": "", **inputs}))
        return latents(client.succeed(g.fresh()), saved)

    return run


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_the_student_loads_by_both_loaders_and_the_lora_makes_the_same_of_its_base(sample):
    same = {"preset": "diagdistill"}
    ours = sample(lambda g: g.add("DiagDistillModelLoader", model_name=STUDENT), **same)
    assert ours.isfinite().all() and ours.std() > 0.1
    stock = sample(lambda g: g.add("UNETLoader", unet_name=STUDENT), **same)
    assert torch.equal(stock, ours)
    base = sample(lambda g: g.add("UNETLoader", unet_name=BASE), **same)
    adapted = sample(
        lambda g: g.add("LoraLoaderModelOnly", model=g.add("UNETLoader", unet_name=BASE), lora_name=LORA), **same
    )
    assert difference(ours, base) > 0.01
    assert difference(adapted, ours) < 0.1 * difference(ours, base)


def test_the_file_says_how_it_is_sampled(trained):
    settings = load_dit(trained / "diffusion_models" / STUDENT).settings
    assert settings is not None and (settings.schedule, settings.kv_noise, settings.causal) == ("4", 100.0, True)
