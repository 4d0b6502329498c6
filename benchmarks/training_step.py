"""How long an iteration of stage 2 takes at Wan's size, and how much memory: random weights, on which neither depends.

    python -m benchmarks.training_step [--teacher 14b] [--updates 12] [--out FILE] [field=value ...]
    torchrun --nproc-per-node 8 -m benchmarks.training_step       # one video a GPU, weights split among them

Generator, critic and teacher of 1.3B parameters, 832x480, 21 latent frames, one video a GPU; fields of the stage's
recipe change any of it. How much an update does depends on where its chunks exit, which training draws anew each time;
here the exits are spread evenly, so that the mean is that of training. FLOP are counted from sizes: a multiply-add is
two, attention's backward pass 2.5 forwards; what checkpointing computes again is no model FLOP, and told apart.
"""

from __future__ import annotations

import argparse
import datetime
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from diag_core import WanConfig, WanDiT
from diag_core.bench import matrix_peak, save_report
from diag_core.bench.meter import Meter, choose_device, describe_machine
from diag_core.checkpoint import LoadedCheckpoint
from training.distributed import from_all, is_main, leave, local, session, world_size
from training.overrides import with_overrides
from training.parallelize import parallelize
from training.precision import precision_of
from training.recipes.wan import WanDistilRecipe, stage1, stage2
from training.roles import Roles
from training.stages.distil import Distil
from training.wan.memory import GIB, distil_memory
from training.wan.work import DistilWork

SIZES = {
    "1.3b": WanConfig.wan_1_3b(),
    "14b": WanConfig.wan_14b(),
    "tiny": WanConfig(dim=64, ffn_dim=128, num_heads=2, num_layers=2, text_dim=32, text_len=16),
}
SHEETS = (
    ("H100 PCIe", 756.0), ("H100 NVL", 835.0), ("H100", 989.4), ("H200", 989.4), ("B200", 2250.0), ("A100", 312.0)
)  # fmt: skip
"""bf16 TFLOP/s without sparsity that NVIDIA's data sheets give; the first name that a GPU's has in it counts"""
STAGE1 = stage1().settings()
"""of the frozen student"""
RESULTS = Path(__file__).parent / "results"
_TERA = 1e12


def measure(
    recipe: WanDistilRecipe,
    student: WanConfig,
    teacher: WanConfig,
    *,
    device: torch.device,
    updates: int,
) -> dict[str, Any]:
    """The report. All processes of a `session` together.

    Args:
        student: sizes of generator, critic and frozen student.
        updates: measured ones of each kind, after one of each that is not.
    """
    meter, work = Meter(device), DistilWork(
        recipe=recipe, generator=student, critic=student, real_score=teacher, regression=STAGE1
    )  # fmt: skip
    estimate = distil_memory(work, gpus=world_size(), videos=recipe.micro_batch or recipe.batch // world_size())
    say(f"{estimate.total / GIB:.1f} GiB on each device, by estimate")
    task = make_task(recipe, student, teacher, device)
    exits = [(k + 0.5) / updates for k in range(updates)]
    plain = replace(work, recipe=replace(recipe, checkpointing=False))
    kinds: dict[str, tuple[Callable[..., object], Callable[[float], float], Callable[[float], float]]] = {
        "generator": (task.update_generator, plain.generator_update, work.generator_update),
        "critic": (task.update_critic, plain.critic_update, work.critic_update),
    }
    peak = matrix_peak(device, precision_of(recipe.precision, device))
    results: dict[str, dict[str, Any]] = {}
    for kind, (update, model_work, all_work) in kinds.items():
        update(0, exits[-1])
        meter.reset_peak()
        seconds = []
        for step, u in enumerate(exits, start=1):
            begin = meter.now()
            update(step, u)
            seconds.append(max(from_all(meter.now() - begin)))
            say(f"{kind} update, exits at {u:.2f} of their lists: {seconds[-1]:.2f} s")
        share = recipe.batch / world_size()
        done = [share * model_work(u) / _TERA for u in exits]
        computed = sum(share * all_work(u) for u in exits) / _TERA
        results[kind] = {
            "seconds": round(sum(seconds) / updates, 6),
            "peak_memory_bytes": max(memory or 0 for memory in from_all(meter.memory().peak)) or None,
            "tflop_on_each_device": round(sum(done) / updates, 6),
            "model_tflop_per_second": round(sum(done) / sum(seconds), 6),
            "with_what_is_computed_again": round(computed / sum(seconds), 6),
            "each": {"exit": exits, "seconds": [round(value, 6) for value in seconds]},
        }
    name = torch.cuda.get_device_name(device) if meter.on_gpu else ""
    rates = {"matrix_products_here": peak.tflop_per_second, "data_sheet": data_sheet(name)}
    return {
        "format": "diagdistill-training-step-1",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": {**describe_machine(device), "devices": world_size()},
        "setting": {
            "recipe": asdict(recipe), "generator": student.to_dict(), "critic": student.to_dict(),
            "teacher": teacher.to_dict(), "weights": "random", "text": "random embeddings, nothing encoded",
        },
        "memory_kind": meter.memory_kind,
        "estimated_memory_bytes": round(estimate.total),
        "peak_tflop_per_second": {key: rate and round(rate, 6) for key, rate in rates.items()},
        "updates": results,
        "seconds_of_an_iteration": round(
            results["critic"]["seconds"] + results["generator"]["seconds"] / recipe.generator_every, 6
        ),
        "mfu": {
            kind: {key: rate and round(result["model_tflop_per_second"] / rate, 6) for key, rate in rates.items()}
            for kind, result in results.items()
        },
    }  # fmt: skip


def make_task(recipe: WanDistilRecipe, student: WanConfig, teacher: WanConfig, device: torch.device) -> Distil:
    """Stage 2 on random models and embeddings."""
    frozen, precision = (precision_of(name, device) for name in (recipe.weights_precision, recipe.precision))

    def model(config: WanConfig, dtype: torch.dtype, *, trained: bool) -> WanDiT:
        with torch.device("meta"):  # a 14B model is never held in float32, nor on the host
            made = WanDiT(config, attention=recipe.attention).to(dtype).requires_grad_(False)
        if world_size() > 1:
            parallelize(made, precision=precision, checkpointing=trained and recipe.checkpointing, device=device)
        made.to_empty(device=device)
        fill(made)
        return made

    def encode(prompts: list[str]) -> torch.Tensor:
        return torch.randn(len(prompts), student.text_len, student.text_dim)

    regression = model(student, frozen, trained=False) if recipe.weights.needs_teacher_rollout else None
    roles = Roles(
        generator=model(student, torch.float32, trained=True),
        real_score=model(teacher, frozen, trained=False),
        fake_score=model(student, torch.float32, trained=True),
        regression=regression and LoadedCheckpoint(regression, student, STAGE1),
    )
    shape = recipe.video.shape(student.in_dim)
    return Distil(recipe, roles, draw_prompts=lambda rng, count: [""] * count, encode=encode, shape=shape)


@torch.no_grad()
def fill(model: WanDiT) -> None:
    """Weights with which activations neither vanish nor overflow."""
    for name, parameter in model.named_parameters():
        own = local(parameter)
        if parameter.ndim > 1:
            own.normal_(std=math.prod(parameter.shape[1:]) ** -0.5)
        else:
            own.fill_(1.0 if name.endswith("weight") else 0.0)  # of norms; biases


def data_sheet(gpu: str) -> float | None:
    """TFLOP/s of a GPU, None where it is not in the table."""
    return next((rate for name, rate in SHEETS if all(word in gpu for word in name.split())), None)


def table(report: dict[str, Any]) -> str:
    peak = report["peak_tflop_per_second"]
    lines = [f"{'':<12}{'seconds':>10}{'peak GiB':>10}{'TFLOP':>10}{'TFLOP/s':>10}{'of products':>13}{'MFU':>8}"]
    for kind, result in report["updates"].items():
        memory, shares = result["peak_memory_bytes"], report["mfu"][kind]
        lines.append(
            f"{kind:<12}{result['seconds']:>10.3f}{_shown(memory and memory / GIB, '.2f'):>10}"
            f"{result['tflop_on_each_device']:>10.4g}{result['model_tflop_per_second']:>10.4g}"
            f"{_shown(shares['matrix_products_here'], '.1%'):>13}{_shown(shares['data_sheet'], '.1%'):>8}"
        )
    lines.append(f"an iteration: {report['seconds_of_an_iteration']:.3f} s on average")
    lines.append(
        f"peak: {peak['matrix_products_here']:.4g} TFLOP/s in matrix products here, "
        f"{_shown(peak['data_sheet'], '.4g')} by data sheet; memory: {report['memory_kind']}"
    )
    return "\n".join(lines)


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def say(text: str) -> None:
    if is_main():
        print(text, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fields", nargs="*", metavar="field=value", help="changes of stage 2's recipe")
    parser.add_argument("--student", choices=tuple(SIZES), default="1.3b", help="default: %(default)s")
    parser.add_argument("--teacher", choices=tuple(SIZES), help="default: as the student")
    parser.add_argument("--updates", type=int, default=12, help="measured of each kind (default: %(default)s)")
    parser.add_argument("--device", help="cpu or cuda: the accelerator where there is one")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: named by date and device, in results/")
    options = parser.parse_intermixed_args(arguments)
    try:
        if options.updates < 1:
            raise ValueError(f"--updates must be at least 1, got {options.updates}")
        with session(choose_device(options.device)) as device:
            # Motion terms are in the recipe's defaults, so the frozen student's rollout is in the generator's time.
            recipe = with_overrides(replace(stage2(), batch=world_size()), options.fields)
            if recipe.lora.rank:
                raise ValueError("a LoRA is not measured here: leave out lora.rank")
            student, teacher = SIZES[options.student], SIZES[options.teacher or options.student]
            report = measure(recipe, student, teacher, device=device, updates=options.updates)
            if is_main():
                path = options.out or RESULTS / file_name(report, options.teacher or options.student)
                save_report(report, path)
                print(table(report), f"saved: {path}", sep="\n")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError as error:
        print(
            f"error: too little GPU memory ({str(error).splitlines()[0]}). Ways: more GPUs by torchrun, a smaller "
            "video (video.latent_frames=9), a smaller teacher",
            file=sys.stderr,
        )
        return 2
    return 0


def file_name(report: dict[str, Any], teacher: str) -> str:
    machine = report["machine"]
    device = "-".join((machine["gpu"] or "cpu").lower().replace("nvidia", "").split())
    many = f"-x{machine['devices']}" if machine["devices"] > 1 else ""
    return f"{report['date']}-{device}{many}-training-step-{teacher}-teacher.json"


if __name__ == "__main__":
    leave(main)
