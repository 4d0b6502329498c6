"""The stages of Wan's size end to end, on small random weights in each published layout."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from saved_states import saved_weights
from wan_models import CONFIG, PROMPTS, random_dit, write_layouts, write_text_encoder

from diag_core.checkpoint import load_dit, load_tensors
from diag_core.cli import main as diag_core_main
from diag_core.cli.models import load_vae
from diag_core.settings import PRESETS, WAN_NEGATIVE_PROMPT
from diag_core.text import UMT5Encoder
from diag_core.vae import TinyVAE, TinyVAEConfig
from training.__main__ import main
from training.logbook import read_log
from training.metrics import pixel_health
from training.recipes.wan import ode_init, stage2
from training.wan.embeddings import Embeddings
from training.wan.pairs import PairsOnDisk
from training.wan.setup import Setup
from training.wan.stages import sampled_as

pytestmark = pytest.mark.filterwarnings("ignore:ComfyUI will misread")  # the small width of its text
SMALL = ["video.width=32", "video.height=32", "video.latent_frames=6"]
LOOP = ["steps=2", "batch=2", "save_every=1", "log_every=1", "generator_every=1"]


class World:
    """Files, and the stages as functions."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "out"
        self.layouts = write_layouts(folder)
        self.text_encoder = write_text_encoder(folder / "umt5")
        self.prompts = folder / "prompts.txt"
        self.prompts.write_text("\n".join(PROMPTS), encoding="utf-8")
        self.embeddings = folder / "embeddings"

    def embed(self, *more: str) -> int:
        return main(
            ["embed", "--prompts", str(self.prompts), "--text-encoder", str(self.text_encoder), "--out",
             str(self.embeddings), "--shard-size", "2", "--device", "cpu", *more]
        )  # fmt: skip

    def stage(
        self, name: str, generator: Path, *more: str, out: Path | None = None, teacher: Path | None = None
    ) -> int:
        files = ["--generator", str(generator), "--teacher", str(teacher or self.layouts["original"])]
        fields = SMALL if name == "ode-pairs" else [*SMALL, *LOOP]
        if name == "ode-init":
            fields.remove("generator_every=1")
        given = [text.split("=")[0] for text in more]
        fields = [field for field in fields if field.split("=")[0] not in given]
        return main(
            [name, *files, "--embeddings", str(self.embeddings), "--out", str(out or self.out), "--device", "cpu",
             *fields, *more]
        )  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """After all stages from embed to stage 2."""
    made = World(tmp_path_factory.mktemp("wan"))
    assert made.embed() == 0
    pairs = ["steps=4", "shards=2", "pairs_a_shard=2", "points=1000,750,500"]
    assert made.stage("ode-pairs", made.layouts["self_forcing"], *pairs) == 0
    assert made.stage("ode-init", made.layouts["self_forcing"]) == 0
    assert made.stage("stage1", made.out / "ode_init.safetensors") == 0
    assert made.stage("stage2", made.out / "stage1.safetensors") == 0
    return made


def test_embeddings_are_the_encoders(world: World) -> None:
    encoder = UMT5Encoder.load(world.text_encoder)
    found = Embeddings(world.embeddings)
    assert found.prompts == list(PROMPTS) and found.negative == WAN_NEGATIVE_PROMPT
    order = [PROMPTS[2], WAN_NEGATIVE_PROMPT, PROMPTS[0]]
    assert torch.equal(found.encode(order), encoder.encode(order))
    shapes = [file.shape for file in load_file(world.embeddings / "prompts_00000.safetensors").values()]
    assert all(shape[0] < 64 and shape[1] == 32 for shape in shapes)  # their own tokens alone


def test_every_stage_says_how_its_result_is_sampled(world: World) -> None:
    for name, schedule in (("ode_init", "4"), ("stage1", "4"), ("stage2", "4322222")):
        loaded = load_dit(world.out / f"{name}.safetensors")
        assert loaded.settings is not None and loaded.settings.schedule == schedule and loaded.config == CONFIG
        assert (loaded.settings.kv_noise, loaded.settings.causal, loaded.settings.text_encoder) == (100, True, "umt5")
        assert loaded.settings.license == "Apache-2.0"  # Wan's, from the first stage on
        assert next(loaded.model.parameters()).dtype == torch.float32
    first, last = (load_file(world.out / f"{name}.safetensors") for name in ("ode_init", "stage2"))
    assert any(not torch.equal(first[name], last[name]) for name in first)


@pytest.mark.parametrize("layout", ["original", "comfyui", "self_forcing", "causvid", "longlive", "diffusers"])
def test_any_layout_goes_all_the_way_and_gives_the_same(world: World, tmp_path: Path, layout: str) -> None:
    """From cached embeddings to a video; teacher and student are read from the layout, by every stage that can."""
    path = world.layouts[layout]
    pairs = ["steps=3", "shards=1", "pairs_a_shard=2", "points=1000,750,500"]
    assert world.stage("ode-pairs", path, *pairs, out=tmp_path, teacher=path) == 0
    assert world.stage("ode-init", path, "steps=1", out=tmp_path) == 0
    assert world.stage("stage1", path, "steps=1", out=tmp_path / "direct", teacher=path) == 0
    for name, before in (("stage1", "ode_init"), ("stage2", "stage1")):
        student = tmp_path / f"{before}.safetensors"
        assert world.stage(name, student, "steps=1", "learning_rate=1e-3", out=tmp_path, teacher=path) == 0
    made = {}
    for name in ("ode_init", "stage1", "stage2", "direct/stage1"):
        made |= {f"{name}.{key}": tensor for key, tensor in load_file(tmp_path / f"{name}.safetensors").items()}
    expected = world.folder / "expected.safetensors"
    if not expected.exists():
        save_file(made, expected)
    assert all(torch.equal(tensor, made[name]) for name, tensor in load_file(expected).items())
    export_and_generate(world, tmp_path, tmp_path / "student.safetensors")


def test_stage_2_goes_on_with_the_critic_of_stage_1(world: World, tmp_path: Path, capsys) -> None:
    critic, teacher = world.out / "stage1.critic.safetensors", world.layouts["original"]
    loaded, begun = load_dit(critic), load_dit(teacher)
    trained = saved_weights(world.out / "stage1", "critic")
    assert all(torch.equal(tensor, trained[name].bfloat16()) for name, tensor in loaded.model.state_dict().items())
    assert loaded.config == begun.config and loaded.model.dtype == torch.bfloat16
    before = {name: tensor.bfloat16() for name, tensor in begun.model.state_dict().items()}
    assert any(not torch.equal(before[name], tensor) for name, tensor in loaded.model.state_dict().items())
    assert not (world.out / "stage2.critic.safetensors").exists()

    def named(*more: str, stage: str = "stage2") -> str:
        assert world.stage(stage, world.out / "stage1.safetensors", "--dry-run", *more, out=tmp_path) == 0
        return next(line for line in capsys.readouterr().out.splitlines() if "critic: " in line)

    assert str(critic) in named() and str(teacher) in named("--critic", str(teacher))
    assert "begins as the teacher" in named(stage="stage1")

    def student(*more: str) -> dict[str, torch.Tensor]:
        out = tmp_path / str(len(more))
        fields = ["steps=1", "learning_rate=1e-3"]
        assert world.stage("stage2", world.out / "stage1.safetensors", *fields, *more, out=out) == 0
        return load_file(out / "stage2.safetensors")

    own, same, other = student(), student("--critic", str(critic)), student("--critic", str(teacher), "ema=0.99")
    assert all(torch.equal(own[name], same[name]) for name in own)
    assert any(not torch.equal(own[name], other[name]) for name in own)


@pytest.mark.parametrize(
    ("stage", "begun_as", "lora", "license"),
    [
        ("ode-init", None, False, "Apache-2.0"),
        ("ode-init", PRESETS["wan"], False, "Apache-2.0"),
        ("ode-init", PRESETS["longlive"], False, ""),
        ("ode-init", None, True, ""),
        ("stage2", replace(PRESETS["longlive"], license="MIT"), False, "MIT"),
        ("stage2", replace(PRESETS["longlive"], license="MIT"), True, ""),
        ("stage2", None, False, ""),
    ],
)
def test_a_result_says_the_licence_of_what_it_began_as(stage: str, begun_as, lora: bool, license: str) -> None:
    made = {"ode-init": ode_init, "stage2": stage2}[stage]()
    other = Path("other.safetensors") if lora else None
    setup = Setup(stage=stage, recipe=made, out=Path(), embeddings=None, generator_lora=other)
    assert sampled_as(setup, begun_as).license == license


def test_stage2_straight_from_longlive(world: World, tmp_path: Path) -> None:
    shutil.copy(world.layouts["longlive"], base := tmp_path / "longlive_base.pt")  # known by its name
    assert world.stage("stage2", base, "steps=1", out=tmp_path) == 0
    settings = load_dit(tmp_path / "stage2.safetensors").settings
    assert settings.schedule == "4322222" and settings.license == ""  # nobody knows what that file stands under


def test_a_stopped_run_goes_on_and_a_finished_one_is_left(world: World, tmp_path: Path) -> None:
    before = (world.out / "stage1.safetensors").stat().st_mtime_ns
    assert world.stage("stage1", world.out / "ode_init.safetensors") == 0
    assert (world.out / "stage1.safetensors").stat().st_mtime_ns == before
    assert world.embed() == 0  # nothing to do, and the encoder is not needed


def test_saved_states_are_as_large_as_the_disk_is_asked_for(world: World) -> None:
    count = sum(p.numel() for p in random_dit().parameters())
    for stage, bytes_a_weight in (("ode_init", 16), ("stage1", 28)):
        files = (world.out / stage / "checkpoints").glob("step_*/*")
        assert sum(file.stat().st_size for file in files) == pytest.approx(2 * bytes_a_weight * count, rel=0.1)


def test_a_run_is_ended_early_and_goes_on_later(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start, result = world.out / "ode_init.safetensors", tmp_path / "cut" / "stage1.safetensors"
    assert world.stage("stage1", start, "steps=3", out=tmp_path / "cut") == 0
    whole = result.read_bytes()
    result.unlink()
    assert world.stage("stage1", start, "steps=2", out=tmp_path / "cut") == 0  # of which there is a saved state
    assert result.read_bytes() == (world.out / "stage1.safetensors").read_bytes()
    assert world.stage("stage1", start, "steps=3", out=tmp_path / "cut") == 2
    told = capsys.readouterr().err
    assert f"steps was 2, now it is 3. Go on with what it was begun with, or delete {result} to go on from" in told
    result.unlink()
    assert world.stage("stage1", start, "steps=3", out=tmp_path / "cut") == 0
    assert result.read_bytes() == whole
    # What pairs are depends on how many steps a trajectory has.
    assert world.stage("ode-pairs", start, "steps=5", "shards=2", "pairs_a_shard=2", "points=1000,750,500") == 2
    assert (
        "steps was 4, now it is 5. Go on with what it was begun with, or delete the folder" in capsys.readouterr().err
    )


def test_a_stage_that_needs_less_memory_goes_on_where_it_was(world: World, tmp_path: Path) -> None:
    start, result = world.out / "ode_init.safetensors", tmp_path / "stage1.safetensors"
    assert world.stage("stage1", start, "steps=1", "micro_batch=2", "checkpointing=false", out=tmp_path) == 0
    result.unlink()
    assert world.stage("stage1", start, "micro_batch=1", "checkpointing=true", "attention=sdpa", out=tmp_path) == 0
    for mine, theirs in zip(read_log(tmp_path / "stage1"), read_log(world.out / "stage1"), strict=True):
        assert mine == pytest.approx(theirs, rel=0.02)
    pairs = ["steps=4", "pairs_a_shard=2", "points=1000,750,500"]
    for changes in (["shards=1", "batch=2"], ["shards=2", "batch=1"]):
        assert world.stage("ode-pairs", world.layouts["original"], *pairs, *changes, out=tmp_path) == 0
    for name in ("pairs_0000.safetensors", "pairs_0001.safetensors"):
        own, other = (load_file(out / "ode_pairs" / name)["points"] for out in (tmp_path, world.out))
        assert torch.allclose(own.float(), other.float(), atol=0.02)


def test_the_shards_of_pairs_can_be_shared_out(world: World, tmp_path: Path) -> None:
    whole = PairsOnDisk(world.out / "ode_pairs")
    assert whole.points.shape == (4, 4, 16, 6, 4, 4)
    rows = whole.points[torch.tensor([3, 0])]
    last = load_file(world.out / "ode_pairs" / "pairs_0001.safetensors")["points"][1]
    assert rows.shape == (2, 4, 16, 6, 4, 4) and torch.equal(rows[0], last)
    pairs = ["steps=4", "shards=2", "pairs_a_shard=2", "points=1000,750,500"]
    for part in ("1/2", "0/2"):
        assert world.stage("ode-pairs", world.layouts["original"], *pairs, "--part", part, out=tmp_path) == 0
    for name in ("pairs_0000.safetensors", "pairs_0001.safetensors"):
        own = load_file(tmp_path / "ode_pairs" / name)["points"]
        assert torch.equal(own, load_file(world.out / "ode_pairs" / name)["points"])


def test_ode_init_takes_all_pairs_and_always_the_same(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = world.layouts["original"]

    def pairs(shards: int, out: Path) -> Path:
        fields = ["steps=4", f"shards={shards}", "pairs_a_shard=2", "points=1000,750,500"]
        assert world.stage("ode-pairs", model, *fields, out=out) == 0
        return out / "ode_pairs"

    def refused(*more: str) -> str:
        capsys.readouterr()
        assert world.stage("ode-init", model, *more, out=tmp_path) == 2
        return capsys.readouterr().err

    folder = pairs(3, tmp_path)
    (folder / "pairs_0001.safetensors").unlink()  # as if ode-pairs had been stopped
    assert "1 of its shards are not made yet, such as pairs_0001.safetensors" in (told := refused())
    assert "Run ode-pairs again, which goes on, or with shards=1 to train on those that are there" in told
    assert not (tmp_path / "ode_init").exists()
    pairs(1, tmp_path)
    assert not (folder / "pairs_0001.safetensors").exists()
    assert world.stage("ode-init", model, "steps=1", out=tmp_path) == 0
    (tmp_path / "ode_init.safetensors").unlink()
    assert "was begun with other inputs: pairs was" in refused("--pairs", str(pairs(2, tmp_path / "other")))
    pairs(3, tmp_path)
    assert "was begun with other inputs: pairs was" in refused()


def export_and_generate(world: World, result: Path, file: Path) -> None:
    """The checkpoint `file` of a stage's output folder, and a video beside it."""
    with pytest.warns(UserWarning, match="ComfyUI will misread"):  # of the small width of its text
        assert main(["export", str(result), "--out", str(file)]) == 0
    vae, video = file.with_name("taew2_1.safetensors"), file.with_suffix(".mp4")
    save_file(TinyVAE(TinyVAEConfig(patch_size=1)).state_dict(), vae)
    code = diag_core_main(
        ["generate", "--checkpoint", str(file), "--vae", str(vae), "--text-encoder", str(world.text_encoder),
         "--prompt", PROMPTS[0], "--size", "32x32", "--frames", "9", "--out", str(video)]
    )  # fmt: skip
    assert code == 0 and video.stat().st_size > 0


def test_an_exported_checkpoint_says_how_it_is_sampled(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "student.safetensors"
    export_and_generate(world, world.out, file)
    told = capsys.readouterr().out.splitlines()[0]  # of the export; then the video's
    assert told.startswith(f"{world.out / 'stage2.safetensors'} -> {file}: ")
    assert told.endswith("schedule 4322222, shift 5, KV noise 100")
    with safe_open(str(file), framework="pt") as opened:
        metadata = opened.metadata()
        assert opened.get_tensor("patch_embedding.weight").dtype == torch.bfloat16
        assert set(opened.keys()) == set(random_dit().state_dict())  # original keys, no prefix
    assert json.loads(metadata["config"]) == {"transformer": {"causal_ar": True}}
    assert json.loads(metadata["diagdistill"])["settings"]["title"] == "Wan 2.1, stage 2"


def test_an_export_says_which_stages_are_not_finished(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(world.out / "stage1.safetensors", tmp_path)
    for stage in ("stage1", "stage2"):
        (tmp_path / stage).mkdir()
        shutil.copy(world.out / stage / "recipe.json", tmp_path / stage)
    file = tmp_path / "student.safetensors"
    assert main(["export", str(tmp_path), "--out", str(file)]) == 0
    taken, unfinished = capsys.readouterr().out.splitlines()
    assert taken.startswith(f"{tmp_path / 'stage1.safetensors'} -> {file}: ")
    assert unfinished.startswith(f"{tmp_path / 'stage2'} has begun and is not finished")
    assert main(["export", str(tmp_path / "stage1.safetensors"), "--out", str(file), "--overwrite"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1  # which was asked for by name


@pytest.mark.parametrize("alpha", [0.0, 2.0])
def test_a_lora_is_trained_alone_and_exported(world: World, tmp_path: Path, alpha: float) -> None:
    base = world.out / "ode_init.safetensors"
    lora = ["lora.rank=4", f"lora.alpha={alpha}", "lora.targets=self_attn.q,ffn.0", "learning_rate=0.1", "ema=0"]
    assert world.stage("stage1", base, *lora, "weights_precision=fp32", out=tmp_path) == 0
    file = tmp_path / "lora.safetensors"
    assert main(["export", str(tmp_path / "stage1.safetensors"), "--out", str(file), "--lora", "--dtype", "fp32"]) == 0
    tensors = load_file(file)
    parts = ("lora_A.weight", "lora_B.weight", *(("alpha",) if alpha else ()))
    modules = ("self_attn.q", "ffn.0")
    assert set(tensors) == {f"diffusion_model.blocks.0.{module}.{part}" for module in modules for part in parts}
    assert tensors["diffusion_model.blocks.0.ffn.0.lora_A.weight"].shape == (4, 128)
    assert tensors["diffusion_model.blocks.0.ffn.0.lora_B.weight"].abs().max() > 0
    # Merged by the loader that everyone's LoRA goes through, it is the result; other weights are as they were.
    expected = load_tensors(base, dtype=torch.float32, lora=file).tensors
    result = load_file(tmp_path / "stage1.safetensors")
    assert all(torch.allclose(result[name], tensor, atol=1e-6) for name, tensor in expected.items())
    assert not torch.equal(result["blocks.0.ffn.0.weight"], load_file(base)["blocks.0.ffn.0.weight"])
    # So is the critic, whose LoRA is in its saved state alone.
    kept = saved_weights(tmp_path / "stage1", "critic")
    down, up = (kept[f"blocks.0.ffn.0.lora_{part}.default.weight"].float() for part in "AB")
    assert up.abs().max() > 0
    merged = kept["blocks.0.ffn.0.base_layer.weight"].float() + (alpha or 4) / 4 * up @ down
    critic = load_file(tmp_path / "stage1.critic.safetensors")["blocks.0.ffn.0.weight"]
    torch.testing.assert_close(critic, merged.bfloat16())


def test_sample_videos(world: World, tmp_path: Path) -> None:
    vae = tmp_path / "taew2_1.safetensors"
    save_file(TinyVAE(TinyVAEConfig(patch_size=1)).state_dict(), vae)
    health = [f"limits.{name}" for name in ("static=0", "flashing=1e9", "saturated=1e9", "washed_out=0", "harsh=1e9")]
    more = ["--vae", str(vae), "sample_every=2", "sample_prompts=1", *health]
    assert world.stage("stage1", world.layouts["original"], *more, out=tmp_path) == 0
    pairs = ("--pairs", str(world.out / "ode_pairs"))
    assert world.stage("ode-init", world.layouts["original"], *more, *pairs, out=tmp_path) == 0
    for stage in ("stage1", "ode_init"):
        made = {path.name for path in (tmp_path / stage / "samples").glob("*.mp4")}
        assert made == {"teacher.mp4", "step_000002.mp4"}
    # ODE initialisation has no teacher: it shows the ends of the teacher's trajectories.
    ends = PairsOnDisk(world.out / "ode_pairs").points[torch.tensor([0])][:, -1]
    pixels = load_vae(vae, dtype=torch.float32, device=torch.device("cpu")).decode(ends.float())
    assert json.loads((tmp_path / "ode_init" / "teacher.json").read_text()) == pytest.approx(pixel_health(pixels))
