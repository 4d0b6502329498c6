"""The kernels compile for the GPUs they are for, which takes none: Triton brings its own assembler."""

from __future__ import annotations

import pytest

triton = pytest.importorskip(
    "triton", reason="Triton is part of PyTorch on Linux only: its kernels are not tested here"
)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from diag_core.fast import kernels  # noqa: E402

HALF, FULL = "*bf16", "*fp32"
KERNELS = {
    "_norm_modulate": [HALF, HALF, HALF, HALF, "i32", "i32", "i32", "fp32"],
    "_add_gated": [HALF, HALF, HALF, "i32", "i32"],
    "_rms_norm": [HALF, HALF, HALF, "fp32"],
    "_norm_silu": [HALF, HALF, HALF, "i32", "fp32"],
    "_write_qkv": [HALF, HALF, HALF, FULL, "*i32", HALF, HALF, HALF, "i32", "i32", "i64", "fp32"],
    "_quantise": [HALF, "*fp8e4nv", FULL, "fp32"],
}
SIZES = {"WIDTH": 1536, "BLOCK": 2048, "HEAD": 128, "HALF": 1024, "ROWS": 2}


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", KERNELS)
def test_it_compiles(name, capability, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    if (name, capability) == ("_quantise", 80):
        pytest.skip("FP8 begins with later cards")
    kernel = getattr(kernels, name)
    given = [argument for argument in kernel.arg_names if argument not in SIZES]
    sizes = {argument: SIZES[argument] for argument in kernel.arg_names if argument in SIZES}
    signature = dict(zip(given, KERNELS[name], strict=True)) | dict.fromkeys(sizes, "constexpr")
    source = ASTSource(kernel, {argument: signature[argument] for argument in kernel.arg_names}, sizes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})
    assert f"sm_{capability}" in compiled.asm["ptx"] and len(compiled.asm["cubin"]) > 1000
