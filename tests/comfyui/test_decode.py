"""Streaming Decode gives the pictures that ComfyUI's VAE Decode gives, whatever the size of its pieces."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import torch
from graphs import DEMO
from PIL import Image
from safetensors.torch import load_file

FRAMES = 7  # latent frames: two chunks and a part of one


def tiny(name):
    return lambda g: g.add("DiagDistillTinyVAELoader", vae_name=name)


def full(g):
    return g.add("VAELoader", vae_name="wan_2.1_vae.safetensors")


@pytest.fixture
def decoded(client, graph):
    """(vae, decoders) -> for each decoder the pictures [T,H,W,3] of the same sampled latent."""

    def run(vae, decoders):
        g = graph()
        latent, loaded = g.sampler(g.demo_model(), g.prompt(), g.empty(FRAMES)), vae(g)
        shown = [g.add("PreviewImage", images=decode(g, latent, loaded)) for decode in decoders]
        done = client.succeed(g)
        return [np.stack([pixels(client.view(file)) for file in done.outputs[node.id]["images"]]) for node in shown]

    return run


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(png)).convert("RGB"), dtype=np.int16)


def streaming(chunk_frames):
    return lambda g, latent, vae: g.add(
        "DiagDistillStreamingDecode", samples=latent, vae=vae, chunk_frames=chunk_frames
    )


def whole(g, latent, vae):
    return g.add("VAEDecode", samples=latent, vae=vae)


def tiled(g, latent, vae):
    return g.add("VAEDecodeTiled", samples=latent, vae=vae)


@pytest.mark.parametrize("name", [DEMO, "taew2_1.pth"])
def test_a_tiny_vae_decodes_the_same_in_every_node(decoded, name):
    reference, *others = decoded(tiny(name), [whole, tiled, streaming(1), streaming(3), streaming(64)])
    assert reference.shape == (1 + 4 * (FRAMES - 1), 64, 64, 3) and reference.std() > 1
    for pictures in others:  # one level of 8 bits, for sums in another order
        assert pictures.shape == reference.shape and np.abs(pictures - reference).max() <= 1


def test_the_full_vae_decodes_the_same_piece_by_piece(decoded):
    reference, *others = decoded(full, [whole, streaming(1), streaming(3)])
    assert reference.shape == (1 + 4 * (FRAMES - 1), 64, 64, 3) and reference.std() > 1
    for pictures in others:
        assert pictures.shape == reference.shape and np.abs(pictures - reference).max() <= 1


def test_samples_of_a_batch_follow_each_other(client, graph):
    def run(count, seed):
        g = graph()
        latent = g.sampler(g.demo_model(), g.prompt(), g.empty(3, batch_size=count), seed=seed)
        shown = g.add("PreviewImage", images=streaming(3)(g, latent, tiny(DEMO)(g)))
        return np.stack([pixels(client.view(file)) for file in client.succeed(g).outputs[shown.id]["images"]])

    both, second = run(2, 1), run(1, 2)
    assert len(both) == 2 * len(second) == 18
    assert np.abs(both[9:] - second).max() <= 1


def test_a_tiny_vae_is_saved_as_it_was_read(client, graph, server):
    g = graph()
    g.add("VAESave", vae=g.add("DiagDistillTinyVAELoader", vae_name="taew2_1.pth"), filename_prefix="vae/tiny")
    client.succeed(g)
    (file,) = (server.base / "output" / "vae").glob("tiny_*.safetensors")
    saved = load_file(file)
    read = torch.load(server.base / "models" / "vae_approx" / "taew2_1.pth", weights_only=True)
    assert {name: tensor.shape for name, tensor in saved.items() if name.startswith("decoder")} == {
        name: tensor.shape for name, tensor in read.items() if name.startswith("decoder")
    }
    assert all(torch.equal(saved[name], read[name]) for name in saved.keys() & read.keys())
