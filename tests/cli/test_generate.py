"""`generate` end to end: what lands on disk, and what is said."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import av
import pytest
import torch
from safetensors.torch import save_file
from tiny_models import SETTINGS, decode, press_at, random_dit, random_vae, written

from diag_core import SeededNoise, video_reader
from diag_core import generate as sample
from diag_core.attention import sdpa
from diag_core.cli import models as cli_models
from diag_core.cli.plan import _dtype
from diag_core.demo_text import DemoTextEncoder
from diag_core.fast import FastDiT
from diag_core.pictures import to_uint8, write_png
from diag_core.vae import WanVAE


def comment(path: Path) -> dict:
    with av.open(str(path)) as container:
        return json.loads(container.metadata["comment"])


def test_the_file_holds_the_video_that_was_asked_for(generate):
    result = generate(
        "--prompt", "a red 3 moves right", "--out", "a.mp4", "--frames", 30, "--size", "48x32", "--fps", 12, "--seed", 5
    )
    assert result.code == 0, result.err
    with av.open("a.mp4") as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.frames, float(stream.average_rate)) == (48, 32, 30, 12.0)
        assert container.metadata["title"] == "a red 3 moves right"
    said = comment(Path("a.mp4"))
    assert (said["seed"], said["settings"]["schedule"], said["entries"][0][1]) == (5, "21", "a red 3 moves right")
    last = result.out.splitlines()[-1]
    assert re.match(r"a\.mp4: 30 pixel frames in [\d.]+ s, [\d.]+ FPS, [\d.]+ s to the first frame", last)
    assert [path.name for path in Path().iterdir()] == ["a.mp4"]


def test_frames_are_those_of_the_core(generate):
    """The command line adds nothing to the sampler, and decoding and writing chunk by chunk changes nothing."""
    model, vae, encoder = random_dit(), random_vae(), DemoTextEncoder(16, 4096)
    latents = sample(
        model, encoder.encode(["a red 3"]), SETTINGS.diagonal_schedule(), noise=SeededNoise(4), num_latent_frames=8,
        height=4, width=4, cache=SETTINGS.cache(), policy=SETTINGS.policy(), step="euler", cfg=2.0,
        negative=encoder.encode([""]),
    )  # fmt: skip
    assert generate("--prompt", "a red 3", "--seed", 4, "--frames", 28, "--out", "a.mp4").code == 0
    assert torch.equal(decode("a.mp4"), written("expected.mp4", vae.decode(latents)[:, :, :28]))
    assert decode("a.mp4").float().std(0).mean() > 1  # they move


def test_what_is_used_is_said_once_with_its_origin(generate):
    result = generate(
        "--prompt", "a 1", "--prompt", "a 2", "--frames", 41, "--kv-noise", 100, "--reuse-last-step", "--out", "a.mp4"
    )
    lines = {line.split(maxsplit=1)[0]: line for line in result.out.splitlines()}
    assert len([line for line in result.out.splitlines() if line.startswith("schedule")]) == 1
    # Chunks of 2, 1, 1, 1 steps (1000, 100 then 1000 alone): only the first ends at the KV noise.
    assert "21, shift 3: 5 denoising forwards and 3 commits, each twice for guidance  [checkpoint]" in lines["schedule"]
    assert "100 (true timestep 250.0)" in lines["KV"]
    assert "[--kv-noise, --reuse-last-step]" in lines["KV"]
    assert "window 12 latent frames, sink 3, absolute positions  [checkpoint]" in lines["attention"]
    assert "41 pixel frames at 16 FPS (2.56 s): 11 latent frames, 4 chunks" in lines["video"]


def test_progress_is_plain_lines_where_there_is_no_terminal(generate):
    lines = generate("--prompt", "a 1", "--frames", 25, "--out", "a.mp4").err.splitlines()
    assert [line.split()[0] for line in lines] == ["9/25", "21/25", "25/25"]
    assert all(re.search(r"[\d.]+ FPS  first frame [\d.]+ s$", line) and "\r" not in line for line in lines)


@pytest.mark.parametrize(
    ("option", "frames"), [(("--seconds", 2), 33), (("--frames", 2), 2), (("--latent-frames", 5), 17), ((), 81)]
)
def test_length(command, models, option, frames):
    arguments = ("--prompt", "a 1", "--checkpoint", models / "dit.safetensors", "--size", "16x16", "--out", "a.mp4")
    assert command("generate", *arguments, *option).code == 0
    assert len(decode("a.mp4")) == frames


def test_many_prompts_and_seeds_make_numbered_videos(generate):
    Path("prompts.txt").write_text("a red 3 moves right\n\n  a blue 7\n", encoding="utf-8")
    result = generate("--prompt-file", "prompts.txt", "--count", 2, "--seed", 8, "--out", "o/v.mp4")
    assert result.code == 0, result.err
    paths = sorted(Path("o").iterdir())
    assert [path.name for path in paths] == ["v-1.mp4", "v-2.mp4", "v-3.mp4", "v-4.mp4"]
    made = [(said["entries"][0][1], said["seed"]) for said in map(comment, paths)]
    assert made == [("a red 3 moves right", 8), ("a red 3 moves right", 9), ("a blue 7", 8), ("a blue 7", 9)]
    assert not any(torch.equal(decode(a), decode(b)) for a in paths for b in paths if a != b)


def test_videos_are_named_after_prompt_and_seed(generate):
    assert generate("--prompt", "A red 3, moves right!", "--seed", 6).code == 0
    assert generate("--prompt", "A red 3, moves right!", "--seed", 6, "--out", "outputs/").code == 0
    assert sorted(p.name for p in Path("outputs").iterdir()) == [
        "a-red-3-moves-right-6-2.mp4",
        "a-red-3-moves-right-6.mp4",
    ]


def test_nothing_is_overwritten_unless_asked(generate):
    Path("a.mp4").write_bytes(b"mine")
    Path("a-2.part.mp4").write_bytes(b"left by a killed process")
    result = generate("--prompt", "a 1", "--out", "a.mp4")
    assert Path("a.mp4").read_bytes() == b"mine"
    assert len(decode("a-3.mp4")) == 9
    assert "note: a.mp4 is there already: this goes to a-3.mp4 (--overwrite replaces)" in result.err
    assert generate("--prompt", "a 1", "--out", "a.mp4", "--overwrite").code == 0
    assert torch.equal(decode("a.mp4"), decode("a-3.mp4"))


@pytest.mark.parametrize("out", ["frames", "here/"])
def test_a_folder_of_pictures_is_overwritten_when_asked(generate, out):
    """Frames of the longer video before do not remain behind the new ones, nor what a killed process left."""
    arguments = ("--prompt", "a 1", "--png", "--out", out, "--overwrite")
    assert generate(*arguments, "--frames", 21).code == 0
    folder = Path("frames") if out == "frames" else Path("here/a-1-0")
    assert len(list(folder.iterdir())) == 21
    first = (folder / "000001.png").read_bytes()
    (folder / ".000022.png.0123abcd.part").touch()
    result = generate(*arguments, "--frames", 9, "--kv-noise", 100, "--size", "48x32")
    assert result.code == 0, result.err
    assert sorted(path.name for path in folder.iterdir()) == [f"{n:06d}.png" for n in range(1, 10)]
    assert (folder / "000001.png").read_bytes() != first
    assert len(list(Path().rglob("*.png"))) == 9  # and none elsewhere


def test_pictures_stay_until_the_first_new_one_comes(generate, monkeypatch):
    arguments = ("--prompt", "a 1", "--png", "--out", "frames", "--overwrite")
    assert generate(*arguments).code == 0
    with monkeypatch.context() as patch:
        press_at(patch, 0)
        assert generate(*arguments, "--frames", 5).code == 130
    assert len(list(Path("frames").iterdir())) == 9


def test_a_timeline_switches_at_its_time(generate):
    Path("t.txt").write_text("0s: a red 3\n1.25s: a blue 7\n", encoding="utf-8")
    assert generate("--timeline", "@t.txt", "--frames", 45, "--out", "both.mp4").code == 0
    assert generate("--timeline", "0s: a red 3", "--frames", 45, "--out", "one.mp4").code == 0
    both, one = decode("both.mp4"), decode("one.mp4")
    # 1.25 s is pixel frame 20, in latent frame 5: the chunk of latent frames 6 to 8 takes it, from pixel frame 21 on.
    assert torch.equal(both[:21], one[:21])
    assert not torch.equal(both[21:], one[21:])
    with av.open("both.mp4") as container:
        assert container.metadata["title"] == "0s: a red 3; 1.25s: a blue 7"


def test_switch_options_change_what_follows_a_switch(generate):
    def frames(*options: object) -> torch.Tensor:
        timeline = ("--timeline", "0c: a red 3; 3c: a blue 7", "--frames", 57)
        assert generate(*timeline, "--out", "a.mp4", "--overwrite", *options).code == 0
        return decode("a.mp4")

    variants = [frames(), frames("--recache", "off"), frames("--recache", "joint"), frames("--recache-sink"),
                frames("--blend-chunks", 2), frames("--schedule", "21 @ 3")]  # fmt: skip
    for i, a in enumerate(variants):
        for b in variants[:i]:
            assert torch.equal(a[:33], b[:33])
            assert not torch.equal(a, b)


def test_an_image_begins_the_video(generate):
    image = to_uint8(torch.rand(1, 3, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1)[0]
    write_png("i.png", image)
    vae = random_vae()
    pixels = image.permute(2, 0, 1)[None, :, None] / 127.5 - 1
    result = generate("--prompt", "a 1", "--image", "i.png", "--out", "frame.mp4", "--frames", 21)
    assert result.code == 0, result.err
    assert "1 of the pixel frames given" in result.out
    assert "note: the first given latent frame stands alone" in result.err  # the sampler's warning, as a line
    assert torch.equal(decode("frame.mp4")[:1], written("expected.mp4", vae.decode(vae.encode(pixels))))

    result = generate("--prompt", "a 1", "--image", "i.png", "--image-mode", "repeat", "--out", "r.mp4", "--frames", 21)
    assert "9 of the pixel frames given" in result.out
    assert "note" not in result.err
    repeated = pixels.expand(-1, -1, 9, -1, -1)
    assert torch.equal(decode("r.mp4")[:9], written("expected.mp4", vae.decode(vae.encode(repeated))))
    assert not torch.equal(decode("r.mp4")[9:], decode("frame.mp4")[9:])


def test_a_video_goes_on_from_the_last_frames_of_another(generate):
    assert generate("--prompt", "a 1", "--seed", 3, "--frames", 61, "--out", "a.mp4").code == 0
    result = generate("--prompt", "a 2", "--video", "a.mp4", "--frames", 81, "--out", "b.mp4")
    assert result.code == 0, result.err
    assert "45 of the pixel frames given" in result.out  # 12 latent frames, the window
    vae, last = random_vae(), decode("a.mp4")[-45:]
    pixels = last.permute(3, 0, 1, 2)[None] / 127.5 - 1
    assert torch.equal(decode("b.mp4")[:45], written("expected.mp4", vae.decode(vae.encode(pixels))))
    assert len(decode("b.mp4")) == 81
    too_short = generate("--prompt", "a 2", "--video", "a.mp4", "--frames", 9, "--out", "c.mp4")
    assert too_short.code == 2 and "12 given latent frames count too" in too_short.err
    assert generate("--prompt", "a 2", "--video", "i.png", "--out", "c.mp4").code == 2


def test_a_long_video_to_go_on_from_is_not_kept_in_memory(generate, monkeypatch):
    assert generate("--prompt", "a 1", "--frames", 81, "--out", "a.mp4").code == 0
    alive = most = decoded = 0

    class Frame:
        def __init__(self, frame):
            nonlocal alive, most, decoded
            self.frame = frame
            alive, decoded = alive + 1, decoded + 1
            most = max(most, alive)

        def __del__(self):
            nonlocal alive
            alive -= 1

        def to_ndarray(self, **options):
            return self.frame.to_ndarray(**options)

    class Counting:
        """A container whose decoded frames are counted as long as anyone holds them."""

        def __init__(self, container):
            self.container = container

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.container.close()

        def decode(self, **options):
            return map(Frame, self.container.decode(**options))

    def open_counting(file, mode="r", **options):
        container = av.open(file, mode, **options)
        return Counting(container) if mode == "r" else container

    stand_in = SimpleNamespace(open=open_counting, error=av.error, VideoFrame=av.VideoFrame, Packet=av.Packet)
    monkeypatch.setattr(video_reader, "import_av", lambda: stand_in)
    result = generate("--prompt", "a 2", "--video", "a.mp4", "--window", 6, "--frames", 33, "--out", "b.mp4")
    assert result.code == 0, result.err
    assert "21 of the pixel frames given" in result.out
    assert decoded == 2 * 81  # counted, then read
    assert 21 <= most <= 23 and alive == 0


def test_the_same_seed_gives_the_same_video(generate):
    for name, seed in (("a.mp4", 3), ("b.mp4", 3), ("c.mp4", 4)):
        assert generate("--prompt", "a 1", "--seed", seed, "--out", name).code == 0
    assert torch.equal(decode("a.mp4"), decode("b.mp4"))
    assert not torch.equal(decode("a.mp4"), decode("c.mp4"))


@pytest.mark.parametrize(
    "options",
    [("--negative", "a blue 7"), ("--cfg", 1), ("--step", "renoise"), ("--shift", 8), ("--schedule", "3"),
     ("--kv-noise", 400), ("--window", 6, "--sink", 0), ("--chunk-frames", 2)],
    ids=lambda options: options[0],
)  # fmt: skip
def test_every_sampling_option_reaches_the_sampler(generate, options):
    assert generate("--prompt", "a 1", "--frames", 45, "--out", "a.mp4").code == 0
    assert generate("--prompt", "a 1", "--frames", 45, "--out", "b.mp4", *options).code == 0
    assert not torch.equal(decode("a.mp4"), decode("b.mp4"))


def test_relative_positions_and_a_window_of_all(generate):
    assert generate("--prompt", "a 1", "--frames", 69, "--out", "a.mp4", "--positions", "relative").code == 0
    assert generate("--prompt", "a 1", "--frames", 69, "--out", "b.mp4", "--window", "all").code == 0
    assert generate("--prompt", "a 1", "--frames", 69, "--out", "c.mp4").code == 0
    a, b, c = decode("a.mp4"), decode("b.mp4"), decode("c.mp4")
    assert torch.equal(a[:45], c[:45])
    assert torch.equal(b[:45], c[:45])  # 12 latent frames: nothing has left the window yet
    assert not torch.equal(a, c)
    assert not torch.equal(b, c)


def test_a_bidirectional_preset_samples_the_whole_video_at_once(generate):
    result = generate(
        "--prompt", "a 1", "--preset", "wan", "--negative", "", "--schedule", "3", "--frames", 21, "--window", 9
    )
    assert result.code == 0, result.err
    assert "6 latent frames, 1 chunk" in result.out
    assert "3 denoising forwards, each twice for guidance  [--schedule, preset wan]" in result.out
    assert "note: --window: no effect on a model that makes the whole video at once" in result.err


def test_the_text_encoder_goes_to_the_cpu_where_the_card_is_too_small(monkeypatch):
    where = []
    monkeypatch.setattr(cli_models.UMT5Encoder, "load", lambda path, *, device: where.append(str(device)))
    for free in (24e9, 8e9):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (int(free), int(24e9)))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            cli_models.umt5_encoder(Path("umt5"), None, device=torch.device("cuda"))
    assert where == ["cuda", "cpu"]
    assert "8.0 GB free" in str(said[0].message) and "--embedding-cache" in str(said[0].message)


def test_effectless_options_are_pointed_out(generate):
    result = generate("--timeline", "0s: a 1; 9s: a 2", "--cfg", 1, "--negative", "x", "--out", "a.mp4")
    assert "note: the video ends before the prompt at 9s" in result.err
    assert "note: --negative has no effect without guidance" in result.err


def test_a_checkpoint_for_umt5_with_a_wan_vae(generate, models, monkeypatch):
    """Prompts are encoded before the model is loaded, each once, and kept on disk for the next time."""
    encoded: list[str] = []
    loaded_before: list[bool] = []

    class Encoder:
        @classmethod
        def load(cls, path, **_):
            loaded_before.append("model" in order)
            return cls()

        def encode(self, prompts: list[str]) -> torch.Tensor:
            encoded.extend(prompts)
            return DemoTextEncoder(16, 4096).encode(prompts)

    order: list[str] = []
    load_dit = cli_models.load_dit
    monkeypatch.setattr(cli_models, "UMT5Encoder", Encoder)
    monkeypatch.setattr(cli_models, "load_dit", lambda *a, **k: (order.append("model"), load_dit(*a, **k))[1])
    torch.manual_seed(0)
    torch.save(WanVAE(dim=8).state_dict(), "wan_vae.pth")
    Path("umt5.safetensors").write_bytes(b"weights of the encoder")
    arguments = (
        "--checkpoint", models / "bare.safetensors", "--preset", "diagdistill", "--prompt", "a 1", "--prompt", "a 1",
        "--vae", "wan_vae.pth", "--text-encoder", "umt5.safetensors", "--frames", 10,
    )  # fmt: skip
    for _ in range(2):
        result = generate(*arguments, "--embedding-cache", "cache")
        assert result.code == 0, result.err
    assert encoded == ["a 1"]
    assert loaded_before == [False]
    assert len(list(Path("cache").iterdir())) == 1
    assert generate(*arguments).code == 0
    assert encoded == ["a 1", "a 1"]
    assert len(decode(next(Path("outputs").iterdir()))) == 10


def test_a_lora_changes_the_video_by_its_strength(generate):
    rank = torch.Generator().manual_seed(0)
    save_file(
        {
            "blocks.0.self_attn.q.lora_A.weight": torch.randn(4, 128, generator=rank),
            "blocks.0.self_attn.q.lora_B.weight": torch.randn(128, 4, generator=rank),
            "blocks.0.ffn.2.lora_A.weight": torch.randn(4, 64, generator=rank),
            "blocks.0.ffn.2.lora_B.weight": torch.randn(128, 4, generator=rank),
        },
        "lora.safetensors",
    )
    assert generate("--prompt", "a 1", "--out", "none.mp4").code == 0
    for strength in ("0", "0.5", "1"):
        options = ("--lora", "lora.safetensors", "--lora-strength", strength, "--out", f"{strength}.mp4")
        assert generate("--prompt", "a 1", *options).code == 0
    none, zero, half, whole = (decode(f"{name}.mp4") for name in ("none", "0", "0.5", "1"))
    assert torch.equal(none, zero)
    assert not torch.equal(none, whole)
    assert not torch.equal(half, whole)


def test_the_attention_back_end_is_the_one_asked_for(generate, monkeypatch):
    asked, used = [], []

    def backend(name: str):
        asked.append(name)
        return lambda *arguments: (used.append(1), sdpa(*arguments))[1]

    monkeypatch.setattr(cli_models, "attention_backend", backend)
    assert generate("--prompt", "a 1", "--attention", "sdpa").code == 0
    assert asked == ["sdpa"]
    assert used


def test_the_fast_path_makes_the_same_video(generate, monkeypatch):
    used = []
    forward = FastDiT.__call__
    monkeypatch.setattr(
        FastDiT, "__call__", lambda self, *args, **named: (used.append(1), forward(self, *args, **named))[1]
    )
    assert generate("--prompt", "a 1", "--fast", "off", "--out", "a.mp4").code == 0
    assert generate("--prompt", "a 1", "--out", "b.mp4").code == 0  # on a CPU
    assert not used
    assert generate("--prompt", "a 1", "--fast", "on", "--out", "c.mp4").code == 0
    assert used
    assert (decode("a.mp4").int() - decode("c.mp4").int()).abs().max() <= 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(generate, dtype):
    assert generate("--prompt", "a 1", "--dtype", dtype, "--out", "a.mp4").code == 0
    assert generate("--prompt", "a 1", "--out", "b.mp4").code == 0
    difference = (decode("a.mp4").int() - decode("b.mp4").int()).abs().float().mean()
    assert 0 < difference < 40


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "float16"), ((8, 0), "bfloat16"), ((12, 0), "bfloat16")])
def test_a_card_computes_in_what_it_has(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    for device in ("cuda", "cuda:1"):
        assert _dtype(None, torch.device(device)) is getattr(torch, expected)
    assert _dtype("float32", torch.device("cuda")) is torch.float32
    assert _dtype(None, torch.device("cpu")) is torch.float32
