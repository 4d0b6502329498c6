"""Parity with the public reference models, from tensors recorded of them."""

from __future__ import annotations

import pytest
import torch
from goldens_reader import RecordedNoise, read

from diag_core import CacheConfig, ContextPolicy, DiagonalSchedule, generate

TOLERANCE = 1e-4


def test_the_bidirectional_forward_matches():
    model, tensors, _ = read("dit_bidirectional")
    with torch.no_grad():
        flow = model(tensors["latents"], tensors["timestep"], tensors["context"])
    assert (flow - tensors["flow"]).abs().max() < TOLERANCE


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("rollout_clean_global", ContextPolicy.clean()),
        ("rollout_last_step", ContextPolicy.last_step()),
        ("rollout_noised", ContextPolicy.noised(0.1)),
    ],
)
def test_rollouts_match(name, policy):
    model, tensors, case = read(name)
    schedule = DiagonalSchedule.parse(case["schedule"], shift=case["shift"])
    window = None if case["window_frames"] < 0 else case["window_frames"]
    forwards = []
    latents = generate(
        model,
        tensors["context"],
        schedule,
        noise=RecordedNoise(tensors),
        num_latent_frames=case["frames"],
        height=tensors["noise"].shape[3],
        width=tensors["noise"].shape[4],
        cache=CacheConfig(window_frames=window, sink_frames=case["sink_frames"]),
        policy=policy,
        chunk_frames=case["chunk_frames"],
        on_forward=forwards.append,
    )
    assert (latents - tensors["latents"]).abs().max() < TOLERANCE
    assert len(forwards) == case["forward_passes"]
