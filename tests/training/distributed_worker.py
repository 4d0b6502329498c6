"""What the processes of `test_distributed` run: `python distributed_worker.py SCENARIO FOLDER`, as torchrun would start
it. Models are tiny; every scenario is a function of a folder, and so can be run by one process too."""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from diag_core import SeededNoise, WanConfig, WanDiT
from diag_core.checkpoint import CheckpointSettings, LoadedCheckpoint
from training import distributed
from training.__main__ import main as training_main
from training.checkpoint import newest
from training.compilation import compile_blocks
from training.io import save_tensors
from training.metrics import HealthLimits
from training.parallelize import parallelize, trained_weights
from training.precision import flow_of
from training.recipes.distillation import DistilRecipe, OdeInitRecipe
from training.recipes.wan import VideoSize
from training.roles import Roles, trained
from training.rollout import rollout
from training.stages.distil import Distil
from training.stages.ode_init import OdeInit
from training.stages.ode_pairs import OdePairs
from training.stopping import Stopped
from training.trainer import train
from training.wan.gallery import sample_prompts
from training.wan.loading import load_model

WAN = WanConfig(dim=32, ffn_dim=48, num_heads=2, num_layers=2, in_dim=4, out_dim=4, freq_dim=16, text_dim=8, text_len=5)
SHAPE = (4, 9, 4, 4)
RECIPE = DistilRecipe(
    steps=4, batch=4, generator_every=2, learning_rate=1e-3, critic_learning_rate=1e-3, schedule="32", clip=0.5,
    regression_schedule="3", window_frames=6, precision="fp32", save_every=1, log_every=1, sample_every=0,
)  # fmt: skip
VARIANTS: dict[str, DistilRecipe] = {
    "plain": RECIPE,
    "micro": replace(
        RECIPE,
        checkpointing=True,
        micro_batch=1,
        sample_every=2,
        limits=HealthLimits(static=0, flashing=1e9, washed_out=0, harsh=1e9, saturated=1e9),
    ),
    "bf16": replace(RECIPE, precision="bf16", steps=1, learning_rate=1e-4, critic_learning_rate=1e-4),
}
INIT = OdeInitRecipe(
    steps=3, batch=4, learning_rate=1e-3, window_frames=6, precision="fp32", save_every=1, log_every=1, sample_every=0,
    checkpointing=True, micro_batch=2,
)  # fmt: skip


def encode(prompts: list[str]) -> Tensor:
    return torch.stack([torch.randn(5, 8, generator=torch.Generator().manual_seed(len(p))) for p in prompts])


def draw_prompts(rng: np.random.Generator, count: int) -> list[str]:
    return ["x" * int(n) for n in rng.integers(1, 40, size=count)]


def model(seed: int) -> WanDiT:
    torch.manual_seed(seed)
    return WanDiT(WAN).requires_grad_(False)


def task(recipe: DistilRecipe) -> Distil:
    roles = Roles(model(0), model(1), model(2), LoadedCheckpoint(model(3), WAN, recipe.settings()))
    return Distil(recipe, roles, draw_prompts=draw_prompts, encode=encode, shape=SHAPE)


def init_task() -> OdeInit:
    points = torch.randn(6, 4, *SHAPE, generator=torch.Generator().manual_seed(0)).half()
    pairs = OdePairs(points, torch.tensor([1.0, 0.9, 0.5, 0.0]), draw_prompts(np.random.default_rng(0), 6))
    return OdeInit(INIT, model(0), pairs, encode)


class Still:
    """A gallery that samples by the averaged weights; the size of latents is among its scores."""

    compared_with, fps = "the teacher's", 16.0

    def __init__(self, own: Distil) -> None:
        self.own = own

    def reference(self) -> dict[str, float]:
        return {"motion": 1.0, "saturation": 1.0, "contrast": 1.0}

    def sample(self) -> tuple[Tensor, dict[str, float]]:
        own = self.own
        with own.ema.applied_to(own.generator):
            rolled = rollout(
                own.generator, encode(["a", "bb"]), own.config, noise=SeededNoise(5), shape=(2, *SHAPE), gradients=False
            )  # fmt: skip
        size = float(rolled.latents.abs().mean())
        return torch.zeros(1, 3, 5, 16, 16), {"motion": 1.0, "saturation": 1.0, "contrast": 1.0, "size": size}


def run(recipe: DistilRecipe, folder: Path, stop_after: int | None = None) -> Distil:
    """Trains, and leaves the whole end weights in `end.safetensors`."""
    own = task(recipe)
    train("distil", own, recipe, folder, stop_after=stop_after, gallery=Still(own))
    keep(folder, {"generator": own.generator.state_dict(), "critic": own.critic.state_dict(), "ema": own.ema.average})
    return own


def run_init(folder: Path) -> None:
    own = init_task()
    train("ode-init", own, INIT, folder)
    keep(folder, {"student": own.student.state_dict(), "ema": own.ema.average})


def keep(folder: Path, parts: dict[str, dict[str, Tensor]]) -> None:
    whole = distributed.gathered({f"{part}.{n}": t.detach() for part, ts in parts.items() for n, t in ts.items()})
    if distributed.is_main():
        save_tensors(folder / "end.safetensors", whole)


# -- scenarios -------------------------------------------------------------------------------------------------------


def parity(folder: Path) -> None:
    for name, recipe in VARIANTS.items():
        run(recipe, folder / name)
    run_init(folder / "init")


def half(folder: Path) -> None:
    run(RECIPE, folder, stop_after=2)


def whole(folder: Path) -> None:
    run(RECIPE, folder)


LONG = replace(RECIPE, steps=1000, save_every=2, batch=2, schedule="21", regression_schedule="1")


def long(folder: Path) -> None:
    run(LONG, folder)


def rest(folder: Path) -> None:
    """What a killed run would have been two states later, from where it is and undisturbed."""
    state = distributed.from_main(newest(folder / "checkpoints"))
    stop = int(state.name[5:]) + 3
    run(LONG, folder, stop)
    run(LONG, folder.with_name("undisturbed"), stop)


def refused(folder: Path) -> None:
    """What each process is told of batches that do not divide."""
    told = []
    for changes in ({"batch": 3}, {"micro_batch": 3}):
        try:
            task(replace(RECIPE, **changes))
        except ValueError as error:
            told.append(str(error))
    if distributed.is_main():
        folder.mkdir()
        (folder / "told.json").write_text(json.dumps(told))


def fused(folder: Path) -> None:
    """Flow, gradients and a cached forward of a sharded model: as it is, and compiled; and what compiling it took."""
    latents, context = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(4)), encode(["a", "bb"])
    sigma, config = torch.tensor([0.3, 0.8]), task(RECIPE).config
    made: dict[str, Tensor] = {}
    graphs: dict[str, list[int]] = {}
    for precision, checkpointing in ((torch.float32, True), (torch.bfloat16, False)):
        for how, compiled in (("plain", False), ("fused", True)):
            name = f"{precision}.{how}".removeprefix("torch.")
            before = counted_graphs()
            own = parallelize(trained(model(0)), precision=precision, checkpointing=checkpointing)
            # The graph as PyTorch runs it: code for it takes minutes to make, and is not this project's to test.
            if compiled:
                with patch.object(torch, "compile", partial(torch.compile, backend="aot_eager")):
                    compile_blocks(own)
            flow = flow_of(own, latents, sigma, context, precision=precision)
            flow.square().mean().backward()
            graphs[name] = [counted_graphs() - before]
            grads = {n: p.grad for n, p in trained_weights(own).items() if p.grad is not None}
            alike = replace(config, precision=precision)
            rolled = rollout(own, context, alike, noise=SeededNoise(1), shape=(2, *SHAPE), gradients=False)
            parts = {"flow": flow.detach(), "rolled": rolled.latents, **distributed.gathered(grads)}
            made |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
            graphs[name].append(counted_graphs() - before)
    if distributed.is_main():
        save_tensors(folder / "fused.safetensors", made, {"graphs": graphs})


def counted_graphs() -> int:
    """That torch.compile has made so far."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


class Embedded:
    """Prompts that need no encoder."""

    negative = ""

    def encode(self, prompts: list[str]) -> Tensor:
        return encode(prompts)


def sampled(folder: Path) -> None:
    """Sample videos of a sharded model whose weights are gathered as bfloat16, and of the whole one."""
    settings = CheckpointSettings(schedule="2", window_frames=6)
    video = VideoSize(width=32, height=32, latent_frames=SHAPE[1])
    whole, split = model(0), parallelize(model(0), precision=torch.bfloat16)
    for name, own in (("whole", whole), ("split", split)):
        forwards: list[object] = []
        own.register_forward_hook(lambda *given, ran=forwards: ran.append(None))
        latents = sample_prompts(own, settings, ["a", "bb", "ccc"], Embedded(), video)  # type: ignore[arg-type]
        if distributed.is_main():
            save_tensors(folder / f"{name}.safetensors", {"latents": latents}, {"forwards": len(forwards)})


def commands(folder: Path) -> None:
    """Commands of `python -m training`, the entries of commands.json; ends with the status of the first that fails."""
    for arguments in json.loads((folder / "commands.json").read_text()):
        if status := training_main(arguments):
            raise SystemExit(status)


def memory(folder: Path) -> None:
    """What loading the model of the folder adds to the memory of a process at most, in bytes."""
    before = peak_memory()
    load_model(folder / "model.safetensors", dtype=torch.float32, device=torch.device("cpu"), precision=torch.float32)
    (folder / f"memory_{distributed.rank()}.json").write_text(json.dumps(peak_memory() - before))


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def fails(folder: Path) -> None:
    """One process runs out of memory while the other is in a collective; leaving the group waits, as NCCL's may do."""
    torch.distributed.destroy_process_group = lambda: time.sleep(600)
    if distributed.rank() == 1:
        raise torch.OutOfMemoryError("of the second process")
    distributed.from_all(0)


SCENARIOS: dict[str, Any] = {
    "parity": parity, "half": half, "whole": whole, "long": long, "rest": rest, "refused": refused,
    "commands": commands, "memory": memory, "fused": fused, "sampled": sampled,
    "fails": fails,
}  # fmt: skip


def main(pairs: list[str]) -> int:
    torch.set_num_threads(1)
    try:
        with distributed.session(torch.device("cpu")):
            for pair in pairs:
                scenario, folder = pair.split("=", 1)
                SCENARIOS[scenario](Path(folder))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.status
    return 0


if __name__ == "__main__":
    distributed.leave(lambda: main(sys.argv[1:]))
