"""The benchmark: its arithmetic against published figures and against what PyTorch counts, and what its reports say."""

from __future__ import annotations

import argparse
import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from diag_core import CacheConfig, ContextPolicy, DiagonalSchedule, WanConfig
from diag_core.bench import (
    PRESETS,
    BenchSetting,
    Peak,
    Rig,
    Spread,
    Work,
    forward_work,
    kind_of,
    long_report,
    long_table,
    matrix_peak,
    measure_long,
    measure_video,
    save_report,
    take_apart,
    video_report,
    video_table,
    video_work,
)
from diag_core.bench import text as text_module
from diag_core.bench.measure import EARLY, LATE, MIN_CHUNKS, LongResult
from diag_core.bench.meter import Memory, Meter, choose_device, limit_memory
from diag_core.bench.rig import to_rgb
from diag_core.cli.bench import add_arguments, run, setting_from
from diag_core.fast import FastDiT
from diag_core.vae import Stream, TinyVAEConfig

TERA = 1e12
WAN = WanConfig.wan_1_3b()
TOKENS = 1560  # of a latent frame at 832x480

TINY = BenchSetting(
    preset="tiny",
    model=WanConfig(dim=12, ffn_dim=16, num_heads=2, num_layers=2, text_dim=8, text_len=4),
    width=32,
    height=16,
    latent_frames=7,
    cache=CacheConfig(window_frames=6, sink_frames=3),
    tiny_vae=TinyVAEConfig(encoder_width=4, decoder_widths=(4, 4, 4, 4)),
    wan_vae_dim=2,
    dtype="float32",
    device="cpu",
)


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_arguments(parser)
    return parser.parse_args(list(words))


def missing(value: Any, path: str = "") -> list[str]:
    """Paths of all entries that are None."""
    if isinstance(value, dict):
        return [found for key, inner in value.items() for found in missing(inner, f"{path}.{key}" if path else key)]
    return [path] if value is None else []


# -- arithmetic -------------------------------------------------------------------------------------------------------


def wan_work(schedule: str, policy: ContextPolicy, cache: CacheConfig, latent_frames: int = 21) -> Work:
    return video_work(
        WAN,
        DiagonalSchedule.parse(schedule),
        policy,
        cache,
        latent_frames=latent_frames,
        tokens_per_frame=TOKENS,
    )


def test_one_forward_of_wan() -> None:
    forwards = [forward_work(WAN, 3 * TOKENS, frames * TOKENS) for frames in (3, 6, 9, 12)]
    assert {round(forward.linear / TERA, 2) for forward in forwards} == {11.70}
    assert {round(forward.cross_attention / TERA, 2) for forward in forwards} == {0.44}
    assert [round(forward.self_attention / TERA, 2) for forward in forwards] == [4.04, 8.07, 12.11, 16.15]


def test_whole_videos_of_wan() -> None:
    """The project's own default, and what Self Forcing and LongLive do for the same 81 frames."""

    def in_blocks(work: Work) -> int:
        return round((work.total - work.rest) / TERA)

    assert in_blocks(wan_work("4322222", ContextPolicy.last_step(), CacheConfig())) == 400
    assert in_blocks(wan_work("4", ContextPolicy.clean(), CacheConfig(None, 0))) == 990
    assert in_blocks(wan_work("4", ContextPolicy.clean(), CacheConfig())) == 869
    first_chunk = wan_work("4322222", ContextPolicy.last_step(), CacheConfig(), latent_frames=3)
    assert round(first_chunk.total / TERA, 1) == 64.9


@pytest.mark.parametrize("commit", ["last-step", "noised", "clean"])
def test_work_is_what_pytorch_counts(commit: str) -> None:
    """With attention as plain products, since the counter does not know the CPU's fused kernel."""

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: object = None) -> torch.Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return ((q @ k.transpose(2, 3)).softmax(-1) @ v).transpose(1, 2)

    setting = dataclasses.replace(TINY, commit=commit, latent_frames=11, batch=2)
    rig = Rig(setting)
    rig.model.attend = attend
    forwards: list[int] = []
    rig.model.register_forward_hook(lambda *_: forwards.append(1))
    with FlopCounterMode(display=False) as counter:
        for _ in rig.chunks():
            pass
    assert counter.get_total_flops() == setting.work.total
    assert len(forwards) == setting.forwards


# -- videos -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", ["taehv", "wan"])
def test_video_report_is_complete(decoder: str) -> None:
    rig = Rig(dataclasses.replace(TINY, decoder=decoder, commit="noised", kv_noise=50.0))
    said: list[str] = []
    report = video_report(rig, measure_video(rig, runs=3, warm_up=2, progress=said.append))
    assert len(said) == 4
    json.dumps(report, allow_nan=False)
    # No GPU here, no text encoder, and guidance is not for distilled models; all else must have a value.
    unsaid = {"machine.gpu", "text_encoding.seconds", "setting.guidance"}
    assert set(missing(report)) == unsaid

    machine, setting = report["machine"], report["setting"]
    assert machine["cpu"] and machine["torch"] == torch.__version__ and machine["threads"] == torch.get_num_threads()
    assert (setting["width"], setting["height"], setting["pixel_frames"]) == (32, 16, 25)
    assert (setting["schedule"], setting["forwards"]) == ("4322222", 4 + 3 + 2 + 3)
    assert (setting["commit"], setting["kv_noise"], setting["precision"]) == ("noised", 50.0, "float32")
    assert setting["decoder"] == decoder
    assert any("scaled_dot_product" in name for name in setting["attention_kernels"])
    assert report["text_encoding"]["included"] is False
    assert report["warm_up"]["excluded"] and report["warm_up"]["videos"] == 2 and report["warm_up"]["seconds"] > 0
    assert (report["runs"], report["enough_runs"]) == (3, False)
    for name in ("dit", "decode", "together", "first_frame"):
        seconds = report["seconds"][name]
        assert len(seconds["values"]) == 3
        assert 0 < seconds["min"] <= seconds["median"] <= seconds["max"]
    assert len(report["seconds"]["steady_chunk"]["values"]) == 3
    assert report["path"] == {"asked": "auto", "taken": "plain", "kernels": "PyTorch's", "cuda_graphs": False}
    assert report["seconds"]["first_frame"]["max"] < report["seconds"]["together"]["max"]
    assert report["frames_per_second"]["dit"] == pytest.approx(25 / report["seconds"]["dit"]["median"], rel=1e-2)
    assert report["memory"]["peak_bytes"] > 1e6
    parts = ("linear_tflop", "self_attention_tflop", "cross_attention_tflop", "rest_tflop")
    assert sum(report["work"][part] for part in parts) == pytest.approx(report["work"]["tflop"], abs=3e-6)

    table = video_table(report)
    for text in (machine["cpu"], torch.__version__, "32x16", "25 pixel", "4322222", "noised", "50", "float32", decoder):
        assert text in table
    for text in ("text encoding   not included", "excluded", "median", "first RGB frame", "peak memory", "TFLOP/s"):
        assert text in table
    assert "needs 5 or more" in table


def test_the_fast_path_is_measured_where_it_is_asked_for() -> None:
    rig = Rig(dataclasses.replace(TINY, fast="on", decoder="none"))
    assert isinstance(rig.model, FastDiT)
    report = video_report(rig, measure_video(rig, runs=1))
    path = report["path"]
    assert path.pop("error_of_a_forward") < 1e-5
    assert path == {
        "asked": "on", "taken": "fast", "kernels": "PyTorch's", "cuda_graphs": False, "linear_layers": "float32",
        "compiled": False,
    }  # fmt: skip
    assert any("scaled_dot_product" in name for name in report["setting"]["attention_kernels"])
    assert "fast (PyTorch's kernels, no CUDA graphs)" in video_table(report)
    same = zip(rig.chunks(), Rig(dataclasses.replace(TINY, fast="off", decoder="none")).chunks(), strict=True)
    assert all(torch.allclose(ours.latents, plain.latents, atol=1e-4) for ours, plain in same)


def test_the_error_is_that_of_the_graphs_that_were_timed() -> None:
    """They belong to the storage of the videos, which goes to caches of the very same device alone."""
    rig = Rig(dataclasses.replace(TINY, fast="on", decoder="none"))
    for _ in rig.chunks():
        pass
    (before,) = rig.model._lender._idle
    rig.device = torch.device("cpu:0")  # as a device may be called whose tensors say "cpu"
    rig.forward_error()
    assert list(rig.model._lender._idle) == [before]


def test_fp8_is_measured_with_its_error() -> None:
    setting = dataclasses.replace(PRESETS["small"], width=32, height=32, latent_frames=3, fast="on", decoder="none")
    report = video_report(rig := Rig(dataclasses.replace(setting, fp8=True)), measure_video(rig, runs=1))
    assert report["path"]["linear_layers"] == "FP8" and 1e-3 < report["path"]["error_of_a_forward"] < 0.1
    assert "FP8 linear layers, off the plain path by" in video_table(report)
    with pytest.raises(ValueError, match="must be on"):
        Rig(dataclasses.replace(setting, fp8=True, fast="auto"))


def test_guided_videos_of_one_chunk() -> None:
    """As the undistilled model makes them: every forward twice, decoded in pieces."""
    setting = dataclasses.replace(
        TINY, chunk_frames=7, schedule=DiagonalSchedule.parse("7"), cfg=5.0, step="euler", cache=CacheConfig(None, 0),
        batch=2,
    )  # fmt: skip
    rig, forwards = Rig(setting), []
    rig.model.register_forward_hook(lambda *_: forwards.append(1))
    report = video_report(rig, measure_video(rig, runs=1))
    assert setting.forwards == report["setting"]["forwards"] == 14 and len(forwards) % 14 == 2  # names the kernels
    assert (report["setting"]["guidance"], report["setting"]["step"]) == (5.0, "euler")
    assert report["seconds"]["steady_chunk"] is None
    assert setting.work.total == 2 * dataclasses.replace(setting, cfg=1.0).work.total
    assert "guidance 5" in video_table(report)
    assert rig.streaming_decoder().push(next(rig.chunks()).latents).shape == (1, 3, 2 * 25, 16, 32)


def test_shares_of_the_peak() -> None:
    rig = Rig(dataclasses.replace(TINY, decoder="none"))
    peak = matrix_peak(rig.device, torch.float32)
    assert peak.tflop_per_second > 1e-4
    report = video_report(rig, measure_video(rig, runs=1), peak=Peak(2.0, (8, 8, 8)))
    work = report["work"]
    assert (work["peak_tflop_per_second"], work["peak_measured_with"]) == (2.0, [8, 8, 8])
    assert work["share_of_peak"] == pytest.approx(work["dit_tflop_per_second"] / 2, abs=1e-4)
    assert work["seconds_at_peak"] == pytest.approx(rig.setting.work.total / 2e12, abs=1e-6)
    assert "of the 2 TFLOP/s that matrix products reach here (8 x 8 x 8)" in video_table(report)


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("flash_fwd_kernel<Flash_fwd_kernel_traits<128, 64>>", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3x64x128x128", "attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("nvjet_hsh_256x128_64x4_1x2_h_bz_coopA_NNT", "matrix products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "matrix products"),
        ("aten::addmm", "matrix products"),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc", "convolutions"),
        ("aten::mkldnn_convolution", "convolutions"),
        ("_write_qkv", "fused by this project"),
        ("_norm_modulate", "fused by this project"),
        ("void at::native::(anonymous namespace)::CatArrayBatchedCopy<at::native::OpaqueType<2u>>", "copies"),
        ("Memcpy DtoH (Device -> Pinned)", "copies"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::GeluCUDAKernelImpl>", "norms and element-wise"),
        (
            "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::BFloat16>",
            "norms and element-wise",
        ),
        ("something nobody has heard of", "other"),
    ],
)
def test_kinds_of_kernels(kernel: str, kind: str) -> None:
    assert kind_of(kernel) == kind


def test_a_video_is_taken_apart(tmp_path: Any) -> None:
    trace = tmp_path / "trace.json"
    x = torch.randn(64, 64)
    apart = take_apart(lambda: (x @ x).softmax(-1), torch.device("cpu"), trace)
    assert {"matrix products", "norms and element-wise"} <= set(apart.seconds)
    assert 0 < sum(apart.seconds.values()) <= apart.wall
    assert ("aten::mm", 1) in [(name, calls) for name, _, calls in apart.longest]
    assert "aten::mm" in trace.read_text()


def test_text_encoding_is_timed_by_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    pytest.importorskip("transformers")
    small = {**text_module.XXL, "vocab_size": 16, "d_model": 32, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 4}
    monkeypatch.setattr(text_module, "XXL", small)
    file = tmp_path / "figures.json"
    assert run(options(*f"--preset small --size 32x32 --frames 9 --runs 1 --text --json {file}".split())) == 0
    report = json.loads(file.read_text())
    assert report["text_encoding"]["included"] is False and report["text_encoding"]["seconds"]["median"] > 0
    assert "not included; by itself" in video_table(report)
    with pytest.raises(ValueError, match="leave out --text"):
        run(options("--preset", "small", "--chunks", "200", "--text"))


def test_without_a_decoder_there_are_no_frames() -> None:
    rig = Rig(dataclasses.replace(TINY, decoder="none"))
    report = video_report(rig, measure_video(rig, runs=5))
    assert report["enough_runs"]
    assert report["seconds"]["dit"]["median"] > 0
    assert report["seconds"]["decode"] is report["seconds"]["together"] is report["seconds"]["first_frame"] is None
    assert "not measured" in video_table(report)


def test_all_frames_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those of a last chunk that is trimmed: decode alone does what decoding together does."""
    frames: list[int] = []
    push = Stream.push
    monkeypatch.setattr(Stream, "push", lambda *given: [pixels := push(*given), frames.append(pixels.shape[2])][0])
    measure_video(Rig(TINY), runs=1, warm_up=1)
    assert frames == 3 * [9, 12, 4]  # warm-up, decode alone, together


def test_rgb_is_eight_bits() -> None:
    pixels = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).reshape(1, 1, 1, 1, 5).expand(1, 3, 2, 4, 5)
    frames = to_rgb(pixels)
    assert frames.dtype == torch.uint8 and frames.shape == (1, 2, 4, 5, 3)
    assert frames[0, 0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_random_weights_give_finite_videos() -> None:
    rig = Rig(dataclasses.replace(TINY, dtype="bfloat16"))
    chunks = [chunk.latents for chunk in rig.chunks()]
    assert rig.model.dtype == torch.bfloat16
    assert all(latents.isfinite().all() and 0.01 < latents.std() < 100 for latents in chunks)
    stream = rig.decoding()
    assert stream is not None and stream.push(chunks[0]).isfinite().all()


# -- one long video ---------------------------------------------------------------------------------------------------


def test_long_report_is_complete(tmp_path: Any) -> None:
    count = MIN_CHUNKS + 2
    rig = Rig(dataclasses.replace(TINY, latent_frames=3 * count))
    report = long_report(rig, measure_long(rig))
    assert set(missing(report)) == {"machine.gpu", "text_encoding.seconds", "setting.guidance", "setting.kv_noise"}
    assert report["mode"] == "long" and report["chunks"] == count and report["decode_included"]
    times = report["seconds_of_a_chunk"]
    assert times["early"]["chunks"] == [10, 60] and times["late"]["chunks"] == [count - 50, count]
    assert times["late_over_early"] == pytest.approx(times["late"]["median"] / times["early"]["median"], rel=5e-3)
    assert report["warm_up"] == {"excluded": True, "chunks": 10, "seconds": report["warm_up"]["seconds"]}
    assert {len(values) for values in report["per_chunk"].values()} == {count}
    assert all(value > 1e6 for value in report["per_chunk"]["memory_bytes"])
    assert report["memory"]["peak_bytes"] == report["per_chunk"]["peak_memory_bytes"][-1]
    assert report["first_frame_seconds"] > 0 and report["cpu_seconds_of_all_chunks"] > 0

    table = long_table(report)
    for text in ("late over early", "memory growth", "last 50", "10 to 60", "text encoding   not included"):
        assert text in table
    save_report(report, tmp_path / "long.json")
    assert json.loads((tmp_path / "long.json").read_text()) == report


def test_long_figures_come_from_the_right_chunks() -> None:
    count = 150
    seconds = [9.0] * EARLY.start + [1.0] * len(EARLY) + [7.0] * (count - EARLY.stop - LATE) + [1.5] * LATE
    held = [800] * EARLY.start + [500] * len(EARLY) + [900] * (count - EARLY.stop - LATE) + [530] * LATE
    result = LongResult(
        dit=tuple(0.75 * value for value in seconds),
        decode=tuple(0.25 * value for value in seconds),
        first_frame=9.0,
        memory=tuple(Memory(current, 1000 + index) for index, current in enumerate(held)),
        memory_kind="made up",
        cpu_seconds=1.0,
    )
    assert (result.early, result.late) == (Spread((1.0,) * 50), Spread((1.5,) * 50))
    assert result.ratio == 1.5
    assert result.current_growth == 30
    assert result.peak_growth == count - 1 - EARLY.start
    silent = dataclasses.replace(result, memory=(Memory(None, None),) * count)
    assert silent.current_growth is None and silent.peak_growth is None


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_refused_measurements() -> None:
    short = Rig(dataclasses.replace(TINY, latent_frames=3 * (MIN_CHUNKS - 1)))
    with pytest.raises(ValueError, match=f"needs {MIN_CHUNKS} chunks or more, got {MIN_CHUNKS - 1}"):
        measure_long(short)
    endless = Rig(dataclasses.replace(TINY, latent_frames=3 * MIN_CHUNKS, cache=CacheConfig(None, 0)))
    with pytest.raises(ValueError, match="give a window"):
        measure_long(endless)
    for arguments in ({"runs": 0}, {"runs": 1, "warm_up": 0}):
        with pytest.raises(ValueError, match="must be 1"):
            measure_video(short, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 40}, "multiple of 16"),
        ({"latent_frames": 0}, "latent_frames must be 1 or more"),
        ({"batch": 0}, "batch must be 1 or more"),
        ({"commit": "dirty"}, "last-step, noised, clean"),
        ({"decoder": "vhs"}, "taehv, wan, none"),
        ({"dtype": "int8"}, "float32"),
        ({"attention": "flush"}, "sdpa"),
        ({"fast": "very"}, "auto, on, off"),
        ({"step": "leap"}, "renoise, euler"),
        ({"kv_noise": 1001.0}, "from 0 to 1000"),
        ({"kv_noise": float("nan")}, "from 0 to 1000"),
        ({"cache": CacheConfig(5, 3)}, "make it 6 or more"),
    ],
)
def test_refused_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **changes)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--kv-noise 100", "--commit noised"),
        ("--kv-noise 100 --commit clean", "--commit noised"),
        ("--chunks 200 --runs 5", "leave out --runs"),
        ("--chunks 200 --frames 81", "leave out --frames"),
        ("--chunks 200 --warmup 2", "leave out --warmup"),
        ("--chunks 20 --size 32x32", "needs 110 chunks"),
        ("--chunks 200 --window all --size 32x32", "give a window"),
        ("--schedule 4,x", "character 3"),
        ("--size 100x100", "multiple of 16"),
        ("--window 5", "must hold the sink"),
        ("--device abacus", "abacus"),
        ("--device meta", "only cpu and cuda"),
        ("--json no/such/folder/x.json", "does not exist"),
        ("--profile no/such/folder/x.json", "does not exist"),
        ("--chunks 200 --profile x.json", "leave out --profile"),
        ("--size 32x32 --memory 12", "not that of 'cpu'"),
    ],
)
def test_refused_options(words: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(options("--preset", "small", *words.split()))


@pytest.mark.parametrize("words", ["--size 832", "--size axb", "--window some", "--runs 0", "--chunks -3", "--batch x"])
def test_options_that_do_not_read(words: str) -> None:
    with pytest.raises((argparse.ArgumentError, SystemExit)):
        options(*words.split())


# -- command line -----------------------------------------------------------------------------------------------------


def test_presets() -> None:
    setting = setting_from(options())
    assert setting == PRESETS["wan-1.3b"]
    assert (setting.width, setting.height, setting.pixel_frames, setting.forwards) == (832, 480, 81, 17)
    assert (setting.commit, setting.decoder, setting.dtype) == ("last-step", "taehv", "bfloat16")
    assert (setting.model, setting.cache) == (WAN, CacheConfig())
    assert setting_from(options("--preset", "wan-14b")).model == WanConfig.wan_14b()
    assert PRESETS["small"].device == "cpu"
    # 81 frames each, but for the minute.
    assert [PRESETS[name].forwards for name in ("self-forcing", "longlive", "wan-2.1", "batch-4")] == [35, 35, 100, 17]
    assert PRESETS["wan-2.1"].chunks == 1 and PRESETS["minute"].pixel_frames == 969
    teras = [
        round((PRESETS[name].work.total - PRESETS[name].work.rest) / TERA) for name in ("self-forcing", "longlive")
    ]
    assert teras == [990, 869]
    assert all(setting.preset == name for name, setting in PRESETS.items())


def test_options_replace_what_the_preset_says() -> None:
    words = "--size 64x32 --frames 40 --schedule 32 --commit noised --kv-noise 50 --window 9 --sink 2 --batch 2"
    words += " --decoder none --dtype float16 --device cpu --attention sdpa"
    setting = setting_from(options(*words.split()))
    assert setting == dataclasses.replace(
        PRESETS["wan-1.3b"],
        width=64,
        height=32,
        latent_frames=11,
        schedule=DiagonalSchedule.parse("32"),
        commit="noised",
        kv_noise=50.0,
        cache=CacheConfig(9, 2),
        batch=2,
        decoder="none",
        dtype="float16",
        device="cpu",
        attention="sdpa",
    )
    assert setting.policy == dataclasses.replace(ContextPolicy.kv_noise(50.0), reuse_last_step=False)
    assert setting_from(options("--window", "all")).cache.window_frames is None
    assert setting_from(options("--chunks", "200")).latent_frames == 600


def test_command_prints_and_saves(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    trace = tmp_path / "trace.json"
    words = f"--preset small --size 32x32 --frames 9 --runs 2 --threads 1 --fast on --json {file} --profile {trace}"
    assert run(options(*words.split())) == 0
    printed = capsys.readouterr()
    report = json.loads(file.read_text())
    assert "traceEvents" in json.loads(trace.read_text())
    assert report["path"]["taken"] == "fast" and 0 < report["work"]["share_of_peak"] < 2
    assert report["breakdown"]["seconds"]["convolutions"] > 0 and "kind of kernel" in printed.out
    assert report["mode"] == "video" and report["runs"] == 2 and report["setting"]["pixel_frames"] == 9
    assert f"{report['seconds']['dit']['median']:.4f}" in printed.out
    assert "run 2 of 2" in printed.err and "run 2 of 2" not in printed.out


# -- GPU, without one -------------------------------------------------------------------------------------------------


def test_on_a_gpu_the_clock_waits_and_memory_is_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def stand_in(name: str, value: int) -> None:
        def call(device: torch.device) -> int:
            assert device.type == "cuda"
            calls.append(name)
            return value

        monkeypatch.setattr(torch.cuda, name, call)

    stand_in("synchronize", 0)
    stand_in("reset_peak_memory_stats", 0)
    stand_in("memory_allocated", 5)
    stand_in("max_memory_allocated", 7)
    meter = Meter(torch.device("cuda"))
    meter.reset_peak()
    assert meter.now() > 0
    assert meter.memory() == Memory(5, 7)
    assert calls == ["reset_peak_memory_stats", "synchronize", "memory_allocated", "max_memory_allocated"]


def test_a_limit_is_set_on_the_chosen_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[tuple[float, int]] = []
    for name, value in (("is_available", True), ("device_count", 1), ("current_device", 0), ("_lazy_init", None)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda.memory, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=int(80e9)))
    monkeypatch.setattr(torch._C, "_cuda_setMemoryFraction", lambda *limit: limits.append(limit), raising=False)
    limit_memory(choose_device(None), int(20e9))
    assert limits == [(0.25, 0)]
    with pytest.raises(ValueError, match="a limit of 90 GB is none"):
        limit_memory(choose_device("cuda"), int(90e9))


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert choose_device(None) == choose_device("cuda") == torch.device("cuda", 1)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match="sees 2 CUDA devices"):
        choose_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(None) == torch.device("cpu")
    with pytest.raises(ValueError, match="no device 'cuda'"):
        choose_device("cuda")
