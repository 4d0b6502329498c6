"""Make a video from a prompt, chunk by chunk: an MP4 that grows as it is sampled.

Without --checkpoint the embedded demo is used: moving digits, with prompts such as "a red 3 moves right". How a video
is sampled comes from the checkpoint, then --preset, then the options.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import values


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options left out are None where the checkpoint, or a saved video, has a say."""
    from ..attention import NAMES
    from ..denoising import STEPS
    from ..fast import MODES
    from ..settings import PRESETS
    from .outputs import LAYOUTS

    group = parser.add_argument_group("prompt")
    group.add_argument(
        "--prompt", action="append", metavar="TEXT", help="what the video shows; again for another video"
    )
    group.add_argument("--prompt-file", type=Path, metavar="FILE", help="prompts, one a line: a video each")
    group.add_argument("--timeline", metavar="TEXT", help="prompts over time, '0s: ..; 2.5s: ..', or @FILE")
    group.add_argument("--negative", dest="negative_prompt", metavar="TEXT", help="what to keep out, with --cfg")
    group.add_argument("--image", type=Path, metavar="FILE", help="image (PNG, JPEG) to begin with")
    group.add_argument(
        "--video", type=Path, metavar="FILE", help="video to go on from: its last frames, as many as the window sees"
    )
    group.add_argument(
        "--image-mode",
        choices=("frame", "repeat"),
        default="frame",
        help="frame: one latent frame (default); repeat: a still first chunk, as chunk-wise models know",
    )

    group.add_argument(
        "--interactive",
        action="store_true",
        help="change the prompt while the video is made: a prompt a line on standard input, /stop to end (up to an "
        "hour, unless a length is given)",
    )
    group.add_argument(
        "--slot",
        action="append",
        metavar="TEXT",
        help="with --interactive: encode this prompt beforehand; its number then stands for it (32 at most)",
    )

    group = parser.add_argument_group("video")
    length = group.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=values.number, metavar="S", help="length, to the next whole latent frame")
    length.add_argument("--frames", type=values.positive, metavar="N", help="length in pixel frames (default: 81)")
    length.add_argument(
        "--latent-frames", type=values.positive, metavar="N", help="length in latent frames: 4 N - 3 pixel ones"
    )
    group.add_argument("--size", type=values.size, metavar="WxH", help="pixels (default: 832x480; the demo's 64x64)")
    group.add_argument("--fps", type=values.number, metavar="N", help="pixel frames a second (default: 16)")
    group.add_argument("--seed", type=values.count, metavar="N", help="same seed, same video (default: 0)")
    group.add_argument(
        "--count", type=values.positive, metavar="N", help="videos of each prompt, from seed on (default: 1)"
    )
    group.add_argument("--out", metavar="FILE", help="MP4 to write, or a folder/ to put it in (default: outputs/)")
    group.add_argument(
        "--layout",
        choices=LAYOUTS,
        help="vbench: name videos '{prompt}-{index}.mp4', 5 of each prompt unless --count is given; those that are "
        "there already are not made again",
    )
    group.add_argument("--png", action="store_true", help="write a folder of PNG files instead of an MP4")
    group.add_argument("--overwrite", action="store_true", help="replace files instead of numbering new ones")
    group.add_argument(
        "--save-state", type=Path, metavar="FILE", help="at the end or at Ctrl-C, save what --resume needs"
    )
    group.add_argument("--resume", type=Path, metavar="FILE", help="go on with a saved video: give a greater length")

    group = parser.add_argument_group("provenance", "every file says that a model made it, unless told otherwise")
    group.add_argument(
        "--no-mark",
        dest="mark_generated",
        action="store_false",
        help="leave out the mark of generated media (IPTC digital source type, in XMP)",
    )
    group.add_argument(
        "--c2pa-certificate",
        type=Path,
        metavar="FILE",
        help="sign finished MP4s with this certificate chain (PEM; needs the package c2pa-python)",
    )
    group.add_argument("--c2pa-key", type=Path, metavar="FILE", help="the certificate's private key (PEM)")

    group = parser.add_argument_group(
        "sampling", "of the checkpoint, unless given here; KV noise in schedule timesteps, 0..1000"
    )
    group.add_argument("--preset", choices=tuple(PRESETS), help="sample as these models do")
    group.add_argument(
        "--schedule", metavar="TEXT", help="steps of each chunk: '4322222', or lists '1000,750 | 1000,100'"
    )
    group.add_argument("--shift", type=values.number, metavar="X", help="noise shift of the schedule")
    group.add_argument(
        "--kv-noise", type=values.number, metavar="T", help="noise level at which later chunks see finished ones"
    )
    group.add_argument(
        "--reuse-last-step",
        action=argparse.BooleanOptionalAction,
        help="whether a last step at that level serves as the commit",
    )
    group.add_argument(
        "--window", dest="window_frames", type=values.window, metavar="N|all", help="latent frames attended in all"
    )
    group.add_argument(
        "--sink", dest="sink_frames", type=values.count, metavar="N", help="first latent frames, always attended"
    )
    group.add_argument(
        "--positions", choices=("absolute", "relative"), help="relative for videos longer than the model knows"
    )
    group.add_argument("--chunk-frames", type=values.positive, metavar="N", help="latent frames denoised together")
    group.add_argument("--step", choices=STEPS, help="renoise for distilled models, euler for others")
    group.add_argument("--cfg", type=values.number, metavar="X", help="guidance; 1 is none, more doubles the work")
    group.add_argument(
        "--blend-chunks",
        type=values.count,
        metavar="N",
        help="chunks over which a prompt turns into the next (default: 0)",
    )
    group.add_argument(
        "--recache", choices=("chunks", "joint", "off"), help="how a new prompt renews the window (default: chunks)"
    )
    group.add_argument("--recache-sink", action=argparse.BooleanOptionalAction, help="renew the sink too (default: no)")

    group = parser.add_argument_group("models")
    group.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="Wan 2.1 text-to-video model (default: the demo)"
    )
    group.add_argument(
        "--vae", type=Path, metavar="FILE", help="Wan VAE or TAEHV (default: vae.safetensors beside the checkpoint)"
    )
    group.add_argument(
        "--text-encoder", type=Path, metavar="PATH", help="umT5-XXL, file or folder; the demo needs none"
    )
    group.add_argument(
        "--embedding-cache",
        type=Path,
        metavar="FOLDER",
        help="keep prompt embeddings; umT5 is loaded only for new ones",
    )
    group.add_argument("--lora", type=Path, metavar="FILE", help="LoRA to merge")
    group.add_argument("--lora-strength", type=values.number, default=1.0, metavar="X", help="default: 1")
    group.add_argument(
        "--dtype",
        choices=values.DTYPES,
        help="of the models (default: bfloat16 on a GPU that has it, else float16; float32 on a CPU)",
    )
    group.add_argument(
        "--device", default="auto", metavar="NAME", help="auto (a GPU where there is one), cpu, cuda, cuda:1"
    )
    group.add_argument("--attention", choices=NAMES, default="auto", help="attention back end (default: auto)")
    group.add_argument(
        "--fast",
        choices=MODES,
        default="auto",
        help="fused kernels and CUDA graphs; auto: on a GPU, unless they would change the result (default: auto)",
    )
    group.add_argument(
        "--fp8", action="store_true", help="linear layers in FP8 (Hopper or newer), a slightly other video; --fast on"
    )
    group.add_argument(
        "--compile", action="store_true", help="torch.compile where it can gain: a minute at the first start; --fast on"
    )


def run(options: argparse.Namespace) -> int:
    """Raises ValueError or OSError for what the user can put right."""
    from .plan import make_plan
    from .run import run_plan
    from .summary import summary

    plan = make_plan(options)
    print("\n".join(summary(plan)))
    for note in plan.notes:
        print(f"note: {note}", file=sys.stderr)
    return run_plan(plan)
