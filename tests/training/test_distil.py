"""Who is trained by what, and the same weights after a kill."""

from __future__ import annotations

import copy
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diag_core import SeededNoise, WanConfig, WanDiT, generate
from diag_core.checkpoint import PRESETS, CheckpointSettings, LoadedCheckpoint
from diag_core.fast.compilation import cpp_compiler
from training.checkpoint import newest
from training.distribution_matching import NoiseLaw, estimates
from training.logbook import read_log
from training.losses import LossWeights
from training.recipes.distillation import DistilRecipe
from training.recipes.moving_digits import cpu
from training.roles import Roles
from training.stages.distil import Distil, Draw
from training.stages.moving_digits import draw_prompts as draw_digits
from training.stages.ode_init import OdeInit
from training.stages.ode_pairs import OdePairs
from training.trainer import train

WAN = WanConfig(dim=32, ffn_dim=48, num_heads=2, num_layers=2, in_dim=4, out_dim=4, freq_dim=16, text_dim=8, text_len=5)
SHAPE = (4, 6, 4, 4)
RECIPE = DistilRecipe(
    steps=6, batch=2, generator_every=2, learning_rate=1e-3, critic_learning_rate=1e-3, schedule="32",
    regression_schedule="3", precision="fp32",
)  # fmt: skip
STAGE1 = replace(RECIPE.settings(), schedule="2")


def encode(prompts: list[str]) -> Tensor:
    return torch.stack([torch.randn(5, 8, generator=torch.Generator().manual_seed(len(p))) for p in prompts])


def draw_prompts(rng: np.random.Generator, count: int) -> list[str]:
    return ["x" * int(n) for n in rng.integers(1, 40, size=count)]


def model(config: WanConfig, seed: int) -> WanDiT:
    torch.manual_seed(seed)
    return WanDiT(config).requires_grad_(False)


def frozen(own: WanDiT, settings: CheckpointSettings | None = STAGE1) -> LoadedCheckpoint:
    return LoadedCheckpoint(own, own.config, settings)


def task(recipe: DistilRecipe = RECIPE, **changes: Any) -> Distil:
    roles = Roles(model(WAN, 0), model(WAN, 1), model(WAN, 2), frozen(model(WAN, 3)))
    return Distil(recipe, replace(roles, **changes), draw_prompts=draw_prompts, encode=encode, shape=SHAPE)


def weights(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(module.state_dict())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_who_is_trained_when() -> None:
    own = task()
    roles = own.roles
    assert roles.regression is not None
    everyone = (roles.generator, roles.fake_score, roles.real_score, roles.regression.model)

    def changed(step: int) -> tuple[list[bool], set[str]]:
        before = [weights(m) for m in everyone]
        values = own.update(step)
        return [not same(b, m.state_dict()) for b, m in zip(before, everyone, strict=True)], set(values)

    generator = {"generator", "dmd", "flow", "flow_regression", "generator_norm"}
    assert changed(0) == ([True, True, False, False], generator | {"critic", "critic_norm"})
    assert changed(1) == ([False, True, False, False], {"critic", "critic_norm"})
    assert changed(2)[0] == [True, True, False, False]
    assert own.ema.updates == 2


def test_the_students_average_begins_when_the_recipe_says() -> None:
    copies = []
    for start in (0, 1):
        own = task(replace(RECIPE, ema_start=start))
        own.update_generator(0)
        copies.append(same(own.ema.state_dict(), weights(own.generator)))
    assert copies == [False, True]


def test_a_student_that_is_the_teacher_feels_no_pull_of_its_distribution() -> None:
    recipe = replace(RECIPE, weights=LossWeights(gamma=0.0), cfg=1.0, critic_learning_rate=1e-30)
    own = task(recipe, real_score=model(WAN, 1), fake_score=model(WAN, 1), regression=None)
    before = weights(own.generator)
    values = own.update(0)
    assert values["dmd"].item() == 0 and values["generator_norm"].item() == 0
    moved = max((before[n] - p).abs().max().item() for n, p in own.generator.state_dict().items())
    assert moved < 1e-3 * 0.011  # weight decay alone


@pytest.mark.parametrize("lists", ["", "1000,100"])
def test_the_frozen_student_is_sampled_as_its_file_says(lists: str) -> None:
    """Its commit and window too: LongLive's base commits clean, the student that begins with it at its KV noise."""
    settings = replace(PRESETS["longlive"], shift=3.0, window_frames=4, sink_frames=1)
    own = task(replace(RECIPE, regression_schedule=lists), regression=frozen(model(WAN, 3), settings))
    context = encode(["a", "bb"])
    draw = Draw(context, SeededNoise([1, 2]), 0.0, torch.zeros(2), torch.zeros(2, *SHAPE))
    expected = generate(
        model(WAN, 3), context, replace(settings, schedule=lists or settings.schedule).diagonal_schedule(),
        noise=SeededNoise([1, 2]), num_latent_frames=6, height=4, width=4, cache=settings.cache(),
        policy=settings.policy(),
    )  # fmt: skip
    torch.testing.assert_close(own._regression_target(draw, (2, *SHAPE)), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="says how it is sampled"):
        task(regression=frozen(model(WAN, 3), None))


def test_moving_digits_compare_with_stage_1_as_its_checkpoint_samples_it() -> None:
    recipe = cpu()
    settings = recipe.stage2.regression_settings(recipe.stage1.settings())
    assert settings == replace(recipe.stage2.settings(), schedule="4")


def test_regression_pulls_the_student_to_the_frozen_one() -> None:
    recipe = replace(
        RECIPE, weights=LossWeights(spatial=0, regression=1.0, gamma=0.0), generator_every=1, schedule="1",
        regression_schedule="1", learning_rate=3e-3,
    )  # fmt: skip
    own = task(recipe)
    losses = [own.update(step)["regression"].item() for step in range(40)]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_motion_terms_need_a_frozen_student() -> None:
    with pytest.raises(ValueError, match="need a frozen student"):
        task(regression=None)
    with pytest.raises(ValueError, match="chunk_frames must divide"):
        task(replace(RECIPE, chunk_frames=4))


class Constant(nn.Module):
    """Flow 1 under the prompt of ones, 0 under that of zeros."""

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        return context.mean((1, 2))[:, None, None, None, None].expand_as(x)


def test_the_teacher_is_guided_and_the_critic_is_not() -> None:
    x, noise, sigma = torch.zeros(2, 1, 2, 2, 2), torch.ones(2, 1, 2, 2, 2), torch.tensor([0.5, 0.25])
    found = estimates(
        x, fake_score=Constant(), real_score=Constant(), context=torch.ones(2, 3, 4), negative=torch.zeros(1, 3, 4),
        cfg=4.0, sigma_B=sigma, noise=noise, precision=torch.float32,
    )  # fmt: skip
    # x_t = sigma; x0 = x_t - sigma flow. Under the prompt flow is 1, guided it is 0 + 4 (1 - 0).
    assert torch.allclose(found.fake, torch.zeros_like(x))
    assert torch.allclose(found.real, (sigma - 4 * sigma)[:, None, None, None, None].expand_as(x))


def test_noise_levels_follow_the_shifted_clamped_law() -> None:
    sigma = NoiseLaw().draw(20_000, torch.Generator().manual_seed(0))
    assert sigma.min() == pytest.approx(0.02) and sigma.max() == pytest.approx(0.98)
    assert sigma.median() == pytest.approx(5 * 0.5 / 3, abs=0.01)
    assert NoiseLaw(shift=1.0).draw(20_000, torch.Generator()).median() == pytest.approx(0.5, abs=0.02)
    for wrong in ({"lowest": 0}, {"highest": 1001}, {"lowest": 500, "highest": 400}, {"shift": 0}):
        with pytest.raises(ValueError, match="noise law"):
            NoiseLaw(**wrong)


def test_activations_can_be_computed_again_instead_of_kept() -> None:
    plain, again = task(), task(replace(RECIPE, checkpointing=True))
    for step in range(3):
        a, b = plain.update(step), again.update(step)
        assert {name: value.item() for name, value in a.items()} == pytest.approx(
            {name: value.item() for name, value in b.items()}, rel=1e-4, abs=1e-6
        )
    assert set(plain.generator.state_dict()) == set(again.generator.state_dict())


# -- resuming, on the CPU recipe's models and first steps ------------------------------------------------------------


def cpu_distil(name: str, *, compiled: bool = False) -> Distil:
    recipe = replace(getattr(cpu(), name), steps=3, batch=1, generator_every=2, sample_every=0, compiled=compiled)
    config = cpu().preparation.model
    student = model(config, 0)
    encoder = _digits_encoder(config)
    return Distil(
        recipe, Roles(student, model(config, 1), model(config, 1), frozen(copy.deepcopy(student))),
        draw_prompts=draw_digits, encode=encoder, shape=(16, 9, 8, 8),
    )  # fmt: skip


def cpu_ode_init(name: str) -> OdeInit:
    recipe = replace(cpu().ode_init, steps=3, batch=2, sample_every=0, compiled=False)
    config = cpu().preparation.model
    points = torch.randn(4, 5, 16, 6, 8, 8, generator=torch.Generator().manual_seed(0)).half()
    sigmas = torch.tensor([1.0, 0.9375, 0.8333, 0.3571, 0.0])
    prompts = draw_digits(np.random.default_rng(0), 4)
    return OdeInit(recipe, model(config, 0), OdePairs(points, sigmas, prompts), _digits_encoder(config))


def _digits_encoder(config: WanConfig) -> Any:
    from diag_core.demo_text import DemoTextEncoder

    return DemoTextEncoder(config.text_len, config.text_dim).encode


def tensors_of(state: Any, prefix: str = "") -> dict[str, Tensor]:
    if isinstance(state, Tensor):
        return {prefix: state}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, (list, tuple)) else ()
    found: dict[str, Tensor] = {}
    for key, value in items:
        found |= tensors_of(value, f"{prefix}.{key}")
    return found


@pytest.mark.parametrize(("name", "make"), [("ode_init", cpu_ode_init), ("stage1", cpu_distil), ("stage2", cpu_distil)])
def test_the_first_steps_of_the_cpu_recipe_are_the_same_bit_for_bit_after_any_stop(
    tmp_path: Path, name: str, make: Any
) -> None:
    whole = make(name)
    train(name, whole, whole.recipe, tmp_path / "whole")
    for stop in range(1, whole.recipe.steps):
        part = make(name)
        train(name, part, part.recipe, tmp_path / "parts", stop_after=stop)
    parts = make(name)
    train(name, parts, parts.recipe, tmp_path / "parts")
    assert same(tensors_of(whole.state_dict()), tensors_of(parts.state_dict()))
    again = make(name)
    train(name, again, again.recipe, tmp_path / "parts")  # does nothing but read the end
    assert same(tensors_of(whole.state_dict()), tensors_of(again.state_dict()))


@pytest.mark.skipif(not cpp_compiler(), reason="torch.compile needs a C++ compiler")
def test_so_are_they_where_blocks_are_compiled_as_the_recipe_does(tmp_path: Path) -> None:
    whole = cpu_distil("stage1", compiled=True)
    train("stage1", whole, whole.recipe, tmp_path / "whole")
    for stop in (1, None):
        torch._dynamo.reset()  # as a new process, which compiles anew
        part = cpu_distil("stage1", compiled=True)
        train("stage1", part, part.recipe, tmp_path / "parts", stop_after=stop)
    assert same(tensors_of(whole.state_dict()), tensors_of(part.state_dict()))


KILLED = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, {folder!r})
from pathlib import Path
from test_distil import killed_run
killed_run(Path(sys.argv[1]), int(sys.argv[2]))
"""


def killed_run(folder: Path, stop_after: int) -> Distil:
    own = task(replace(RECIPE, steps=400, save_every=1, log_every=1, sample_every=0))
    train("stage", own, own.recipe, folder, stop_after=stop_after)
    return own


def test_kill_9_and_go_on(tmp_path: Path) -> None:
    """A process that is killed wherever it happens to be; what it leaves goes on to the same weights."""
    folder, root = tmp_path / "killed", Path(__file__).parents[2]
    code = KILLED.format(folder=str(Path(__file__).parent))
    process = subprocess.Popen([sys.executable, "-c", code, str(folder), "400"], cwd=root)
    while len(read_log(folder)) < 3 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    state = newest(folder / "checkpoints")
    assert state is not None
    stop = int(state.name[5:]) + 2
    assert stop < 400
    resumed, whole = killed_run(folder, stop), killed_run(tmp_path / "whole", stop)
    assert same(tensors_of(whole.state_dict()), tensors_of(resumed.state_dict()))
    assert read_log(tmp_path / "whole") == read_log(folder)
    assert not list(folder.rglob(".*.part"))
