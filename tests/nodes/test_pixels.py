"""Pictures to pixels and back, and decoding in pieces."""

from __future__ import annotations

import pytest
import torch
from diagdistill_pack.diag_core.vae import TinyVAE, TinyVAEConfig, WanVAE
from diagdistill_pack.nodes.pixels import decode_in_pieces, to_images, to_pixels


def seeded(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def network(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if kind == "wan":
        return WanVAE(8).requires_grad_(False)
    return TinyVAE(TinyVAEConfig(encoder_width=4, decoder_widths=(8, 8, 4, 4))).requires_grad_(False)


def decode(vae, latents, piece_frames, before_piece=lambda: None):
    cpu = torch.device("cpu")
    return decode_in_pieces(
        vae, latents, piece_frames, device=cpu, dtype=torch.float32, output_device=cpu, before_piece=before_piece
    )


@pytest.mark.parametrize("kind", ["wan", "tiny"])
@pytest.mark.parametrize("piece_frames", [1, 2, 3, 64])
def test_pieces_make_the_same_pictures_as_the_whole(kind, piece_frames):
    vae, latents = network(kind), seeded(2, 16, 5, 2, 4)
    whole = to_images(vae.decode(latents))
    assert whole.shape == (2, 17, 16, 32, 3) and whole.std() > 0.01
    torch.testing.assert_close(decode(vae, latents, piece_frames), whole, rtol=0, atol=2e-5)


def test_nothing_is_left_of_the_video_before():
    vae, latents = network("tiny"), seeded(1, 16, 4, 2, 2)
    first = decode(vae, latents, 3)
    decode(vae, latents + 1, 3)
    assert torch.equal(decode(vae, latents, 3), first)


def test_an_interrupt_ends_it_before_the_next_piece():
    class Interrupted(Exception):
        pass

    calls = []

    def before_piece() -> None:
        calls.append(None)
        if len(calls) == 3:
            raise Interrupted

    vae = network("tiny")
    with pytest.raises(Interrupted):
        decode(vae, seeded(1, 16, 8, 2, 2), 2, before_piece)
    assert len(calls) == 3


def test_the_network_sees_one_piece_at_a_time_and_the_pictures_are_float32():
    vae, seen = network("tiny").to(torch.bfloat16), []

    class Spy:
        def streaming_decoder(self):
            stream = vae.streaming_decoder()
            push = stream.push

            def watched(piece):
                seen.append((piece.shape[2], piece.dtype))
                return push(piece)

            stream.push = watched
            return stream

    cpu = torch.device("cpu")
    images = decode_in_pieces(Spy(), seeded(1, 16, 7, 2, 2), 3, device=cpu, dtype=torch.bfloat16, output_device=cpu)
    assert seen == [(3, torch.bfloat16), (3, torch.bfloat16), (1, torch.bfloat16)]
    assert images.dtype == torch.float32 and images.shape == (1, 25, 16, 16, 3)


def test_pictures_and_pixels_are_each_others_inverse():
    images = torch.rand(5, 16, 24, 3)
    pixels = to_pixels(images, 8)
    assert pixels.shape == (1, 3, 5, 16, 24) and pixels.min() < 0
    torch.testing.assert_close(to_images(pixels)[0], images)


def test_pixels_beyond_the_range_are_clamped():
    assert to_images(torch.tensor([-1.5, 1.5]).expand(1, 3, 1, 1, 2)).flatten().tolist() == [0, 0, 0, 1, 1, 1]


def test_what_does_not_fit_is_cut_at_the_end_and_at_both_rims():
    images = torch.rand(2, 12, 21, 19, 4)  # with an alpha channel
    pixels = to_pixels(images, 8)
    assert pixels.shape == (2, 3, 9, 16, 16)
    torch.testing.assert_close(to_images(pixels), images[:, :9, 2:18, 1:17, :3])


def test_a_single_picture_is_a_video_of_one():
    assert to_pixels(torch.rand(1, 16, 16, 3), 8).shape == (1, 3, 1, 16, 16)
