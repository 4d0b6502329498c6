"""Run with TRITON_INTERPRET=1: compares each kernel with plain PyTorch on the CPU, and prints what differs most."""

from __future__ import annotations

import itertools

import torch

from diag_core.fast import kernels, torch_ops


def close(name: str, ours: torch.Tensor, theirs: torch.Tensor, dtype: torch.dtype) -> None:
    worst = float((ours.float() - theirs.float()).abs().max() / theirs.abs().max())
    mean = float((ours.float() - theirs.float()).norm() / theirs.float().norm())
    # In bfloat16 the interpreter cuts off digits where a GPU rounds.
    assert worst <= (1e-5 if dtype == torch.float32 else 2e-2), f"{name}: {worst}"
    assert mean <= (1e-5 if dtype == torch.float32 else 8e-3), f"{name}: {mean} on average"
    print(name, dtype, worst)


def main() -> None:
    draw = torch.Generator().manual_seed(0)

    def randn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=draw).to(dtype)

    for dtype, (width, heads) in itertools.product((torch.float32, torch.bfloat16), ((256, 2), (384, 3))):
        head, batch, frames, tokens = width // heads, 2, 3, 4
        count = frames * tokens
        x, update = randn(batch, count, width, dtype=dtype), randn(batch, count, width, dtype=dtype)
        modulation = randn(batch, 6, width, dtype=dtype)
        shift, scale, gate = modulation[:, 0], modulation[:, 1], modulation[:, 2]
        close(
            "norm_modulate", kernels.norm_modulate(x, shift, scale, 1e-6),
            torch_ops.norm_modulate(x, shift, scale, 1e-6), dtype,
        )  # fmt: skip
        close(
            "add_gated", kernels.add_gated(x.clone(), update, gate), torch_ops.add_gated(x.clone(), update, gate), dtype
        )
        weight = randn(width, dtype=dtype)
        close("rms_norm", kernels.rms_norm(x, weight, 1e-6), torch_ops.rms_norm(x, weight, 1e-6), dtype)
        for shape in ((2, width, 3, 2, 5), (3, width // 4, 5, 3)):  # videos and images, channels-last and not
            image, gain = randn(*shape, dtype=dtype), randn(shape[1], dtype=dtype)
            for given in (image, image.movedim(1, -1).contiguous().movedim(-1, 1)):
                ours = kernels.norm_silu(given, gain, 1.5)
                assert ours.stride() == given.stride()
                close("norm_silu", ours, torch_ops.norm_silu(given, gain, 1.5), dtype)
        (ours, scale), (theirs, right) = (ops.quantise(x.flatten(0, 1)) for ops in (kernels, torch_ops))
        close("scales", scale, right, torch.float32)
        # The interpreter (not a GPU) loses the carry where rounding ends at a power of two.
        kept = theirs.float().frexp().mantissa.abs() != 0.5
        step = torch.maximum(theirs.float().abs() / 8, torch.tensor(2**-9))  # e4m3 has three binary places
        assert ((ours.float() - theirs.float()).abs() <= step)[kept].all()
        turn = torch.view_as_real(torch.polar(torch.ones(count, head // 2), randn(count, head // 2))).contiguous()
        slots = torch.tensor([5, 0, 3], dtype=torch.int32)
        results = []
        for ops in (kernels, torch_ops):
            k, v = (torch.zeros(batch, 6 * tokens, heads, head, dtype=dtype) for _ in range(2))
            qkv = torch.cat((x, update, x + update), dim=-1)
            q = ops.write_qkv(qkv, weight, weight.flip(0), 1e-6, turn, slots, k, v)
            results.append((q, k, v))
        for name, ours, theirs in zip("qkv", *results, strict=True):
            close(f"write_qkv {name}", ours, theirs, dtype)
        # Only the chunk's slots are written.
        written = results[0][1].unflatten(1, (6, tokens)).abs().amax(dim=(0, 2, 3, 4)) > 0
        assert written.tolist() == [True, False, False, True, False, True]


if __name__ == "__main__":
    main()
