"""The two acts of diagonal denoising, shared by sampling and training: denoise a chunk, commit it.

Legend: B batch, C latent channels, f latent frames of a chunk, H and W latent rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from .config import ContextPolicy
from .noise_schedule import add_noise, x0_from_flow

STEPS = ("renoise", "euler")
Predict = Callable[[Tensor, float], Tensor]


def denoise_chunk(
    predict: Predict,
    noise: Tensor,
    sigmas: Sequence[float],
    *,
    step: str = "renoise",
    renoise: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """From noise to a clean estimate x0 over a step list.

    Args:
        predict: (x [B,C,f,H,W], sigma) -> flow.
        noise: [B,C,f,H,W], the chunk at the first sigma.
        sigmas: descending, without the final 0. A shorter list ends early with the estimate of its last step.
        step: "renoise" predicts x0 and adds fresh noise to the next level (distilled models); "euler" follows the flow
            (undistilled ones, whose samples re-noising would wash out).
        renoise: step index -> fresh noise; "euler" takes none.
    """
    x = noise
    for i, sigma in enumerate(sigmas):
        flow = predict(x, sigma)
        if i + 1 == len(sigmas):
            return x0_from_flow(x, flow, sigma)
        if step == "euler":
            x = x + (sigmas[i + 1] - sigma) * flow.to(x.dtype)
        else:
            assert renoise is not None
            x = add_noise(x0_from_flow(x, flow, sigma), renoise(i), sigmas[i + 1])
    raise ValueError("a step list needs at least one step")


def commit_chunk(
    write: Callable[[Tensor, float], object],
    latents: Tensor,
    policy: ContextPolicy,
    last_sigma: float,
    noise: Callable[[], Tensor],
) -> bool:
    """Leaves a finished chunk's keys and values in the cache as `policy` says: by nothing at all, or by one forward.

    Args:
        write: (x, sigma) -> a forward that writes the cache.
        latents: x0 [B,C,f,H,W].
        last_sigma: level of the step whose keys are in the cache now.
        noise: called only when noise is needed.

    Returns:
        whether a forward was needed.
    """
    if policy.reuses(last_sigma):
        return False
    sigma = policy.level(last_sigma)
    write(latents if sigma == 0 else add_noise(latents, noise(), sigma), sigma)
    return True
