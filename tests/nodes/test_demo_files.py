"""The embedded checkpoint is where the loaders look for it."""

from __future__ import annotations

from diagdistill_pack.diag_core.checkpoint import read_settings
from diagdistill_pack.diag_core.demo_text import DemoTextEncoder
from diagdistill_pack.diag_core.vae import TinyVAE, vae_from_state_dict
from diagdistill_pack.diag_core.weights import open_weights
from diagdistill_pack.nodes.demo_files import dit_path, vae_path


def test_the_models_settings_name_the_demos_text_encoder():
    settings = read_settings(dit_path())
    assert settings is not None and settings.causal and settings.text_encoder == "demo-clauses"
    assert settings.schedule == "4322222" and settings.cfg == 1 and settings.step == "renoise"


def test_the_models_text_is_as_wide_as_the_encoders():
    width = open_weights(dit_path()).specs["text_embedding.0.weight"].shape[1]
    assert width == DemoTextEncoder().text_dim


def test_its_autoencoder_makes_the_models_latents():
    weights = open_weights(vae_path())
    vae = vae_from_state_dict({name: weights.read(name) for name in weights.specs}, metadata=weights.metadata)
    assert isinstance(vae, TinyVAE) and vae.latent_channels == 16 and vae.spatial_stride == 8
    assert not vae.config.encoder_lookahead
