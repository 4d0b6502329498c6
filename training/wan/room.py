"""Whether the GPUs' memory and the disk have room for a stage."""

from __future__ import annotations

import os
import shutil

from ..checkpoint import KEPT, saved
from ..recipes.loop import LoopRecipe
from ..recipes.wan import WanDistilRecipe, WanOdeInitRecipe, WanOdePairsRecipe, WanRecipe
from ..trainer import STATES
from .memory import GIB, distil_memory, init_memory, lora_parameters, pairs_memory, parameters
from .setup import Inputs, Setup, distil_work


def check_memory(inputs: Inputs, setup: Setup) -> None:
    recipe, configs = setup.recipe, {role: header.config for role, header in inputs.headers.items()}
    if isinstance(recipe, WanOdePairsRecipe) and "teacher" in configs:
        inputs.memory = pairs_memory(recipe, configs["teacher"], gpus=setup.gpus)
    elif isinstance(recipe, WanOdeInitRecipe) and "generator" in configs:
        inputs.memory = init_memory(recipe, configs["generator"], gpus=setup.gpus, videos=setup.videos)
    elif isinstance(recipe, WanDistilRecipe) and len(configs) == 3:
        inputs.memory = distil_memory(distil_work(setup, inputs), gpus=setup.gpus, videos=setup.videos)
    if inputs.memory is not None and setup.gpu_memory is not None and inputs.memory.total > setup.gpu_memory:
        inputs.wrong.append(
            f"too little GPU memory: about {inputs.memory.total / GIB:.0f} GiB are needed on each GPU and "
            f"{setup.gpu_memory / GIB:.0f} GiB are there. {_advice(recipe, setup)}"
        )


def _advice(recipe: WanRecipe, setup: Setup) -> str:
    ways = []
    if isinstance(recipe, WanOdePairsRecipe):
        ways = ["batch=1"] if recipe.batch > 1 else ["weights_precision=bf16"]
        ways += [] if recipe.sharded else ["sharded=true on several GPUs"]
    else:
        if setup.videos > 1:
            ways.append("micro_batch=1")
        ways += [] if recipe.checkpointing else ["checkpointing=true"]
        if isinstance(recipe, WanDistilRecipe):
            ways += [] if recipe.lora.rank else ["lora.rank=64"]
        ways += ["more GPUs", "a smaller video (video.width, video.height, video.latent_frames)"]
    return f"Ways: {', '.join(ways)}"


def check_disk(inputs: Inputs, setup: Setup) -> None:
    inputs.needed = _disk(inputs, setup)
    makes_pairs = isinstance(setup.recipe, WanOdePairsRecipe) and setup.pairs is not None
    option, folder = ("--pairs", setup.pairs_folder) if makes_pairs else ("--out", setup.out)
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        inputs.wrong.append(f"{option} {folder}: {there} is no folder that can be written to. Choose another one")
        return
    needed, free = sum(inputs.needed.values()), shutil.disk_usage(there).free
    if needed > free:
        what = ", ".join(f"{name} {count / 1e9:.1f} GB" for name, count in inputs.needed.items())
        inputs.wrong.append(
            f"{option} {folder}: {what} are needed on disk and {free / 1e9:.1f} GB are free. Free some space, or "
            "choose a folder on another disk"
        )


def _disk(inputs: Inputs, setup: Setup) -> dict[str, int]:
    """Bytes that the stage will write, beside what is there already."""
    recipe, configs = setup.recipe, {role: header.config for role, header in inputs.headers.items()}
    if isinstance(recipe, WanOdePairsRecipe):
        if "teacher" not in configs:
            return {}
        channels, frames, height, width = recipe.video.shape(configs["teacher"].in_dim)
        pair = 2 * (len(recipe.points) + 1) * channels * frames * height * width
        done = len(list(setup.pairs_folder.glob("pairs_*.safetensors")))
        return {"pairs": pair * recipe.pairs_a_shard * max(0, recipe.shards - done)}
    if "generator" not in configs or setup.result.exists():
        return {}
    count = result = parameters(configs["generator"])
    # Of each weight: itself, two moments, average.
    state = 16 * count
    if isinstance(recipe, WanDistilRecipe) and "critic" in configs:
        state += 12 * parameters(configs["critic"])
        if recipe.lora.rank:
            frozen = 2 if recipe.weights_precision == "bf16" else 4
            state = frozen * count + (frozen if recipe.lora.critic else 12) * parameters(configs["critic"])
            lora = lora_parameters(configs["generator"], recipe.lora)
            state, result = state + 16 * lora, result + lora  # which is written merged, and alone
            if recipe.lora.critic:
                state += 12 * lora_parameters(configs["critic"], recipe.lora)
    needed = {"saved states": max(0, _states_to_come(setup) * state - _half_written(setup)), "the result": 4 * result}
    if setup.critic_result is not None and "critic" in configs:
        needed["its critic"] = 2 * parameters(configs["critic"])
    return needed


def _states_to_come(setup: Setup) -> int:
    """By how many states the folder will grow: to those that are kept, and one written before the oldest goes."""
    assert isinstance(setup.recipe, LoopRecipe)
    there = saved(setup.folder / STATES)
    steps, every = setup.recipe.steps, setup.recipe.save_every
    done = max((step for step in there if step <= steps), default=0)
    left = -(-steps // every) - done // every if done < steps else 0
    return min(left, max(1, KEPT + 1 - len(there)))


def _half_written(setup: Setup) -> int:
    """Bytes of a state that a kill cut short; it is deleted before anything is written."""
    return sum(file.stat().st_size for file in (setup.folder / STATES).glob(".*.part/*"))
