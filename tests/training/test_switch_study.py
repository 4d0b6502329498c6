"""The prompt-switch study on videos rendered to be right, late or wrong, and the command at a small size."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diag_core import DiagonalSchedule
from training.__main__ import main
from training.classifier import DigitClassifier, load_classifier
from training.data.moving_digits import render, scans_of
from training.data.paths import Body, Clip, MovingDigitsConfig
from training.data.prompts import DIRECTIONS, Scene, parse
from training.stages.autoencoder import load_autoencoder
from training.stages.scoring import load_for_sampling
from training.switch_study import StudyConfig, Variant
from training.switch_study.pairs import prompts_of, switch_pairs
from training.switch_study.readings import Readings, differences, joined, read_videos, summary
from training.switch_study.sampling import CONTROL, SwitchSampler, with_extra_steps

DEMO = Path(__file__).parents[2] / "demo"
CONFIG = MovingDigitsConfig()
FIRST, SWITCH = 3, 33  # chunk and pixel frame
OLD = parse("a red 0 moves right slowly and bounces, on a navy ground")
NEW = parse("a cyan 4 moves down slowly and stops, on a navy ground")
LOW = CONFIG.digit_size / 2


@pytest.fixture(scope="module")
def classifier() -> DigitClassifier:
    return load_classifier(DEMO / "classifier.safetensors")


def moving(scene: Scene, at: tuple[float, float], frames: int) -> torch.Tensor:
    """Pixels [1,3,frames,64,64] of a scene whose digit begins at a place (x, y), right or down from there."""
    mover = scene.movers[0]
    assert mover.direction in ("right", "down")
    along, aside = (p - LOW for p in (at if mover.direction == "right" else at[::-1]))
    body = Body(
        scan=scans_of("test", mover.digit)[0], side=CONFIG.digit_size, rotation=0, margin=LOW, start=along,
        across=aside / (CONFIG.size - CONFIG.digit_size), corner=0, middle=0, pace=CONFIG.slow,
    )  # fmt: skip
    return render([Clip(scene=scene, bodies=(body,))], CONFIG, frames=np.arange(frames))


def changed(scene: Scene, **what: object) -> Scene:
    return replace(scene, movers=(replace(scene.movers[0], **what),))


BEFORE = moving(OLD, (16, 20), SWITCH)
AT = (16 + 0.6 * SWITCH, 20.0)
LATER = {chunk: (AT[0], 20 + 0.6 * (12 * chunk)) for chunk in range(4)}
"""where a digit that follows at once is when a chunk begins"""


def read(pixels: torch.Tensor, classifier: DigitClassifier, scene: Scene = NEW) -> Readings:
    return read_videos(pixels, [scene], classifier, first_chunk=FIRST)


def test_a_video_that_follows_at_once(classifier: DigitClassifier) -> None:
    found = read(torch.cat([BEFORE, moving(NEW, AT, 48)], dim=2), classifier)
    assert set(found.right) == {"digit", "colour", "direction", "all"}
    for name, right in found.right.items():
        assert right.tolist() == [[1, 1, 1, 1]], name
    assert found.jump.item() < 3  # another shape has its centre of mass elsewhere
    assert found.largest_step.item() < 3


def test_a_colour_that_comes_two_chunks_late(classifier: DigitClassifier) -> None:
    red = changed(NEW, colour="red")
    video = torch.cat([BEFORE, moving(red, AT, 24), moving(NEW, LATER[2], 24)], dim=2)
    found = read(video, classifier)
    assert found.right["digit"].tolist() == found.right["direction"].tolist() == [[1, 1, 1, 1]]
    assert found.right["colour"].tolist() == found.right["all"].tolist() == [[0, 0, 1, 1]]
    told = summary(found, found)["chunks_until_right"]
    assert told["colour"]["median"]["value"] == 3 and told["colour"]["never"]["value"] == 0
    assert told["digit"]["median"]["value"] == 1


def test_a_digit_that_teleports(classifier: DigitClassifier) -> None:
    control = read(moving(OLD, (16, 20), 81), classifier)
    found = read(torch.cat([BEFORE, moving(NEW, (AT[0] - 18, AT[1]), 48)], dim=2), classifier)
    assert found.right["all"].tolist() == [[1, 1, 1, 1]]
    assert found.jump.item() == pytest.approx(18, abs=3)
    told = summary(found, control)
    assert told["jump_over_control"]["value"] == pytest.approx(18 - 0.6, abs=3)
    assert told["teleports"]["value"] == 1
    # A chunk later it is no jump at the switch, but still one.
    late = torch.cat([BEFORE, moving(NEW, AT, 12), moving(NEW, (LATER[1][0] - 18, LATER[1][1]), 36)], dim=2)
    found = read(late, classifier)
    assert found.jump.item() < 3 and found.largest_step.item() == pytest.approx(18, abs=3)


def test_a_video_that_never_follows(classifier: DigitClassifier) -> None:
    found = read_videos(moving(OLD, (16, 20), 81), [NEW], classifier, first_chunk=FIRST, before=[OLD])
    assert found.old_digit.tolist() == [[1, 1, 1, 1]]
    assert all(right.tolist() == [[0, 0, 0, 0]] for right in found.right.values())
    told = summary(found, found)
    assert told["jump_over_control"]["value"] == told["teleports"]["value"] == 0
    assert told["chunks_until_right"]["digit"]["never"]["value"] == 1
    assert told["chunks_until_right"]["digit"]["median"]["value"] is None
    json.dumps(told, allow_nan=False)
    # Against its own prompt it is right, also after it has bounced, which is seen only from the beginning.
    own = read_videos(moving(OLD, (30, 20), 81), [OLD], classifier, first_chunk=FIRST, since=0)
    assert all(right.tolist() == [[1, 1, 1, 1]] for right in own.right.values())


def test_means_and_paired_differences_over_pairs(classifier: DigitClassifier) -> None:
    follows = read(torch.cat([BEFORE, moving(NEW, AT, 48)], dim=2), classifier)
    stays = read(moving(OLD, (16, 20), 81), classifier)
    half, all_of_it = joined([follows, stays] * 10), joined([follows, follows] * 10)
    share = summary(half, half)["share"]["digit"]
    assert len(share) == 4
    for chunk in share:
        assert chunk["value"] == 0.5 and 0.2 < chunk["lower"] < 0.5 < chunk["upper"] < 0.8 and chunk["videos"] == 20
    difference = differences({"half": half, "all": all_of_it})["all minus half"]
    for part in ("first_chunk", "mean_of_chunks"):
        assert difference[part]["digit"]["value"] == 0.5 and difference[part]["digit"]["lower"] > 0.2


def test_pairs_differ_in_all_but_the_ground_and_are_held_out() -> None:
    pairs = switch_pairs(40, seed=3)
    for before, after in pairs:
        old, new = before.movers[0], after.movers[0]
        assert before.held_out and after.held_out and before.ground == after.ground
        assert len(before.movers) == len(after.movers) == 1
        assert old.digit != new.digit and old.colour != new.colour
        assert old.direction and new.direction
        assert np.dot(DIRECTIONS[old.direction], DIRECTIONS[new.direction]) == 0
        assert {old.motion, new.motion} <= {"stops", "bounces"}
    assert [after.movers[0].digit for _, after in pairs] == [i % 10 for i in range(40)]
    assert switch_pairs(7, seed=3) == pairs[:7]
    assert switch_pairs(7, seed=4) != pairs[:7]
    assert [tuple(map(parse, texts)) for texts in prompts_of(pairs, seed=3)] == pairs


def test_extra_steps_are_twice_those_of_the_schedule() -> None:
    assert with_extra_steps(DiagonalSchedule.parse("10", 3.0), 3) == DiagonalSchedule.parse("10 @ 20 20", 3.0)
    assert with_extra_steps(DiagonalSchedule.parse("43222"), 1) == DiagonalSchedule.parse("43222 @ 6 4")
    assert with_extra_steps(DiagonalSchedule.parse("50"), 3) == DiagonalSchedule.parse("50 @ 64 64")


def test_variants_share_their_beginning_and_pairs_do_not_mix() -> None:
    joint = Variant("joint")
    config = StudyConfig(pairs=2, chunks=4, variants=(Variant("off"), Variant("chunks"), joint, Variant("off", True)))
    checkpoint, settings = load_for_sampling(DEMO / "dit.safetensors", {"schedule": "1"})
    vae = load_autoencoder(DEMO / "vae.safetensors")
    prompts = prompts_of(switch_pairs(2, seed=0), seed=0)
    both = SwitchSampler(checkpoint, settings, vae, config).sample(prompts, [5, 6])
    plain = both.pixels[CONTROL]
    assert plain.shape == (2, 3, 45, 64, 64)
    for name, pixels in both.pixels.items():
        assert torch.equal(pixels[:, :, :SWITCH], plain[:, :, :SWITCH]), name
        if name != CONTROL:
            assert (pixels[:, :, SWITCH:] - plain[:, :, SWITCH:]).abs().max() > 0.1, name
    different = [both.pixels[v.name] for v in config.variants]
    assert all(not torch.equal(a, b) for i, a in enumerate(different) for b in different[:i])
    # A step and the commit; the window's two chunks behind the sink anew, or both at once; two steps, of which the last
    # is the commit.
    assert both.forwards == {
        CONTROL: 2, "recache off": 2, "recache chunks": 4, "recache joint": 3, "recache off, extra steps": 2,
    }  # fmt: skip
    alone = SwitchSampler(checkpoint, settings, vae, replace(config, variants=(joint,))).sample(prompts[1:], [6])
    assert torch.allclose(both.pixels[joint.name][1:], alone.pixels[joint.name], atol=0.05)


def test_the_command_writes_results_and_pictures(tmp_path: Path) -> None:
    command = ["switch-study", str(DEMO), "--pairs", "2", "--chunks", "3", "--switch-chunk", "1", "--schedule", "1"]
    assert main([*command, "--json", str(tmp_path / "r.json"), "--plot", str(tmp_path / "pictures")]) == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["pairs"] == 2 and len(result["variants"]) == 6
    for variant in result["variants"].values():
        assert {len(chunks) for chunks in variant["share"].values()} == {2}
    assert result["variants"]["recache joint, extra steps"]["schedule"] == "1 @ 22"
    for name in ("prompt-switch.png", "prompt-switch-frames.png"):
        assert (tmp_path / "pictures" / name).read_bytes().startswith(b"\x89PNG")
    lines = (tmp_path / "pictures" / "prompt-switch-tables.md").read_text(encoding="utf-8").splitlines()
    cells = [cell.strip() for cell in next(x for x in lines if x.startswith("| recache chunks |")).split("|")]
    chunks = result["variants"]["recache chunks"]
    share = chunks["share"]["colour"][0]
    assert cells[2] == str(chunks["forwards_after_switch"])
    assert cells[5] == f"{100 * share['value']:.0f}% ({100 * share['lower']:.0f}–{100 * share['upper']:.0f})"  # noqa: RUF001
    assert sum(x.startswith("| recache") or x.startswith("| extra steps") for x in lines) == 6 + 6 + 6


@pytest.mark.parametrize(
    "wrong, told",
    [
        (["--switch-chunk", "0"], "after the first chunk"),
        (["--pairs", "0"], "1 or more"),
        (["--example", "9"], "0 to 1"),
    ],
)
def test_wrong_sizes_are_told_before_any_work(wrong: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["switch-study", str(DEMO), "--pairs", "2", *wrong]) == 2
    assert told in capsys.readouterr().err
