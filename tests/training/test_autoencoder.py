from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diag_core.vae.tiny import TinyVAE, TinyVAEConfig
from training.data.paths import MovingDigitsConfig
from training.io import load_tensors, save_tensors
from training.logbook import read_log
from training.metrics import Collapse, HealthLimits
from training.recipes.toy import NO_LIMITS
from training.stages import autoencoder
from training.stages.autoencoder import AutoencoderConfig

TINY = AutoencoderConfig(
    vae=TinyVAEConfig(
        latent_channels=4,
        patch_size=4,
        encoder_width=8,
        encoder_space=(True, False, False),
        decoder_widths=(8, 8, 8, 8),
        decoder_space=(False, True, False),
    ),
    steps=6,
    lengths=(5, 1),
    pixel_frames=10,
    warmup_steps=2,
    save_every=3,
    log_every=2,
    sample_every=3,
    sample_prompts=2,
    limits=NO_LIMITS,
)


@pytest.fixture(autouse=True)
def few_videos(monkeypatch: pytest.MonkeyPatch) -> None:
    statistics = autoencoder.latent_statistics
    monkeypatch.setattr(autoencoder, "latent_statistics", lambda model, config: statistics(model, config, videos=2))
    monkeypatch.setattr(autoencoder, "held_out_psnr", lambda model, data: 12.345)


def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = autoencoder.load_autoencoder(autoencoder.train(TINY, tmp_path / "whole"))
    drawn = autoencoder.training_batch

    def killed(step: int, config: AutoencoderConfig) -> torch.Tensor:
        if step == 4:
            raise KeyboardInterrupt
        return drawn(step, config)

    monkeypatch.setattr(autoencoder, "training_batch", killed)
    with pytest.raises(KeyboardInterrupt):
        autoencoder.train(TINY, tmp_path / "cut")
    monkeypatch.setattr(autoencoder, "training_batch", drawn)
    with pytest.raises(ValueError, match="begun with another recipe: seed was 0, now it is 1"):
        autoencoder.train(replace(TINY, seed=1), tmp_path / "cut")
    resumed = autoencoder.load_autoencoder(autoencoder.train(TINY, tmp_path / "cut"))
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    logs = [read_log(tmp_path / run) for run in ("whole", "cut")]
    assert [entry["step"] for entry in logs[0] if "loss" in entry] == [2, 3, 4, 6] and logs[0] == logs[1]
    assert {"loss", "noisy_psnr", "gradient_norm"} < set(logs[0][0])
    assert [entry["step"] for entry in logs[0] if "sample/psnr" in entry] == [3, 6]
    assert {path.name for path in (tmp_path / "whole" / "samples").glob("*.png")} == {
        "step_000003.png", "step_000006.png"
    }  # fmt: skip


def test_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    config = replace(TINY, lengths=(1,), steps=1000)
    model = TinyVAE(config.vae)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(60):
        loss, _ = autoencoder._losses(model, autoencoder.training_batch(step, config), step, config)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_the_learning_rate_rises_and_falls_as_a_cosine() -> None:
    config = replace(TINY, steps=101, warmup_steps=5)
    rates = [autoencoder._schedule(step, config) for step in range(102)]
    assert rates[0] == pytest.approx(1 / 5) and max(rates) == rates[4] > 0.99
    assert rates[4:] == sorted(rates[4:], reverse=True) and rates[101] == pytest.approx(0.01)
    task = autoencoder.Autoencode(TINY)
    for step in range(2):
        task.update(step)
        assert task.optimizer.adam.param_groups[0]["lr"] == TINY.learning_rate * autoencoder._schedule(step, TINY)


def test_one_that_diverges_ends_with_an_error_and_no_file(tmp_path: Path) -> None:
    config = replace(TINY, learning_rate=1e30, clip=1e30, warmup_steps=1, steps=20)
    with pytest.raises(Collapse, match="loss is nan"):
        autoencoder.train(config, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {"log.jsonl", "tensorboard", "recipe.json"}


def test_one_that_makes_everything_grey_ends_with_an_error_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autoencoder, "reconstruct", lambda model, pixels: torch.zeros_like(pixels))
    with pytest.raises(Collapse, match=r"static: motion is 0\.00 of the input videos'.*; washed out: contrast"):
        autoencoder.train(replace(TINY, limits=HealthLimits(patience=1)), tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


def test_folded_statistics_normalise_and_keep_the_picture() -> None:
    torch.manual_seed(0)
    model = TinyVAE(TINY.vae).eval()
    pixels = autoencoder.training_batch(0, TINY)
    with torch.inference_mode():
        before, latents = model.decode(model.encode(pixels)), model.encode(pixels)
    mean_C, std_C = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))
    autoencoder.fold_statistics(model, mean_C, std_C)
    with torch.inference_mode():
        folded = model.encode(pixels)
        after = model.decode(folded)
    torch.testing.assert_close(
        folded, (latents - mean_C.view(1, -1, 1, 1, 1)) / std_C.view(1, -1, 1, 1, 1), atol=1e-3, rtol=1e-3
    )
    # Untrained latents are far from unit; through the soft clamp the picture still stays close, away from the border.
    assert (after - before)[..., 12:-12, 12:-12].abs().mean() < 0.1 * before.std()


def test_psnr() -> None:
    # An error of 2, the whole range, is 0 dB; a tenth of it is 20 dB.
    assert autoencoder.psnr(4.0) == 0
    assert autoencoder.psnr(0.04) == pytest.approx(20)


def test_files_say_how_to_build_the_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = autoencoder.finish(TinyVAE(TINY.vae), TINY, tmp_path)
    loaded = autoencoder.load_autoencoder(path)
    assert loaded.config == TINY.vae
    assert not loaded.training
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}
    other = save_tensors(tmp_path / "other.safetensors", {"a": torch.zeros(1)})
    with pytest.raises(ValueError, match="not written by the autoencoder stage"):
        autoencoder.load_autoencoder(other)


def test_a_file_says_what_videos_it_is_for(tmp_path: Path) -> None:
    large = MovingDigitsConfig.at(128)
    path = autoencoder.finish(TinyVAE(TINY.vae), replace(TINY, data=large), tmp_path)
    assert autoencoder.data_of(path) == large
    # Those from before it was written down are of 64x64 pixels.
    older = save_tensors(tmp_path / "older.safetensors", load_tensors(path)[0])
    assert autoencoder.data_of(older) == MovingDigitsConfig()


def test_the_recipe_is_small() -> None:
    parameters = sum(p.numel() for p in TinyVAE(AutoencoderConfig().vae).parameters())
    assert parameters < 1_500_000
