"""TinyVAE: keys, frame alignment, streaming, training on the CPU, and equality with a frame-by-frame evaluation."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from diag_core.vae import TinyVAE, TinyVAEConfig, VideoVAE, WanVAE, vae_from_state_dict

SMALL = TinyVAEConfig(
    patch_size=4,
    encoder_width=8,
    decoder_widths=(16, 12, 8, 8),
    encoder_space=(True, False, False),
    decoder_space=(True, False, False),
)


def make(config: TinyVAEConfig, seed: int = 0) -> TinyVAE:
    torch.manual_seed(seed)
    vae = TinyVAE(config)
    with torch.no_grad():
        for parameter in vae.parameters():
            # Wider than the default, so that every frame's influence is far above rounding.
            parameter.mul_(1.6)
    return vae


def slow_encode(weights: dict[str, Tensor], config: TinyVAEConfig, frames: list[Tensor]) -> list[Tensor]:
    """Frames [B,3,H,W] in 0..1, padded already, one at a time through the published layout."""
    frames = [conv(weights, "encoder.0", F.pixel_unshuffle(frame, config.patch_size)).relu() for frame in frames]
    for stage in range(3):
        start = 2 + 5 * stage
        step = 2 if config.encoder_time[stage] else 1
        groups = [torch.cat(frames[i : i + step], dim=1) for i in range(0, len(frames), step)]
        stride = 2 if config.encoder_space[stage] else 1
        frames = [
            F.conv2d(
                conv(weights, f"encoder.{start}.conv", group),
                weights[f"encoder.{start + 1}.weight"],
                padding=1,
                stride=stride,
            )
            for group in groups
        ]
        frames = slow_memory(weights, [f"encoder.{start + 2 + i}" for i in range(3)], frames)
    return [conv(weights, "encoder.17", frame) for frame in frames]


def slow_decode(weights: dict[str, Tensor], config: TinyVAEConfig, latents: list[Tensor]) -> list[Tensor]:
    """Latents [B,16,h,w] one at a time through the published layout -> every frame in 0..1, the first ones included."""
    frames = [conv(weights, "decoder.1", 3 * torch.tanh(latent / 3)).relu() for latent in latents]
    for stage in range(3):
        start = 3 + 6 * stage
        frames = slow_memory(weights, [f"decoder.{start + i}" for i in range(3)], frames)
        if config.decoder_space[stage]:
            frames = [frame.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3) for frame in frames]
        grown = [conv(weights, f"decoder.{start + 4}.conv", frame) for frame in frames]
        frames = [part for frame in grown for part in frame.chunk(2 if config.decoder_time[stage] else 1, dim=1)]
        frames = [conv(weights, f"decoder.{start + 5}", frame) for frame in frames]
    return [F.pixel_shuffle(conv(weights, "decoder.22", frame.relu()), config.patch_size) for frame in frames]


def slow_memory(weights: dict[str, Tensor], blocks: list[str], frames: list[Tensor]) -> list[Tensor]:
    for block in blocks:
        before, out = torch.zeros_like(frames[0]), []
        for frame in frames:
            x = conv(weights, f"{block}.conv.0", torch.cat([frame, before], dim=1)).relu()
            x = conv(weights, f"{block}.conv.4", conv(weights, f"{block}.conv.2", x).relu())
            out.append((x + frame).relu())
            before = frame
        frames = out
    return frames


def conv(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    weight = weights[f"{name}.weight"]
    return F.conv2d(x, weight, weights.get(f"{name}.bias"), padding=weight.shape[-1] // 2)


def to_frames(video: Tensor) -> list[Tensor]:
    return list(video.unbind(dim=2))


def test_defaults_have_the_keys_and_shapes_of_taew2_1():
    shapes = {key: tuple(tensor.shape) for key, tensor in TinyVAE().state_dict().items()}
    assert len(shapes) == 128
    assert shapes["encoder.0.weight"] == (64, 3, 3, 3)
    assert shapes["encoder.2.conv.weight"] == (64, 128, 1, 1)
    assert shapes["encoder.12.conv.weight"] == (64, 64, 1, 1)
    assert shapes["encoder.14.conv.0.weight"] == (64, 128, 3, 3)
    assert shapes["encoder.17.weight"] == (16, 64, 3, 3)
    assert shapes["decoder.1.weight"] == (256, 16, 3, 3)
    assert shapes["decoder.7.conv.weight"] == (256, 256, 1, 1)
    assert shapes["decoder.13.conv.weight"] == (256, 128, 1, 1)
    assert shapes["decoder.19.conv.weight"] == (128, 64, 1, 1)
    assert shapes["decoder.20.weight"] == (64, 64, 3, 3)
    assert shapes["decoder.22.weight"] == (3, 64, 3, 3)
    assert "encoder.3.bias" not in shapes and "decoder.8.bias" not in shapes


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        TinyVAEConfig(encoder_width=4, decoder_widths=(12, 8, 6, 4)),
        TinyVAEConfig(encoder_width=4, decoder_widths=(8, 8, 4, 4), decoder_time=(False, False, True)),
    ],
    ids=["patches", "taew2_1 layout", "coarse preview"],
)
@torch.no_grad()
def test_equals_the_published_layout_evaluated_frame_by_frame(config):
    vae = make(config)
    weights = vae.state_dict()
    latents = torch.randn(2, 16, 3, 2, 3)
    pixels = torch.rand(2, 3, 9, 16, 24) * 2 - 1

    dropped = 2 ** sum(config.decoder_time) - 1
    expected = torch.stack(slow_decode(weights, config, to_frames(latents))[dropped:], dim=2) * 2 - 1
    decoded = vae.decode(latents)
    assert decoded.shape == expected.shape
    torch.testing.assert_close(decoded, expected, atol=1e-5, rtol=1e-5)

    frames = to_frames(pixels / 2 + 0.5)
    expected = torch.stack(slow_encode(weights, config, [frames[0]] * 3 + frames), dim=2)
    torch.testing.assert_close(vae.encode(pixels), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_lookahead_encodes_as_taehv_does_with_the_last_frame_repeated():
    config = TinyVAEConfig(encoder_width=4, decoder_widths=(4, 4, 4, 4), encoder_lookahead=True)
    vae = make(config)
    pixels = torch.rand(1, 3, 9, 16, 16) * 2 - 1
    frames = to_frames(pixels / 2 + 0.5)
    expected = torch.stack(slow_encode(vae.state_dict(), config, frames + [frames[-1]] * 3), dim=2)
    torch.testing.assert_close(vae.encode(pixels), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="looks ahead"):
        vae.streaming_encoder()


@torch.no_grad()
def test_an_image_is_encoded_alike_with_and_without_lookahead():
    image = torch.rand(1, 3, 1, 16, 16)
    ahead = TinyVAEConfig(encoder_width=4, decoder_widths=(4, 4, 4, 4), encoder_lookahead=True)
    behind = TinyVAEConfig(encoder_width=4, decoder_widths=(4, 4, 4, 4))
    torch.testing.assert_close(make(ahead).encode(image), make(behind).encode(image))


@torch.no_grad()
def test_a_latent_frame_first_touches_the_pixel_frames_it_stands_for():
    vae = make(SMALL)
    latents = torch.randn(1, 16, 4, 2, 2)
    plain = vae.decode(latents)
    assert plain.shape == (1, 3, 13, 16, 16)
    for i in range(4):
        changed = latents.clone()
        changed[:, :, i] += 1
        moved = (vae.decode(changed) - plain).abs().amax(dim=(0, 1, 3, 4))
        begins = max(0, 4 * i - 3)
        assert moved[:begins].eq(0).all()
        assert moved[begins : 4 * i + 1].gt(1e-4).all()


@torch.no_grad()
def test_a_pixel_frame_first_touches_the_latent_frame_that_stands_for_it():
    vae = make(SMALL)
    pixels = torch.rand(1, 3, 13, 16, 16) * 2 - 1
    plain = vae.encode(pixels)
    assert plain.shape == (1, 16, 4, 2, 2)
    for frame in range(13):
        changed = pixels.clone()
        changed[:, :, frame] *= -1
        moved = (vae.encode(changed) - plain).abs().amax(dim=(0, 1, 3, 4))
        own = (frame + 3) // 4
        assert moved[:own].eq(0).all() and moved[own] > 1e-4


@settings(max_examples=12, deadline=None)
@given(pushes=st.lists(st.integers(1, 3), min_size=1, max_size=4), batch=st.integers(1, 2))
@torch.no_grad()
def test_streams_equal_the_whole_for_any_split(pushes, batch):
    vae = make(SMALL)
    latents = torch.randn(batch, 16, sum(pushes), 2, 3)
    pixels = torch.rand(batch, 3, 4 * sum(pushes) - 3, 16, 24) * 2 - 1
    decoder, encoder = vae.streaming_decoder(), vae.streaming_encoder()
    for _ in range(2):  # the second round shows that reset forgets everything
        pieces = [decoder.push(piece) for piece in latents.split(pushes, dim=2)]
        assert [piece.shape[2] for piece in pieces] == [4 * pushes[0] - 3] + [4 * f for f in pushes[1:]]
        torch.testing.assert_close(torch.cat(pieces, dim=2), vae.decode(latents), atol=1e-5, rtol=1e-5)
        sizes = [piece.shape[2] for piece in pieces]
        pieces = [encoder.push(piece) for piece in pixels.split(sizes, dim=2)]
        assert [piece.shape[2] for piece in pieces] == pushes
        torch.testing.assert_close(torch.cat(pieces, dim=2), vae.encode(pixels), atol=1e-5, rtol=1e-5)
        decoder.reset()
        encoder.reset()


@torch.no_grad()
def test_samples_of_a_batch_do_not_mix():
    vae = make(SMALL)
    latents, pixels = torch.randn(3, 16, 3, 2, 2), torch.rand(3, 3, 9, 16, 16)
    for i in range(3):
        torch.testing.assert_close(vae.decode(latents)[i : i + 1], vae.decode(latents[i : i + 1]), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(vae.encode(pixels)[i : i + 1], vae.encode(pixels[i : i + 1]), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_weight_for_more_frames_gives_its_last_ones():
    config = TinyVAEConfig(encoder_width=4, decoder_widths=(8, 8, 8, 4))
    full = make(config)
    weights = full.state_dict()
    preview = TinyVAE(
        TinyVAEConfig(encoder_width=4, decoder_widths=(8, 8, 8, 4), decoder_time=(False, False, False)),
    )
    preview.load_state_dict(weights)
    torch.testing.assert_close(preview.state_dict()["decoder.13.conv.weight"], weights["decoder.13.conv.weight"][8:])
    torch.testing.assert_close(preview.state_dict()["decoder.19.conv.weight"], weights["decoder.19.conv.weight"][8:])
    assert weights["decoder.13.conv.weight"].shape[0] == 16  # the caller's weights are left alone
    assert preview.decode(torch.randn(1, 16, 3, 2, 2)).shape == (1, 3, 3, 16, 16)


def test_trains_under_bf16_autocast_in_channels_last():
    vae = make(SMALL).to(memory_format=torch.channels_last)
    pixels = torch.rand(2, 3, 5, 16, 16) * 2 - 1
    gradients = []
    for enabled in (False, True):
        vae.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            decoded = vae.decode(vae.encode(pixels))
        assert decoded.dtype == torch.float32
        (decoded - pixels).square().mean().backward()
        assert all(parameter.grad is not None for parameter in vae.parameters())
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in vae.parameters()]))
    assert F.cosine_similarity(gradients[0], gradients[1], dim=0) > 0.98


@torch.no_grad()
def test_bf16_weights_take_and_return_float32():
    vae = make(SMALL)
    latents, pixels = torch.randn(1, 16, 2, 2, 2), torch.rand(1, 3, 5, 16, 16)
    decoded, encoded = vae.decode(latents), vae.encode(pixels)
    vae.bfloat16()
    for exact, rough in ((decoded, vae.decode(latents)), (encoded, vae.encode(pixels))):
        assert rough.dtype == torch.float32
        assert (rough - exact).norm() < 0.05 * exact.norm()


@torch.no_grad()
def test_decoded_pixels_are_not_clamped():
    vae = make(SMALL)
    vae.decoder[22].weight.mul_(50)
    assert vae.decode(torch.randn(1, 16, 1, 2, 2)).abs().max() > 1.5


def test_implements_the_shared_interface():
    vae = TinyVAE(SMALL)
    assert isinstance(vae, VideoVAE)
    assert (vae.latent_channels, vae.spatial_stride) == (16, 8)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 5, 16, 16), "4 dimensions"),
        ((1, 4, 5, 16, 16), "3 channels"),
        ((1, 3, 5, 16, 20), "multiples of 8"),
        ((1, 3, 4, 16, 16), "4n \\+ 1"),
        ((1, 3, 0, 16, 16), "empty"),
        ((1, 3, 5, 16, 0), "empty"),
    ],
)
def test_wrong_pixels_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        TinyVAE(SMALL).encode(torch.zeros(shape))


@pytest.mark.parametrize(
    ("shape", "message"),
    [((16, 2, 2, 2), "4 dimensions"), ((1, 2, 16, 2, 2), "16 channels"), ((1, 16, 0, 2, 2), "empty")],
)
def test_wrong_latents_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        TinyVAE(SMALL).decode(torch.zeros(shape))


def test_a_stream_refuses_a_change_of_shape_and_a_broken_continuation():
    vae = TinyVAE(SMALL)
    decoder, encoder = vae.streaming_decoder(), vae.streaming_encoder()
    decoder.push(torch.zeros(1, 16, 1, 2, 2))
    with pytest.raises(ValueError, match="reset"):
        decoder.push(torch.zeros(2, 16, 1, 2, 2))
    decoder.reset()
    decoder.push(torch.zeros(2, 16, 1, 2, 2))
    encoder.push(torch.zeros(1, 3, 1, 16, 16))
    with pytest.raises(ValueError, match="multiples of 4"):
        encoder.push(torch.zeros(1, 3, 5, 16, 16))


def test_a_wrong_config_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        TinyVAEConfig(encoder_width=0)
    with pytest.raises(ValueError, match="four"):
        TinyVAEConfig(decoder_widths=(8, 8, 8))
    with pytest.raises(ValueError, match="encoder_time"):
        TinyVAEConfig(encoder_time=(True, True))


@pytest.mark.parametrize("config", [SMALL, TinyVAEConfig(), TinyVAEConfig(decoder_time=(False, False, True))])
def test_is_recognised_by_its_weights(config):
    vae = TinyVAE(config)
    found = vae_from_state_dict(vae.state_dict())
    # Weights that say nothing of themselves are published ones.
    assert isinstance(found, TinyVAE) and found.config == dataclasses.replace(config, encoder_lookahead=True)
    for key, tensor in vae.state_dict().items():
        assert torch.equal(tensor, found.state_dict()[key])


def test_foreign_and_broken_files_are_refused():
    weights = TinyVAE(SMALL).state_dict()
    foreign = TinyVAE(TinyVAEConfig(latent_channels=48, encoder_width=4, decoder_widths=(4, 4, 4, 4)))
    with pytest.raises(ValueError, match="48 latent channels"):
        vae_from_state_dict(foreign.state_dict())
    with pytest.raises(ValueError, match=r"lacks decoder\.20\.weight"):
        vae_from_state_dict({key: tensor for key, tensor in weights.items() if key != "decoder.20.weight"})
    with pytest.raises(ValueError, match=r"missing encoder\.17\.bias"):
        vae_from_state_dict({key: tensor for key, tensor in weights.items() if key != "encoder.17.bias"})
    with pytest.raises(ValueError, match="takes 4 channels"):
        vae_from_state_dict({**weights, "encoder.0.weight": torch.zeros(8, 4, 3, 3)})
    with pytest.raises(ValueError, match="extra something"):
        vae_from_state_dict({**weights, "something": torch.zeros(1)})


TINY_WEIGHTS = TinyVAE(TinyVAEConfig(encoder_width=4, decoder_widths=(4, 4, 4, 4))).state_dict()


@settings(max_examples=150, deadline=None)
@given(
    key=st.sampled_from(sorted(key for key in TINY_WEIGHTS if "weight" in key)),
    shape=st.lists(st.integers(0, 9), max_size=5),
    dropped=st.sets(st.sampled_from(sorted(TINY_WEIGHTS)), max_size=2),
)
def test_a_misshapen_file_fits_or_raises_a_value_error(key, shape, dropped):
    weights = {**TINY_WEIGHTS, key: torch.zeros(shape)}
    weights = {name: tensor for name, tensor in weights.items() if name not in dropped}
    try:
        found = vae_from_state_dict(weights)
    except ValueError:
        return
    assert {name: tensor.shape for name, tensor in found.state_dict().items()} == {
        name: tensor.shape for name, tensor in weights.items()
    }


@pytest.mark.parametrize("spaces", [(True, False, False), (False, True, False), (False, False, True)])
def test_a_file_says_which_stage_changes_the_size(spaces: tuple[bool, bool, bool]) -> None:
    """The weights alone do not: read as the published layout, such a file would decode to a blur without a word."""
    config = TinyVAEConfig(
        patch_size=4,
        encoder_width=4,
        decoder_widths=(8, 4, 4, 4),
        encoder_space=(True, False, False),
        decoder_space=spaces,
    )
    original = TinyVAE(config).eval()
    metadata = {"kind": "tiny_vae", "config": config.to_json()}
    loaded = vae_from_state_dict(original.state_dict(), metadata=metadata)
    assert isinstance(loaded, TinyVAE) and loaded.config == config
    latents = torch.randn(1, 16, 2, 4, 4)
    with torch.no_grad():
        assert torch.equal(loaded.decode(latents), original.decode(latents))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"latent_channels": 0}', '{"unknown": 1}', "null"])
def test_a_damaged_configuration_is_refused(text: str) -> None:
    weights = TinyVAE(TinyVAEConfig(encoder_width=4)).state_dict()
    with pytest.raises(ValueError, match="this is no TinyVAE configuration"):
        vae_from_state_dict(weights, metadata={"kind": "tiny_vae", "config": text})


def test_decoding_takes_26_times_fewer_operations_than_with_the_wan_vae() -> None:
    """The figure in the nodes' help and the benchmarks' notes: of a chunk at 832x480, counted without computing."""

    def operations(kind: type[TinyVAE] | type[WanVAE]) -> int:
        with torch.device("meta"):
            decoder, latents = kind().streaming_decoder(), torch.empty(1, 16, 3, 60, 104)
            decoder.push(latents)
            with FlopCounterMode(display=False) as counter:
                decoder.push(latents)
        return int(counter.get_total_flops())

    tiny, wan = operations(TinyVAE), operations(WanVAE)
    assert round(wan / tiny) == 26
    assert round(81 / 12 * tiny / 1e12, 1) == 10.7  # of a video, in TFLOP
