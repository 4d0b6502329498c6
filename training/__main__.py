"""`python -m training COMMAND`: the moving-digits model, from nothing to a distilled, scored checkpoint; and the
distillation of Wan 2.1."""

from __future__ import annotations

import argparse
import errno
import logging
import sys
from pathlib import Path

from . import switch_study
from .devices import device_of
from .distributed import leave
from .metrics import Collapse
from .overrides import with_overrides
from .recipes.moving_digits import RECIPES
from .stages import moving_digits, scoring
from .stages.autoencoder import data_of
from .stopping import Stopped
from .wan import commands as wan


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        commands = {
            "toy": _toy, "toy-evaluate": _toy_evaluate, "toy-compare": _toy_compare,
            "toy-report": _toy_report, "switch-study": _switch_study,
            **wan.COMMANDS,
        }  # fmt: skip
        commands[options.command](options)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)  # noqa: T201 - this is the command line
        return 130
    except Stopped as stopped:
        print(f"{stopped}; the same command goes on from here", file=sys.stderr)  # noqa: T201
        return stopped.status
    except ImportError as error:
        way = "Training needs the extras `text` and `train`: pip install -e '.[text,train]'"
        print(f"error: {error}. {way}", file=sys.stderr)  # noqa: T201
        return 2
    except (ValueError, OSError, Collapse) as error:
        print(f"error: {_told(error)}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    """argparse takes positional arguments in one place alone; fields of a recipe may stand between options."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    wrong = [text for text in rest if text.startswith("-") or not hasattr(options, "fields")]
    if wrong:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    if rest:
        options.fields = [*options.fields, *rest]
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    resumes = "Each stage goes on where it was stopped; one that is finished is not repeated."

    distilled = commands.add_parser(
        "toy", help="train the moving-digits model and distil it, all stages or one",
        description=f"{resumes} Fields of the recipe can be changed: stage1.steps=100 stage2.weights.gamma=0.5",
    )  # fmt: skip
    distilled.add_argument("fields", nargs="*", metavar="field=value", help="changes of the recipe")
    distilled.add_argument("--recipe", choices=tuple(RECIPES), default="toy", help=_recipes_help())
    distilled.add_argument("--stage", choices=tuple(moving_digits.STAGES), help="this one alone, not all of them")
    distilled.add_argument("--device", help="cpu, cuda, ...: the accelerator where there is one")
    distilled.add_argument(
        "--out", type=Path, default=Path("runs/toy"), help="folder of all results (default: %(default)s)"
    )
    distilled.add_argument("--seed", type=int, help="of every stage, instead of the recipe's")

    evaluate = commands.add_parser("toy-evaluate", help="score a moving-digits checkpoint on held-out prompts")
    evaluate.add_argument("folder", type=Path, help="holds the checkpoint, vae.safetensors and classifier.safetensors")
    evaluate.add_argument("--file", default="dit.safetensors", help="the checkpoint (default: %(default)s)")
    evaluate.add_argument("--prompts", type=int, default=400, help="held-out prompts (default: %(default)s)")
    evaluate.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="evaluation seeds (default: 0 1 2)")
    evaluate.add_argument("--schedule", help="instead of the checkpoint's")
    evaluate.add_argument("--cfg", type=float, help="instead of the checkpoint's")
    evaluate.add_argument("--kv-noise", type=float, help="schedule timestep, instead of the checkpoint's")
    evaluate.add_argument(
        "--reuse-last-step", action=argparse.BooleanOptionalAction,
        help="whether a last step at the KV noise is what later chunks see, or a forward more; the two differ",
    )  # fmt: skip
    evaluate.add_argument(
        "--compiled", action="store_true",
        help="fuse small operations of a teacher with torch.compile, which needs a C++ compiler: faster after a minute",
    )  # fmt: skip
    evaluate.add_argument("--json", type=Path, help="also write the scores there")

    compare = commands.add_parser(
        "toy-compare", help="score two schedules or checkpoints of moving digits on the same prompts and noise"
    )
    compare.add_argument("folder", type=Path, help="holds the checkpoints, vae.safetensors and classifier.safetensors")
    compare.add_argument("--file", default="dit.safetensors", help="the checkpoint (default: %(default)s)")
    compare.add_argument("--schedule", help="its step lists, instead of its own")
    compare.add_argument("--against-file", help="the other checkpoint (default: the same)")
    compare.add_argument("--against", metavar="SCHEDULE", help="the other's step lists, instead of its own")
    compare.add_argument(
        "--score", choices=("digit", "direction", "motion", "colour"), default="digit",
        help="what is compared (default: %(default)s)",
    )  # fmt: skip
    compare.add_argument("--prompts", type=int, default=2000, help="held-out prompts (default: %(default)s)")
    compare.add_argument("--seed", type=int, default=0, help="of phrasings and noise (default: %(default)s)")
    compare.add_argument("--json", type=Path, help="also write the result there")

    drawn = commands.add_parser(
        "toy-report", help="the distillation of moving digits: its stages side by side, their scores, training curves"
    )
    drawn.add_argument("folder", type=Path, help="that `toy` wrote")
    drawn.add_argument(
        "--plot", type=Path, required=True, metavar="FOLDER",
        help="for distillation-frames.png, distillation.webp, distillation-curves.png and distillation-scores.md",
    )  # fmt: skip
    drawn.add_argument("--prompts", type=int, default=3, help="that are shown (default: %(default)s)")

    switches = commands.add_parser(
        "switch-study", help="score how soon videos follow a prompt switch, and how far they jump",
        description="Samples pairs of held-out prompts with a switch in between, with and without recache and extra "
        "steps after it, all from the same noise.",
    )  # fmt: skip
    switches.add_argument(
        "folder", type=Path, nargs="?", default=Path("demo"),
        help="holds the checkpoint, vae.safetensors and classifier.safetensors (default: %(default)s)",
    )  # fmt: skip
    switches.add_argument("--file", default="dit.safetensors", help="the checkpoint (default: %(default)s)")
    switches.add_argument("--pairs", type=int, default=100, help="of prompts (default: %(default)s)")
    switches.add_argument("--seed", type=int, default=0, help="of pairs and noise (default: %(default)s)")
    switches.add_argument("--chunks", type=int, default=7, help="of each video (default: %(default)s)")
    switches.add_argument(
        "--switch-chunk", type=int, default=3, help="the first of the new prompt, from 0 (default: %(default)s)"
    )
    switches.add_argument("--batch", type=int, default=20, help="pairs sampled at once (default: %(default)s)")
    switches.add_argument("--schedule", help="instead of the checkpoint's")
    switches.add_argument("--json", type=Path, help="write the results there")
    switches.add_argument(
        "--plot",
        type=Path,
        metavar="FOLDER",
        help="draw prompt-switch.png and prompt-switch-frames.png there, and write prompt-switch-tables.md",
    )
    switches.add_argument(
        "--example", type=int, default=0, help="the pair whose frames are drawn, of the first batch (default: 0)"
    )
    wan.add_commands(commands)
    return parser


def _recipes_help() -> str:
    return "; ".join(f"{name}: {str(make.__doc__).splitlines()[0]}" for name, make in RECIPES.items())


def _toy(options: argparse.Namespace) -> None:
    recipe = RECIPES[options.recipe]()
    if options.seed is not None:
        recipe = recipe.with_seed(options.seed)
    recipe = with_overrides(recipe, options.fields)
    moving_digits.run(recipe, options.out, device=device_of(options.device), only=options.stage)


def _toy_evaluate(options: argparse.Namespace) -> None:
    scoring.evaluate(
        options.folder,
        prompts=options.prompts,
        seeds=options.seeds,
        file=options.file,
        overrides={name: getattr(options, name) for name in ("schedule", "cfg", "kv_noise", "reuse_last_step")},
        compiled=options.compiled,
        report=options.json,
    )


def _toy_compare(options: argparse.Namespace) -> None:
    scoring.compare(
        options.folder,
        prompts=options.prompts,
        file=options.file,
        schedule=options.schedule,
        against_file=options.against_file or options.file,
        against_schedule=options.against,
        score=options.score,
        seed=options.seed,
        report=options.json,
    )


def _toy_report(options: argparse.Namespace) -> None:
    try:
        from .stages import report
    except ImportError as error:
        raise ValueError(f"pictures need Pillow ({error}): pip install pillow") from error
    report.report(options.folder, options.plot, prompts=options.prompts)


def _switch_study(options: argparse.Namespace) -> None:
    switch_study.report(
        options.folder,
        switch_study.StudyConfig(
            pairs=options.pairs,
            seed=options.seed,
            chunks=options.chunks,
            switch_chunk=options.switch_chunk,
            batch=options.batch,
            data=data_of(options.folder / "vae.safetensors"),
        ),
        file=options.file,
        overrides={"schedule": options.schedule},
        json=options.json,
        pictures=options.plot,
        example=options.example,
    )


def _told(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" ({error.filename})" if error.filename else ""
        return f"the disk is full{where}: free some space and run the same command again, it goes on from here"
    return str(error)


if __name__ == "__main__":
    leave(main)
