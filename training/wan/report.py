"""What `--dry-run` prints: files, models, memory, work and time, none of which needs a weight to be read."""

from __future__ import annotations

from collections.abc import Iterator

from ..recipes.wan import WanDistilRecipe, WanOdeInitRecipe, WanOdePairsRecipe
from .memory import GIB, HEADROOM
from .setup import Inputs, Setup, distil_work
from .work import init_work, pair_work

TERA = 1e12


def lines(setup: Setup, inputs: Inputs, tflops: float) -> Iterator[str]:
    """The report, a line at a time.

    Args:
        tflops: TFLOP/s that a GPU is taken to reach.
    """
    recipe = setup.recipe
    yield f"{setup.stage}: {recipe.video.width}x{recipe.video.height}, {recipe.video.latent_frames} latent frames"
    yield "inputs"
    yield from (f"  {text}" for text in inputs.found)
    yield from (f"  WRONG: {text}" for text in inputs.wrong)
    if inputs.needed:
        yield f"on disk, in {setup.out}"
        yield from (f"  {name}: {count / 1e9:.1f} GB" for name, count in inputs.needed.items())
    if inputs.memory is not None:
        yield from _memory(setup, inputs)
        yield from _work(setup, inputs, tflops)


def _memory(setup: Setup, inputs: Inputs) -> Iterator[str]:
    memory, recipe = inputs.memory, setup.recipe
    assert memory is not None
    videos = f"{setup.videos} video{'s' if setup.videos > 1 else ''}"
    yield f"memory of each of {_gpus(setup)}, {recipe.precision} forwards, {videos} at a time (an estimate)"
    for line in memory.lines:
        yield f"  {line.name:<28} {line.bytes / GIB:8.2f} GiB"
    used = "  <- used" if memory.checkpointed is not None else ""
    yield f"  {'activations, all kept':<28} {memory.kept / GIB:8.2f} GiB{'' if memory.checkpointing else used}"
    if memory.checkpointed is not None:
        yield (
            f"  {'activations, checkpointed':<28} {memory.checkpointed / GIB:8.2f} GiB"
            f"{used if memory.checkpointing else ''}"
        )
    known = "" if setup.gpu_memory is None else f" of {setup.gpu_memory / GIB:.1f} GiB"
    more = f"{HEADROOM - 1:.0%}"
    yield f"  {f'in all, and {more} for the rest':<28} {memory.total / GIB:8.2f} GiB{known}"


def _work(setup: Setup, inputs: Inputs, tflops: float) -> Iterator[str]:
    recipe, rate = setup.recipe, setup.gpus * tflops * TERA
    yield f"work and time, at {tflops:g} TFLOP/s on each of {_gpus(setup)} (an estimate, not measured)"
    if isinstance(recipe, WanOdePairsRecipe):
        pair = pair_work(recipe, inputs.headers["teacher"].config)
        count = recipe.shards * recipe.pairs_a_shard
        yield f"  a trajectory: {pair / TERA:,.0f} TFLOP, {pair / tflops / TERA:.1f} s on one GPU"
        yield f"  all {count:,}: {_time(pair * count / rate)}, {pair * count / tflops / TERA / 3600:,.0f} GPU hours"
        return
    if isinstance(recipe, WanOdeInitRecipe):
        step = init_work(recipe, inputs.headers["generator"].config) * recipe.batch
        yield f"  an iteration of {recipe.batch} videos: {step / TERA:,.0f} TFLOP, {step / rate:.1f} s"
    else:
        assert isinstance(recipe, WanDistilRecipe)
        work = distil_work(setup, inputs)
        generator, critic = work.generator_update() * recipe.batch, work.critic_update() * recipe.batch
        step = work.iteration() * recipe.batch
        yield f"  a generator update of {recipe.batch} videos: {generator / TERA:,.0f} TFLOP, {generator / rate:.1f} s"
        yield f"  a critic update of {recipe.batch} videos: {critic / TERA:,.0f} TFLOP, {critic / rate:.1f} s"
        yield (
            f"  an iteration (a generator update every {recipe.generator_every}): {step / TERA:,.0f} TFLOP, "
            f"{step / rate:.1f} s on average"
        )
    hours = recipe.steps * step / tflops / TERA / 3600
    yield f"  all {recipe.steps} iterations: {_time(recipe.steps * step / rate)}, {hours:,.0f} GPU hours"


def _gpus(setup: Setup) -> str:
    return f"{setup.gpus} GPU{'s' if setup.gpus > 1 else ''}"


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"
