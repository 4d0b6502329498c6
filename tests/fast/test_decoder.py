"""The fast decoder on a CPU: the plain decoder's pictures, also where streams take turns with one graph's memory."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

from diag_core.fast import FastDecoder, accelerated_decoder
from diag_core.fast import decoder as module
from diag_core.vae import TinyVAE, TinyVAEConfig, WanVAE

PIECES = (3, 3, 3, 3, 1, 3)


def vae(kind: str):
    torch.manual_seed(0)
    made = WanVAE(2) if kind == "wan" else TinyVAE(TinyVAEConfig(encoder_width=4, decoder_widths=(8, 8, 4, 4)))
    # In float64: a norm over two channels that are nearly zero makes much of rounding.
    return made.double().eval().requires_grad_(False)


def latents(seed: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 16, sum(PIECES), 4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class RerunGraph:
    """Stands for a CUDA graph: a replay decodes anew, from and into the tensors of its capture."""

    made = 0

    def __init__(self, run):
        self.run = run
        RerunGraph.made += 1

    def replay(self):
        self.run()


@pytest.fixture
def graphs_on_cpu(monkeypatch):
    def capture(self, frames, kept):
        still, buffers = frames.clone(), {layer: tensor.clone() for layer, tensor in kept.items()}
        out = self.decode_eagerly(still, module.StreamState(dict(kept)))
        replay = lambda: out.copy_(module.decode_in_place(self.decode_eagerly, still, buffers))  # noqa: E731
        return module._Captured(RerunGraph(replay), still, buffers, out)

    monkeypatch.setattr(module.PieceGraphs, "_capture", capture)
    monkeypatch.setattr(RerunGraph, "made", 0)


def pushed(stream, video: torch.Tensor) -> list[torch.Tensor]:
    return [stream.push(piece) for piece in video.split(PIECES, dim=2)]


@pytest.mark.parametrize("kind", ["wan", "tiny"])
def test_it_decodes_what_the_vae_decodes(kind):
    plain = vae(kind)
    fast = FastDecoder(copy.deepcopy(plain))
    assert fast.vae.state_dict().keys() == plain.state_dict().keys()
    for layer in fast.vae.decoder.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Conv3d)):
            assert layer.weight.movedim(1, -1).is_contiguous()
    for ours, right in zip(
        pushed(fast.streaming_decoder(), latents(1)), pushed(plain.streaming_decoder(), latents(1)), strict=True
    ):
        torch.testing.assert_close(ours, right, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["wan", "tiny"])
def test_streams_may_take_turns_with_a_graph(kind, graphs_on_cpu):
    plain = vae(kind)
    fast = FastDecoder(copy.deepcopy(plain))
    fast.graphs = True
    right = [pushed(plain.streaming_decoder(), latents(seed)) for seed in (1, 2)]
    streams = [fast.streaming_decoder() for _ in right]
    for number, (first, second) in enumerate(
        zip(latents(1).split(PIECES, 2), latents(2).split(PIECES, 2), strict=True)
    ):
        for which, piece in enumerate((first, second)):
            torch.testing.assert_close(streams[which].push(piece), right[which][number], atol=1e-6, rtol=1e-6)
    assert RerunGraph.made == 2  # of 3 latent frames, and of 1
    streams[0].reset()
    for ours, expected in zip(pushed(streams[0], latents(2)), right[1], strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-6)
    assert RerunGraph.made == 2


def test_layers_that_begin_to_remember_late_are_not_captured_too_early(graphs_on_cpu):
    """A first piece of one latent frame passes the temporal convolutions by."""
    plain = vae("wan")
    fast = FastDecoder(copy.deepcopy(plain))
    fast.graphs = True
    ours, right = fast.streaming_decoder(), plain.streaming_decoder()
    for piece in latents(1).split(1, dim=2):
        torch.testing.assert_close(ours.push(piece), right.push(piece), atol=1e-6, rtol=1e-6)
    assert RerunGraph.made == 1


def test_a_capture_that_fails_is_done_without(monkeypatch, caplog):
    def fail(*arguments):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(module.PieceGraphs, "_capture", fail)
    plain = vae("tiny")
    fast = FastDecoder(copy.deepcopy(plain))
    fast.graphs = True
    for ours, right in zip(
        pushed(fast.streaming_decoder(), latents(1)), pushed(plain.streaming_decoder(), latents(1)), strict=True
    ):
        torch.testing.assert_close(ours, right, atol=1e-6, rtol=1e-6)
    assert "without CUDA graphs: operation not permitted" in caplog.text


def test_graphs_keep_memory_where_it_can_be_spared(monkeypatch):
    there = 24e9
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=there))
    tiny, wan, gpu = vae("tiny"), vae("wan"), torch.device("cuda", 0)
    assert module._worth_graphs(tiny, gpu) and not module._worth_graphs(wan, gpu)
    assert not module._worth_graphs(tiny, torch.device("cpu"))
    there = 8e9
    assert not module._worth_graphs(tiny, gpu)


def test_it_is_taken_where_it_was_made_for():
    plain = vae("tiny")
    assert accelerated_decoder(plain, "off") is plain and accelerated_decoder(plain, "auto") is plain
    assert isinstance(accelerated_decoder(plain, "on"), FastDecoder)
