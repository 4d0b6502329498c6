"""WanVAE against the reference tensors; streaming against the whole; what each frame can see."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensorMode

from diag_core.vae import TinyVAE, VideoVAE, WanVAE, vae_from_state_dict

GOLDEN = Path(__file__).parents[1] / "goldens" / "wan_vae.safetensors"


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN)


def golden_vae(golden) -> WanVAE:
    vae = WanVAE(dim=8)
    vae.load_state_dict({key.removeprefix("model."): tensor for key, tensor in golden.items() if "model." in key})
    return vae


@pytest.fixture(scope="module")
def small() -> WanVAE:
    torch.manual_seed(0)
    return WanVAE(dim=8)  # a norm over fewer channels amplifies rounding


@torch.no_grad()
def test_matches_the_reference(golden):
    vae = golden_vae(golden)
    decoded = vae.decode(golden["latents"])
    assert decoded.shape == golden["decoded_unclamped"].shape
    assert (decoded - golden["decoded_unclamped"]).abs().max() < 1e-4
    assert golden["decoded_unclamped"].abs().max() > 1  # so a clamp would show
    encoded = vae.encode(golden["pixels"])
    assert encoded.shape == golden["encoded_normalised"].shape
    assert (encoded - golden["encoded_normalised"]).abs().max() < 1e-4


@pytest.mark.parametrize("pushes", [[1] * 6, [3, 3], [2, 1, 3], [6], [1, 5]], ids=str)
@torch.no_grad()
def test_streams_match_the_reference(golden, pushes):
    vae = golden_vae(golden)
    decoder, encoder = vae.streaming_decoder(), vae.streaming_encoder()
    decoded = [decoder.push(piece) for piece in golden["latents"].split(pushes, dim=2)]
    frames = [piece.shape[2] for piece in decoded]
    assert frames == [4 * pushes[0] - 3] + [4 * f for f in pushes[1:]]
    assert (torch.cat(decoded, dim=2) - golden["decoded_unclamped"]).abs().max() < 1e-4
    encoded = [encoder.push(piece) for piece in golden["pixels"].split(frames, dim=2)]
    assert [piece.shape[2] for piece in encoded] == pushes
    assert (torch.cat(encoded, dim=2) - golden["encoded_normalised"]).abs().max() < 1e-4


@settings(max_examples=10, deadline=None)
@given(pushes=st.lists(st.integers(1, 4), min_size=1, max_size=4), batch=st.integers(1, 2))
@torch.no_grad()
def test_streams_equal_the_whole_for_any_split(small, pushes, batch):
    latents = torch.randn(batch, 16, sum(pushes), 1, 2)
    pixels = torch.rand(batch, 3, 4 * sum(pushes) - 3, 8, 16) * 2 - 1
    decoder, encoder = small.streaming_decoder(), small.streaming_encoder()
    for _ in range(2):  # the second round shows that reset forgets everything
        decoded = [decoder.push(piece) for piece in latents.split(pushes, dim=2)]
        torch.testing.assert_close(torch.cat(decoded, dim=2), small.decode(latents), atol=1e-5, rtol=1e-5)
        encoded = [encoder.push(piece) for piece in pixels.split([piece.shape[2] for piece in decoded], dim=2)]
        torch.testing.assert_close(torch.cat(encoded, dim=2), small.encode(pixels), atol=1e-5, rtol=1e-5)
        decoder.reset()
        encoder.reset()


@torch.no_grad()
def test_a_push_that_does_not_fit_goes_one_latent_frame_at_a_time(golden, monkeypatch):
    vae = golden_vae(golden)
    pieces = []
    vae.conv2.register_forward_pre_hook(lambda _, x: pieces.append(x[0].shape[2]))
    of_one = 6 * 8 * 4 * golden["decoded_unclamped"][:, 0, :4].numel()  # eight channels, in float32
    for free, expected in ((3 * of_one, [3, 3]), (3 * of_one - 1, [1] * 6)):
        monkeypatch.setattr("diag_core.vae.wan._free_bytes", lambda device, free=free: free)
        pieces.clear()
        stream = vae.streaming_decoder()
        decoded = torch.cat([stream.push(piece) for piece in golden["latents"].split(3, dim=2)], dim=2)
        assert pieces == expected
        assert (decoded - golden["decoded_unclamped"]).abs().max() < 1e-4
    with pytest.raises(ValueError, match="latents must be"):
        vae.streaming_decoder().push(golden["latents"][0])


@torch.no_grad()
def test_convolutions_over_time_are_given_what_cudnn_takes(golden, monkeypatch):
    from diag_core.vae import wan_layers

    with FakeTensorMode():  # tensors of a GPU, without one
        for dtype, device, channels_last in (("bfloat16", "cuda", 1), ("float32", "cuda", 0), ("bfloat16", "cpu", 0)):
            x = wan_layers._laid_out(torch.empty(1, 8, 3, 4, 5, dtype=getattr(torch, dtype), device=device))
            assert x.is_contiguous(memory_format=torch.channels_last_3d) == bool(channels_last)

    layouts = []
    monkeypatch.setattr(wan_layers, "_laid_out", lambda x: x.contiguous(memory_format=torch.channels_last_3d))
    vae = golden_vae(golden)
    for layer in vae.modules():
        if isinstance(layer, torch.nn.Conv3d) and layer.kernel_size != (1, 1, 1):
            layer._conv_forward = lambda x, *weights, run=layer._conv_forward: (
                layouts.append(x.is_contiguous(memory_format=torch.channels_last_3d)) or run(x, *weights)
            )
    assert (vae.decode(golden["latents"]) - golden["decoded_unclamped"]).abs().max() < 1e-4
    assert (vae.encode(golden["pixels"]) - golden["encoded_normalised"]).abs().max() < 1e-4
    stream = vae.streaming_encoder()
    stream.push(golden["pixels"][:, :, :9])
    assert all(layouts) and len(layouts) > 6 * 50


@torch.no_grad()
def test_the_state_of_a_stream_does_not_grow(small):
    decoder, encoder = small.streaming_decoder(), small.streaming_encoder()
    sizes = []
    for push in range(6):
        decoder.push(torch.randn(1, 16, 3, 1, 1))
        encoder.push(torch.randn(1, 3, 9 if push == 0 else 12, 8, 8))
        sizes.append((decoder.state.numel(), encoder.state.numel()))
    assert len(set(sizes)) == 1
    # Nor does it hold on to the frames it was cut from.
    for stream in (decoder, encoder):
        for kept in stream.state.kept.values():
            assert kept.untyped_storage().nbytes() == kept.numel() * kept.element_size()


@torch.no_grad()
def test_frames_see_the_past_and_themselves_only(small):
    latents = torch.randn(1, 16, 4, 1, 1)
    pixels = torch.rand(1, 3, 13, 8, 8) * 2 - 1
    decoded, encoded = small.decode(latents), small.encode(pixels)
    for i in range(4):
        changed = latents.clone()
        changed[:, :, i] += 3
        moved = (small.decode(changed) - decoded).abs().amax(dim=(0, 1, 3, 4))
        begins = max(0, 4 * i - 3)
        assert moved[:begins].eq(0).all() and moved[begins : 4 * i + 1].gt(1e-6).all()
    for frame in range(13):
        changed = pixels.clone()
        changed[:, :, frame] *= -1
        moved = (small.encode(changed) - encoded).abs().amax(dim=(0, 1, 3, 4))
        own = (frame + 3) // 4
        assert moved[:own].eq(0).all() and moved[own] > 1e-6


@torch.no_grad()
def test_samples_of_a_batch_do_not_mix(small):
    latents, pixels = torch.randn(3, 16, 2, 1, 2), torch.rand(3, 3, 5, 8, 16)
    for i in range(3):
        own = slice(i, i + 1)
        torch.testing.assert_close(small.decode(latents)[own], small.decode(latents[own]), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(small.encode(pixels)[own], small.encode(pixels[own]), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_bf16_weights_take_and_return_float32(golden):
    vae = golden_vae(golden).bfloat16()
    for rough, exact in (
        (vae.decode(golden["latents"]), golden["decoded_unclamped"]),
        (vae.encode(golden["pixels"]), golden["encoded_normalised"]),
    ):
        assert rough.dtype == torch.float32
        assert (rough - exact).norm() < 0.04 * exact.norm()
    assert vae.decode(golden["latents"][:, :, :1].bfloat16()).dtype == torch.bfloat16


def test_gradients_reach_latents_pixels_and_every_weight(small):
    latents = torch.randn(1, 16, 2, 1, 1, requires_grad=True)
    pixels = torch.rand(1, 3, 5, 8, 8, requires_grad=True)
    small.zero_grad()
    (small.decode(latents).square().sum() + small.encode(pixels).square().sum()).backward()
    assert latents.grad.abs().amax(dim=(0, 1, 3, 4)).gt(0).all()
    assert pixels.grad.abs().amax(dim=(0, 1, 3, 4)).gt(0).all()
    assert all(parameter.grad is not None for parameter in small.parameters())
    small.zero_grad()


def test_statistics_made_in_inference_mode_do_not_stop_later_gradients(small):
    from diag_core.vae.wan import latent_statistics

    latent_statistics.cache_clear()
    with torch.inference_mode():
        small.decode(torch.randn(1, 16, 1, 1, 1))
    latents = torch.randn(1, 16, 1, 1, 1, requires_grad=True)
    small.decode(latents).sum().backward()
    assert latents.grad is not None


def test_the_published_size():
    with torch.device("meta"):
        vae = WanVAE()
    assert sum(parameter.numel() for parameter in vae.parameters()) == 126_892_531
    assert vae.state_dict()["decoder.head.2.weight"].shape == (3, 96, 3, 3, 3)


def test_implements_the_shared_interface(small):
    assert isinstance(small, VideoVAE)
    assert (small.latent_channels, small.spatial_stride) == (16, 8)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 5, 16, 16), "4 dimensions"),
        ((1, 5, 3, 16, 16), "3 channels"),
        ((1, 3, 5, 12, 16), "multiples of 8"),
        ((1, 3, 80, 16, 16), "4n \\+ 1"),
        ((0, 3, 5, 16, 16), "empty"),
    ],
)
def test_wrong_pixels_are_refused(small, shape, message):
    with pytest.raises(ValueError, match=message):
        small.encode(torch.zeros(shape))
    with pytest.raises(ValueError, match=message):
        small.streaming_encoder().push(torch.zeros(shape))


@pytest.mark.parametrize(
    ("shape", "message"),
    [((16, 2, 2, 2), "4 dimensions"), ((1, 2, 16, 2, 2), "16 channels"), ((1, 16, 0, 2, 2), "empty")],
)
def test_wrong_latents_are_refused(small, shape, message):
    with pytest.raises(ValueError, match=message):
        small.decode(torch.zeros(shape))
    with pytest.raises(ValueError, match=message):
        small.streaming_decoder().push(torch.zeros(shape))


def test_a_stream_refuses_a_change_of_shape_and_a_broken_continuation(small):
    decoder, encoder = small.streaming_decoder(), small.streaming_encoder()
    decoder.push(torch.zeros(1, 16, 1, 1, 1))
    with pytest.raises(ValueError, match="reset"):
        decoder.push(torch.zeros(1, 16, 1, 1, 2))
    encoder.push(torch.zeros(1, 3, 1, 8, 8))
    with pytest.raises(ValueError, match="multiples of 4"):
        encoder.push(torch.zeros(1, 3, 1, 8, 8))


def test_a_wrong_width_is_refused():
    with pytest.raises(ValueError, match="base width"):
        WanVAE(dim=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_recognised_by_its_weights(small, dtype):
    weights = {key: tensor.to(dtype) for key, tensor in small.state_dict().items()}
    found = vae_from_state_dict(weights)
    assert isinstance(found, WanVAE) and not isinstance(found, TinyVAE)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in found.state_dict().items())
    assert found.state_dict()["conv1.weight"].dtype == dtype
    latents = torch.randn(1, 16, 2, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(found.decode(latents), small.decode(latents), atol=0.05, rtol=0.05)


def test_unknown_and_broken_files_are_refused(small):
    weights = small.state_dict()
    with pytest.raises(ValueError, match="no keys at all"):
        vae_from_state_dict({})
    with pytest.raises(ValueError, match=r"begin with: blocks\.0"):
        vae_from_state_dict({"blocks.0.modulation": torch.zeros(1, 6, 4)})
    with pytest.raises(ValueError, match=r"missing conv2\.bias"):
        vae_from_state_dict({key: tensor for key, tensor in weights.items() if key != "conv2.bias"})
    with pytest.raises(ValueError, match=r"conv2\.weight is \(48, 48, 1, 1, 1\), not \(16, 16, 1, 1, 1\)"):
        vae_from_state_dict({**weights, "conv2.weight": torch.zeros(48, 48, 1, 1, 1)})
    with pytest.raises(ValueError, match=r"has shape \(\)"):
        vae_from_state_dict({**weights, "encoder.conv1.weight": torch.zeros(())})
    with pytest.raises(ValueError, match="and 4 more"):
        vae_from_state_dict({**weights, **{f"extra{i}": torch.zeros(1) for i in range(14)}})
