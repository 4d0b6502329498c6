"""`python -m training COMMAND`: the moving-digits model from nothing to a scored checkpoint."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from .recipes.toy import ToyRecipe, toy, toy_smoke


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    teacher = commands.add_parser(
        "toy-teacher",
        help="train the moving-digits autoencoder and causal model, score them and write the checkpoint",
        description="Each stage resumes where it was stopped; one that is finished is not repeated.",
    )
    teacher.add_argument(
        "--out", type=Path, default=Path("runs/toy"), help="folder of all results (default: %(default)s)"
    )
    teacher.add_argument("--recipe", choices=("toy", "toy-smoke"), default="toy", help="toy-smoke: seconds, for a test")
    teacher.add_argument("--seed", type=int, help="instead of the recipe's")
    evaluate = commands.add_parser("toy-evaluate", help="score a moving-digits checkpoint on held-out prompts")
    evaluate.add_argument("folder", type=Path, help="holds dit.safetensors, vae.safetensors and classifier.safetensors")
    evaluate.add_argument("--prompts", type=int, default=400, help="held-out prompts (default: %(default)s)")
    evaluate.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="evaluation seeds (default: 0 1 2)")
    evaluate.add_argument("--schedule", help="instead of the checkpoint's")
    evaluate.add_argument("--cfg", type=float, help="instead of the checkpoint's")
    evaluate.add_argument("--kv-noise", type=float, help="schedule timestep, instead of the checkpoint's")
    evaluate.add_argument("--json", type=Path, help="also write the scores there")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    from .stages import toy_teacher

    try:
        if options.command == "toy-teacher":
            recipe: ToyRecipe = toy() if options.recipe == "toy" else toy_smoke()
            if options.seed is not None:
                recipe = recipe.with_seed(options.seed)
            toy_teacher.run(recipe, options.out)
        else:
            toy_teacher.evaluate(
                options.folder,
                prompts=options.prompts,
                seeds=options.seeds,
                overrides={"schedule": options.schedule, "cfg": options.cfg, "kv_noise": options.kv_noise},
                report=options.json,
            )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - this is the command line
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
