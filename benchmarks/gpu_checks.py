"""What of the fast path only a GPU can show to be right: kernels as compiled, graphs against eager runs, streams.

    python -m benchmarks.gpu_checks [--device cuda] [--out FILE]

Each check gives the figure it judges by. Those that need a GPU, or a newer one, are left out and said to be.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diag_core import (
    CacheConfig,
    ContextPolicy,
    DiagonalSchedule,
    SeededNoise,
    SwitchPolicy,
    Timeline,
    WanConfig,
    WanDiT,
    generate,
    stream_chunks,
)
from diag_core.bench.meter import choose_device, describe_machine
from diag_core.fast import FastDecoder, FastDiT, torch_ops
from diag_core.fast.decoder import NormSilu
from diag_core.fast.fp8 import Fp8Linear, fp8_missing
from diag_core.pictures import to_uint8
from diag_core.pipeline import VideoPipeline
from diag_core.vae import TinyVAE, TinyVAEConfig, WanVAE

CHECKS: dict[str, tuple[Callable[[torch.device], float], float, bool]] = {}
"""name -> (what gives a figure, the largest one that passes, whether it takes a GPU)"""


def check(limit: float, *, gpu: bool) -> Callable[[Callable[[torch.device], float]], Callable[[torch.device], float]]:
    def add(function: Callable[[torch.device], float]) -> Callable[[torch.device], float]:
        CHECKS[function.__name__] = function, limit, gpu
        return function

    return add


class LeftOut(Exception):
    """A check that this card cannot be given; says why."""


def off(ours: Tensor, right: Tensor) -> float:
    """Relative root mean square."""
    return float((ours.double() - right.double()).norm() / right.double().norm())


def model(device: torch.device, dtype: torch.dtype = torch.float32, dim: int = 256, layers: int = 3) -> WanDiT:
    """Random weights that leave their mark on a video; heads as wide as Wan's."""
    torch.manual_seed(0)
    made = WanDiT(
        WanConfig(dim=dim, ffn_dim=2 * dim, num_heads=dim // 128, num_layers=layers, text_dim=64, text_len=16)
    )
    for parameter in made.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(2.0)
    return made.to(device, dtype).requires_grad_(False).eval()


def prompt(device: torch.device, seed: int = 0, batch: int = 1) -> Tensor:
    return torch.randn(batch, 16, 64, generator=torch.Generator().manual_seed(seed)).to(device)


def video(dit: Any, *, seed: int = 5, size: int = 16, context: Any = None, **options: Any) -> Tensor:
    settings = {"num_latent_frames": 24, "height": size, "width": size, "cache": CacheConfig(9, 3), **options}
    context = prompt(dit.device) if context is None else context
    return generate(dit, context, DiagonalSchedule.parse("3212222"), noise=SeededNoise(seed), **settings)


def cases(device: torch.device) -> dict[str, dict[str, Any]]:
    switch = Timeline([(0, prompt(device)), (9, prompt(device, 1))])
    given = torch.randn(1, 16, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    return {
        "last-step commits": {},
        "noised commits": {"policy": ContextPolicy.noised(0.1)},
        "clean commits, no window": {"policy": ContextPolicy.clean(), "cache": CacheConfig(None, 0)},
        "relative positions": {"cache": CacheConfig(9, 3, "relative")},
        "no sink": {"cache": CacheConfig(6, 0)},
        "a sink that is no whole chunk": {"cache": CacheConfig(8, 2)},
        "two at once with guidance": {
            "context": prompt(device, batch=2), "negative": prompt(device, 9, 2), "cfg": 3.0,
        },
        "a prompt switch": {"context": switch, "switch": SwitchPolicy("chunks")},
        "a joint recomputation": {"context": switch, "switch": SwitchPolicy("joint")},
        "given frames": {"initial_latents": given.to(device)},
        "euler": {"step": "euler"},
    }  # fmt: skip


# -- kernels ----------------------------------------------------------------------------------------------------------


@check(1e-2, gpu=True)
def kernels_equal_pytorch(device: torch.device) -> float:
    """Every fused operation but that of FP8, in bfloat16 at the widths of both models, the worst of all."""
    from diag_core.fast import kernels

    worst = 0.0
    for width in (1536, 5120):
        torch.manual_seed(width)
        frames, tokens, head = 3, 60, 128
        count = frames * tokens

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, device=device).to(torch.bfloat16)

        x, update, modulation, gain = randn(2, count, width), randn(2, count, width), randn(2, 6, width), randn(width)
        shift, scale, gate = modulation[:, 0], modulation[:, 1], modulation[:, 2]
        turn = torch.view_as_real(torch.polar(torch.ones(count, 64), torch.randn(count, 64))).to(device).contiguous()
        slots = torch.tensor([5, 0, 3], dtype=torch.int32, device=device)
        image = randn(1, 4, 20, 30, 96 if width == 1536 else 384).movedim(-1, 1)
        results = []
        for ops in (kernels, torch_ops):
            k, v = (torch.zeros(2, 6 * tokens, width // head, head, dtype=x.dtype, device=device) for _ in range(2))
            q = ops.write_qkv(torch.cat((x, update, x), -1), gain, gain, 1e-6, turn, slots, k, v)
            results.append([
                ops.norm_modulate(x, shift, scale, 1e-6), ops.add_gated(x.clone(), update, gate),
                ops.rms_norm(x, gain, 1e-6), q, k, v, ops.norm_silu(image, modulation[0, 3, : image.shape[1]], 9.0),
            ])  # fmt: skip
        worst = max(worst, *(off(ours, right) for ours, right in zip(*results, strict=True)))
    return worst


@check(1e-2, gpu=True)
def the_kernel_of_fp8_equals_pytorch(device: torch.device) -> float:
    from diag_core.fast import kernels

    if torch.cuda.get_device_capability(device) < (8, 9):
        raise LeftOut("FP8 begins with compute capability 8.9 (Ada)")
    worst = 0.0
    for width in (1536, 5120):
        x = torch.randn(360, width, device=device).to(torch.bfloat16)
        (rows, scale), (right, its_scale) = kernels.quantise(x), torch_ops.quantise(x)
        worst = max(worst, off(rows.float() * scale, right.float() * its_scale))
    return worst


@check(2e-2, gpu=True)
def fp8_products_equal_their_emulation(device: torch.device) -> float:
    missing = fp8_missing(model(device))
    if missing is not None:
        raise LeftOut(missing)
    x, weight = (torch.randn(rows, 1536, device=device).to(torch.bfloat16) for rows in (4680, 4608))
    bias = torch.randn(4608, device=device).to(torch.bfloat16)
    ours = Fp8Linear(weight, bias, torch_ops)(x)[:64]  # all of it would take long on a CPU
    return off(ours, Fp8Linear(weight.cpu(), bias.cpu(), torch_ops)(x[:64].cpu()).to(device))


# -- the DiT ----------------------------------------------------------------------------------------------------------


@check(1e-3, gpu=False)
def videos_equal_the_plain_paths(device: torch.device) -> float:
    """In float32, twice in every setting: the second time with graphs and storage of the first. The worst."""
    plain = model(device)
    fast = FastDiT(copy.deepcopy(plain), attention=plain.attend)
    worst = 0.0
    for options in cases(device).values():
        right = video(plain, **options)
        worst = max(worst, off(video(fast, **options), right), off(video(fast, **options), right))
    return worst


@check(1e-2, gpu=False)
def forwards_in_bfloat16(device: torch.device) -> float:
    """The worst forward of a video, at Wan's width, each with the same input and past."""
    plain = model(device, torch.bfloat16, dim=1536, layers=2)
    fast = FastDiT(copy.deepcopy(plain), graphs=False)
    worst = 0.0

    class Both:
        config, dtype, device = plain.config, plain.dtype, plain.device

        def __call__(
            self, x: Tensor, timestep: Tensor, context: Tensor, cache: Any = None, start_frame: int = 0
        ) -> Tensor:
            nonlocal worst
            other = copy.deepcopy(cache)
            flow: Tensor = plain(x, timestep, context, cache=cache, start_frame=start_frame)
            worst = max(worst, off(fast(x, timestep, context, other, start_frame), flow))
            return flow

    video(Both(), policy=ContextPolicy.noised(0.1))
    return worst


@check(1.1, gpu=False)
def videos_in_bfloat16_against_float32(device: torch.device) -> float:
    """Mean squared error of the fast path over that of the plain one."""
    rounded = model(device, torch.bfloat16, dim=512, layers=6)
    exact, fast = copy.deepcopy(rounded).float(), FastDiT(copy.deepcopy(rounded))
    errors = {"plain": 0.0, "fast": 0.0}
    for seed in range(4):
        right = video(exact, seed=seed)
        for name, dit in (("plain", rounded), ("fast", fast)):
            errors[name] += float((video(dit, seed=seed) - right).square().mean())
    return errors["fast"] / errors["plain"]


@check(1e-3, gpu=True)
def graphs_equal_eager_runs(device: torch.device) -> float:
    """In bfloat16 with kernels: the same operations, so the same numbers, or nearly where libraries choose anew."""
    plain = model(device, torch.bfloat16, dim=1536, layers=3)
    eager, graphed = (FastDiT(copy.deepcopy(plain), attention=plain.attend, graphs=on) for on in (False, True))
    worst = 0.0
    for options in cases(device).values():
        right = video(eager, **options)
        worst = max(worst, *(off(video(graphed, **options), right) for _ in range(2)))
    if not graphed.captured:
        raise AssertionError("nothing was captured")
    return worst


@check(0, gpu=True)
def synchronisations_in_a_chunk(device: torch.device) -> float:
    """How often a steady chunk waits for the device: PyTorch raises an error at the first."""
    fast = FastDiT(model(device, torch.bfloat16))
    chunks = stream_chunks(
        fast, prompt(device), DiagonalSchedule.parse("2"), noise=SeededNoise(0), num_latent_frames=None, height=16,
        width=16, cache=CacheConfig(9, 3),
    )  # fmt: skip
    for _ in range(12):  # until all graphs are captured, and all slots have been used
        next(chunks)
    torch.cuda.synchronize(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        next(chunks)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return 0.0


@check(1.02, gpu=True)
def memory_of_a_third_video(device: torch.device) -> float:
    """What is allocated after it over what was after the second; and storage must be gone once released."""
    fast = FastDiT(model(device, torch.bfloat16))
    held = []
    for seed in range(3):
        video(fast, seed=seed, size=32)
        torch.cuda.synchronize(device)
        held.append(torch.cuda.memory_allocated(device))
    storage = fast.idle_bytes
    fast.release()
    gc.collect()
    if torch.cuda.memory_allocated(device) > held[-1] - storage:
        raise AssertionError("storage is still held after release()")
    return held[2] / held[1]


# -- decoders ---------------------------------------------------------------------------------------------------------


def decoders(device: torch.device) -> list[Any]:
    torch.manual_seed(0)
    tiny = TinyVAE(TinyVAEConfig(encoder_width=8, decoder_widths=(32, 16, 16, 8)))
    return [vae.to(device).requires_grad_(False).eval() for vae in (tiny, WanVAE(8))]


@check(1e-3, gpu=False)
def streams_equal_the_plain_decoders(device: torch.device) -> float:
    """In float32, two streams that take turns. The worst piece."""
    worst = 0.0
    for plain in decoders(device):
        fast = FastDecoder(copy.deepcopy(plain))
        ours, right = ([decoder.streaming_decoder() for _ in range(2)] for decoder in (fast, plain))
        for number in range(12):
            latents = torch.randn(1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(number)).to(device)
            which = number % 2
            worst = max(worst, off(ours[which].push(latents), right[which].push(latents)))
    return worst


@check(0.1, gpu=True)
def norms_that_miss_the_kernel(device: torch.device) -> float:
    """Share of the Wan decoder's norms whose input is not channels-last: they run as PyTorch's operations."""
    fast = FastDecoder(decoders(device)[1], graphs=False)
    missed: list[bool] = []
    for module in fast.vae.decoder.modules():
        if isinstance(module, NormSilu):
            module.register_forward_pre_hook(lambda _, x: missed.append(not x[0].movedim(1, -1).is_contiguous()))
    stream = fast.streaming_decoder()
    for _ in range(2):
        stream.push(torch.randn(1, 16, 3, 8, 8, device=device))
    return sum(missed) / len(missed)


@check(1, gpu=False)
def frames_of_the_pipeline(device: torch.device) -> float:
    """Largest difference, in steps of 8 bits, of pictures decoded beside sampling and of the same in one stream; over
    three videos, so that captures fall into both threads."""
    plain = model(device)
    worst = 0.0
    for vae in decoders(device):
        fast, decoder = FastDiT(copy.deepcopy(plain), attention=plain.attend), FastDecoder(copy.deepcopy(vae))
        for seed in range(3):

            def chunks(on_forward: Any, dit: Any = fast, seed: int = seed) -> Any:
                return stream_chunks(
                    dit, prompt(device), DiagonalSchedule.parse("2"), noise=SeededNoise(seed), num_latent_frames=18,
                    height=16, width=16, cache=CacheConfig(9, 3), on_forward=on_forward,
                )  # fmt: skip

            ours = torch.cat([frames.pixels for frames in VideoPipeline(chunks, decoder).frames()])
            stream = vae.streaming_decoder()
            pieces = [to_uint8(stream.push(chunk.latents)).cpu() for chunk in chunks(lambda _: None, plain)]
            worst = max(worst, float((ours.int() - torch.cat(pieces).int()).abs().max()))
    return worst


def run(device: torch.device) -> dict[str, Any]:
    """All checks; one that breaks does not keep the others from running."""
    # Float32 products in full: TF32 would be told apart from a fault only by its size.
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    results: dict[str, Any] = {}
    for name, (function, limit, gpu) in CHECKS.items():
        if gpu and device.type != "cuda":
            results[name] = {"passed": None, "why": "it takes a GPU"}
            continue
        begin = time.perf_counter()
        try:
            figure = function(device)
            results[name] = {"passed": figure <= limit, "figure": figure, "limit": limit}
        except LeftOut as why:
            results[name] = {"passed": None, "why": str(why)}
        except Exception as error:  # a check that breaks has failed
            traceback.print_exc()
            results[name] = {"passed": False, "why": f"{type(error).__name__}: {error}"}
        results[name]["seconds"] = round(time.perf_counter() - begin, 3)
        print(name, results[name], file=sys.stderr, flush=True)
    return {"machine": describe_machine(device), "checks": results}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="cpu, cuda, ... (default: the GPU where there is one)")
    parser.add_argument("--out", type=Path, help="save the results there, as JSON")
    options = parser.parse_args()
    report = run(choose_device(options.device))
    print(json.dumps(report, indent=1))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if all(result["passed"] is not False for result in report["checks"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
