"""The comparison with the public implementation, on a stand-in that has its names and signatures."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import gpu, public_baseline
from diag_core import CacheConfig, DiagonalSchedule, WanConfig
from diag_core.bench import BenchSetting
from diag_core.vae import TinyVAEConfig

MODEL = WanConfig(dim=32, ffn_dim=48, num_heads=2, num_layers=2, freq_dim=16, text_dim=8, text_len=5)
SETTING = BenchSetting(
    preset="tiny",
    model=MODEL, width=32, height=32, latent_frames=6, chunk_frames=3, schedule=DiagonalSchedule.parse("21"),
    cache=CacheConfig(6, 3), dtype="float32", device="cpu",
    tiny_vae=TinyVAEConfig(encoder_width=4, decoder_widths=(4, 4, 4, 4)),
)  # fmt: skip

FILES = {
    "configs/diadistill_inference.yaml": "",
    "utils/__init__.py": "",
    "utils/wan_wrapper.py": "",
    "wan/__init__.py": "",
    "wan/modules/__init__.py": "",
    "wan/modules/attention.py": """
FLASH_ATTN_2_AVAILABLE, FLASH_ATTN_3_AVAILABLE = True, False
def attention(q, k, v, **_): return q
""",
    "wan/modules/model.py": "def flash_attention(q, k, v, **_): return q\n",
    "omegaconf.py": """
from types import SimpleNamespace
class Settings(SimpleNamespace):
    def get(self, name): return getattr(self, name)
class OmegaConf:
    @staticmethod
    def load(path):
        return Settings(
            model_name="Wan-small", enable_torch_compile=False, model_kwargs=Settings(local_attn_size=6)
        )
""",
    "taehv.py": """
import torch
class TAEHV(torch.nn.Module):
    def __init__(self, checkpoint_path):
        super().__init__()
        assert checkpoint_path is None
        self.weight = torch.nn.Parameter(torch.ones(1))
    def decode_video(self, x, parallel):
        b, f, c, h, w = x.shape
        return x[:, :, :3].repeat_interleave(4, 1).repeat_interleave(8, 3).repeat_interleave(8, 4).sigmoid()
""",
    "pipeline/causal_inference.py": "",
    "pipeline/__init__.py": """
import json, pathlib, torch
from safetensors.torch import load_file
from diag_core import WanConfig, WanDiT

class Generator(torch.nn.Module):
    def __init__(self, model): super().__init__(); self.model = model
    def forward(self, noisy_image_or_video, conditional_dict, timestep, kv_cache, crossattn_cache, current_start):
        x = noisy_image_or_video.transpose(1, 2)
        flow = self.model(x, timestep[:, 0], conditional_dict["prompt_embeds"]).transpose(1, 2)
        return flow, noisy_image_or_video - flow

class CausalInferencePipeline(torch.nn.Module):
    num_transformer_blocks, frame_seq_length = 30, 1560
    def __init__(self, args, device, text_encoder, vae):
        super().__init__()
        place = pathlib.Path("wan_models") / args.model_name  # where it loads from
        sizes = json.loads((place / "config.json").read_text())
        model = WanDiT(WanConfig(**{k: v for k, v in sizes.items() if k not in ("_class_name", "model_type")}))
        assert load_file(place / "diffusion_pytorch_model.safetensors").keys() == model.state_dict().keys()
        self.generator, self.text_encoder, self.vae = Generator(model), text_encoder, vae
    def _initialize_kv_cache(self, batch_size, dtype, device, kv_cache_size_override):
        self.kv_cache1 = (self.num_transformer_blocks, kv_cache_size_override)
    def _initialize_crossattn_cache(self, batch_size, dtype, device): self.crossattn_cache = ()
    def _set_all_modules_max_attention_size(self, size): pass
    def inference(self, noise, text_prompts):
        assert self.kv_cache1 == (2, 6 * 4)  # layers, tokens of the window
        self.last_block_timing = [{"time_ms": 500.0}, {"time_ms": 250.0}]
        return self.vae.decode_to_pixel(noise) * 0.5 + 0.5
""",
}


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    before = set(sys.modules)
    for name, text in FILES.items():
        (tmp_path / "theirs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "theirs" / name).write_text(text)
    yield tmp_path / "theirs"
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("pipeline", "utils", "wan", "taehv", "omegaconf"):
            del sys.modules[name]


def test_both_run_the_same_weights_and_are_compared(checkout: Path) -> None:
    cwd = Path.cwd()
    report = public_baseline.compare(checkout, SETTING, runs=2)
    public, ours = report["public"], report["ours"]
    assert report["error_of_a_forward_to_theirs"] < 1e-5
    assert public["seconds"]["dit"]["median"] == 0.75 and public["attention"] == "FlashAttention 2"
    assert public["frames_decoded"] == 24 and public["torch_compile"] is None and public["commit"] is None
    assert report["setting"]["pixel_frames"] == 21
    times = report["times_as_fast"]
    assert times["dit"] == pytest.approx(0.75 / ours["seconds"]["dit"]["median"], rel=0.01)
    theirs = public["seconds"]["together"]["median"]
    assert times["first_frame"] == pytest.approx(theirs / ours["seconds"]["first_frame"]["median"], rel=0.05)
    assert f"{times['dit']:.2f} times in the DiT" in public_baseline.sentence(json.loads(json.dumps(report)))
    assert Path.cwd() == cwd and str(checkout) not in sys.path


def test_both_on_pytorchs_attention(checkout: Path) -> None:
    report = public_baseline.compare(checkout, SETTING, runs=1, attention="sdpa")
    functions, model = sys.modules["wan.modules.attention"], sys.modules["wan.modules.model"]
    assert not functions.FLASH_ATTN_2_AVAILABLE and model.flash_attention is functions.attention
    assert report["public"]["attention"] == "PyTorch's scaled_dot_product_attention"


def test_what_is_missing_is_said(checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attention = checkout / "wan" / "modules" / "attention.py"
    attention.write_text(attention.read_text().replace("True", "False"))
    with pytest.raises(ValueError, match="needs the package flash-attn"):
        public_baseline.compare(checkout, SETTING, runs=1)
    del sys.modules["taehv"]
    (checkout / "taehv.py").write_text("import nothing_like_it")
    with pytest.raises(ValueError, match=r"cannot be run: No module named 'nothing_like_it'\. Install its own"):
        public_baseline.compare(checkout, SETTING, runs=1)
    (checkout / "taehv.py").unlink()
    with pytest.raises(ValueError, match=r"has no taehv\.py: give a clone of Sphere"):
        public_baseline.compare(checkout, SETTING, runs=1)


def test_the_whole_table_says_how_to_have_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--small", "--out", str(tmp_path), "--parts", "baseline"]) == 0
    assert "baseline: left out, as it takes a GPU" in capsys.readouterr().out
    part = next(part for part in gpu.PARTS if part.name == "baseline")
    command = gpu.command(part, tmp_path / "x.json", small=False, baseline=("clone", "--attention", "sdpa"))
    assert command[1:5] == ["-m", "benchmarks.public_baseline", "clone", "--attention"]
    assert command[-2:] == ["--json", str(tmp_path / "x.json")]


def test_its_result_is_in_the_table(tmp_path: Path) -> None:
    report = {
        "machine": {"gpu": "a card", "torch": "2"},
        "public": {
            "torch_compile": "max-autotune-no-cudagraphs",
            "attention": "FlashAttention 3",
            "frames_per_second": 30,
        },
        "ours": {"frames_per_second": 90},
        "times_as_fast": {"dit": 2.5, "to_rgb_frames": 3, "first_frame": 9},
    }
    assert "this one 90.0: 3.00 times as fast" in gpu.head({"baseline": report}, "today")
    assert "a card" not in gpu.table({"baseline": report})
