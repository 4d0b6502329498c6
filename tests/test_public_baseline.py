"""The comparison with the public implementation, on a stand-in that has its names and signatures."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, public_baseline, public_pipeline
from diag_core import CacheConfig, DiagonalSchedule, WanConfig
from diag_core.bench import BenchSetting, Rig
from diag_core.vae import TinyVAEConfig

MODEL = WanConfig(dim=32, ffn_dim=48, num_heads=2, num_layers=2, freq_dim=16, text_dim=8, text_len=5)
SETTING = BenchSetting(
    preset="tiny",
    model=MODEL, width=32, height=32, latent_frames=9, chunk_frames=3, schedule=DiagonalSchedule.parse("21"),
    cache=CacheConfig(6, 3), dtype="float32", device="cpu",
    tiny_vae=TinyVAEConfig(encoder_width=4, decoder_widths=(4, 4, 4, 4)),
)  # fmt: skip

FILES = {
    "configs/diadistill_inference.yaml": "",
    "utils/__init__.py": "",
    "utils/wan_wrapper.py": """
from diag_core import WanConfig, WanDiT
class CausalWanModel(WanDiT):
    def __init__(self, model_type, local_attn_size, sink_size, **sizes):
        assert model_type == "t2v" and (local_attn_size, sink_size) == (6, 3)
        super().__init__(WanConfig(**sizes))
    @classmethod
    def from_pretrained(cls, place, **options): raise OSError(f"there is no {place}")
""",
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
    def get(self, name): return getattr(self, name, None)
class OmegaConf:
    @staticmethod
    def load(path):
        if path.name == "steps.yaml":
            return Settings(steps=(1000.0, 100.0))
        return Settings(
            schedule_config_path="configs/steps.yaml", enable_torch_compile=True, torch_compile_mode="max-autotune",
            model_kwargs={"local_attn_size": 6, "sink_size": 3},
        )
    @staticmethod
    def merge(settings, more): return Settings(**vars(settings), **vars(more))
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
import torch
from diag_core import CacheConfig
from diag_core.kv_cache import KVCache
from utils.wan_wrapper import CausalWanModel

class Generator(torch.nn.Module):
    def __init__(self, model): super().__init__(); self.model = model
    def forward(self, noisy_image_or_video, conditional_dict, timestep, kv_cache, crossattn_cache, current_start):
        flow = self.model(
            noisy_image_or_video.transpose(1, 2), timestep, conditional_dict["prompt_embeds"], cache=kv_cache,
            start_frame=current_start // 4,
        ).transpose(1, 2)
        return flow, noisy_image_or_video - flow * timestep[..., None, None, None] / 1000

class CausalInferencePipeline(torch.nn.Module):
    num_transformer_blocks, frame_seq_length = 30, 1560
    def __init__(self, args, device, text_encoder, vae):
        super().__init__()
        self.generator = Generator(CausalWanModel.from_pretrained("wan_models/", **args.model_kwargs))
        self.steps, self.text_encoder, self.vae = args.steps, text_encoder, vae
    def inference(self, noise, text_prompts, return_latents=False):
        assert (self.num_transformer_blocks, self.frame_seq_length) == (2, 4)
        cache = KVCache(self.generator.model.config, CacheConfig(6, 3), batch=1, rows=2, columns=2)
        output = torch.zeros_like(noise)
        for start in range(0, noise.shape[1], 3):
            x = noise[:, start : start + 3]
            for timestep in self.steps if start == 0 else self.steps[:1]:
                _, x = self.generator(
                    noisy_image_or_video=x, conditional_dict=self.text_encoder(text_prompts=text_prompts),
                    timestep=torch.full((1, 3), timestep), kv_cache=cache, crossattn_cache=None,
                    current_start=start * self.frame_seq_length,
                )
            cache.advance()
            output[:, start : start + 3] = x
        video = self.vae.decode_to_pixel(output, use_cache=False) * 0.5 + 0.5
        return (video, output) if return_latents else video
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


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Modes that something was to be compiled in; nothing is, which would take a minute."""
    modes: list[str] = []

    def compile_(module: torch.nn.Module, mode: str) -> torch.nn.Module:
        modes.append(mode)
        return module

    monkeypatch.setattr(torch, "compile", compile_)
    return modes


def test_both_run_the_same_weights_and_are_compared(checkout: Path, compiled: list[str]) -> None:
    report = public_baseline.compare(checkout, SETTING, runs=2, attention="own")
    public, ours = report["public"], report["ours"]
    assert report["worst_distance_of_a_forward"] < 1e-5
    assert public["steps_of_a_chunk"] == [2, 1, 1] and report["setting"]["schedule"] == "21"
    assert compiled == ["max-autotune"] * 2 and public["torch_compile"] == "max-autotune"
    assert public["frames_decoded"] == 36 and public["attention"] == "flash2" and public["commit"] is None
    assert public["warm_up"]["videos"] >= 2 and public["peak_bytes"] > 0
    seconds, times = public["seconds"], report["times_as_fast"]
    for name, theirs, own in (
        ("dit", "dit", "dit"),
        ("to_rgb_frames", "together", "together"),
        ("first_frame", "together", "first_frame"),
        ("first_frame_of_one_chunk", "one_chunk", "first_frame"),
    ):
        ratio = seconds[theirs]["median"] / ours["seconds"][own]["median"]
        assert times[name] == pytest.approx(ratio, rel=0.01, abs=1e-3)
    assert public["frames_per_second"] == pytest.approx(33 / seconds["together"]["median"], rel=0.01)
    said = public_baseline.sentence(json.loads(json.dumps(report)))
    assert (
        f"{times['dit']:.2f} times in the DiT" in said and '(torch.compile max-autotune, flash2, steps "211")' in said
    )
    assert str(checkout) not in sys.path


def test_the_distance_sees_another_window(checkout: Path, compiled: list[str]) -> None:
    other = replace(SETTING, cache=CacheConfig(9, 3))
    assert public_baseline.compare(checkout, other, runs=1, attention="own")["worst_distance_of_a_forward"] > 1e-3


def test_both_on_pytorchs_attention(checkout: Path, compiled: list[str]) -> None:
    report = public_baseline.compare(checkout, SETTING, runs=1, attention="sdpa")
    functions, model = sys.modules["wan.modules.attention"], sys.modules["wan.modules.model"]
    assert not functions.FLASH_ATTN_2_AVAILABLE and model.flash_attention is functions.attention
    assert report["public"]["attention"] == report["ours"]["attention"] == "sdpa"


def test_this_one_takes_the_same_kernel(checkout: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def rig(setting: BenchSetting) -> Rig:
        asked.append(setting.attention)
        return Rig(replace(setting, attention="sdpa"))

    monkeypatch.setattr(public_baseline, "Rig", rig)
    public_baseline.compare(checkout, SETTING, runs=1)
    assert asked == ["auto", "flash2"]


def test_it_warms_up_until_nothing_is_compiled_any_more() -> None:
    times = iter([90.0, 30.0, 3.0, 2.9, 1.0])
    assert public_baseline._warm_up(lambda: next(times)) == [90.0, 30.0, 3.0, 2.9]
    falling = iter(0.5**n for n in range(100))
    assert len(public_baseline._warm_up(lambda: next(falling))) == 8


def test_weights_that_do_not_fit_are_named(checkout: Path, compiled: list[str]) -> None:
    model = checkout / "utils" / "wan_wrapper.py"
    text = "        super().__init__(WanConfig(**sizes))\n"
    model.write_text(model.read_text().replace(text, f"{text}        self.extra = self.head\n        del self.head\n"))
    with pytest.raises(
        ValueError, match=r"do not fit its model, 6 keys: extra\.head\.bias is missing, .*head\.head\.\w+ has no"
    ):
        public_baseline.compare(checkout, SETTING, runs=1)
    with pytest.raises(ValueError, match=r"1 keys: weight is \[2, 3\] here and \[2, 2\] there"):
        public_pipeline._load(torch.nn.Linear(2, 2, bias=False), {"weight": torch.ones(2, 3)})


def test_what_is_missing_is_said(checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attention = checkout / "wan" / "modules" / "attention.py"
    attention.write_text(attention.read_text().replace("True", "False"))
    with pytest.raises(ValueError, match=r"needs the package flash-attn.*--attention sdpa"):
        public_baseline.compare(checkout, SETTING, runs=1)
    attention.write_text(attention.read_text().replace("= False", "= True"))
    del sys.modules["wan.modules.attention"]
    (checkout / "pipeline" / "__init__.py").write_text("")
    with pytest.raises(ValueError, match=r"module pipeline has no CausalInferencePipeline: give a clone of Sphere"):
        public_baseline.compare(checkout, SETTING, runs=1)
    del sys.modules["pipeline"]
    (checkout / "pipeline" / "__init__.py").write_text("import nothing_like_it")
    with pytest.raises(ValueError, match=r"cannot be run: No module named 'nothing_like_it'\. Install its own"):
        public_baseline.compare(checkout, SETTING, runs=1)
    (checkout / "taehv.py").unlink()
    with pytest.raises(ValueError, match=r"has no taehv\.py: give a clone of Sphere"):
        public_baseline.compare(checkout, SETTING, runs=1)


def test_the_whole_table_says_how_to_have_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gpu.main(["--small", "--out", str(tmp_path), "--parts", "baseline"]) == 0
    assert "baseline: left out; as it takes a GPU" in capsys.readouterr().out
    monkeypatch.setattr(gpu, "choose_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A Card")
    assert gpu.main(["--out", str(tmp_path), "--parts", "baseline"]) == 0
    assert re.search("left out; to have it, clone Sphere-AI-Lab.* with --baseline", capsys.readouterr().out)
    asked = []
    monkeypatch.setattr(gpu, "run_part", lambda *a, baseline, **k: asked.append(baseline) or True)
    assert gpu.main(["--out", str(tmp_path), "--parts", "baseline", "--baseline", "clone"]) == 0
    assert asked == [("clone", "--attention", "same")]
    part = next(part for part in gpu.PARTS if part.name == "baseline")
    command = gpu.command(part, tmp_path / "x.json", small=False, baseline=asked[0])
    assert command[1:] == ["-m", "benchmarks.public_baseline", *asked[0], "--json", str(tmp_path / "x.json")]


def test_its_failure_is_in_the_table(tmp_path: Path) -> None:
    part = next(part for part in gpu.PARTS if part.name == "baseline")
    file = tmp_path / "today-baseline.json"
    wrong = (str(tmp_path), "--attention", "sdpa")
    assert not gpu.run_part(part, file, small=False, seconds=120, baseline=wrong)  # a process of its own
    assert re.fullmatch(r"\n- baseline: no result\. error: .* has no pipeline.*\n", gpu.failures({"baseline": file}))
    file.write_text("{}")
    assert gpu.failures({"baseline": file, "taehv": tmp_path / "none.json"}) == ""


def test_its_result_is_in_the_table() -> None:
    report = {
        "machine": {"gpu": "a card", "torch": "2"},
        "worst_distance_of_a_forward": 3e-3,
        "public": {
            "torch_compile": "max-autotune-no-cudagraphs",
            "attention": "flash3",
            "steps_of_a_chunk": [4, 3, 2],
            "frames_per_second": 30,
        },
        "ours": {"frames_per_second": 90, "attention": "flash3"},
        "times_as_fast": {"dit": 2.5, "to_rgb_frames": 3, "first_frame": 9, "first_frame_of_one_chunk": 2},
    }
    assert "this one (flash3) 90.0: 3.00 times as fast" in gpu.head({"baseline": report}, "today")
    assert "a card" not in gpu.table({"baseline": report})
