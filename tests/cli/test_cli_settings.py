"""Who decides how a video is sampled."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import SETTINGS

from diag_core.cli.request import VideoRequest
from diag_core.cli.settings import OPTIONS, resolve
from diag_core.config import SwitchPolicy
from diag_core.settings import PRESETS, CheckpointSettings
from diag_core.timeline_text import TimelineEntry


def test_the_checkpoint_speaks_first():
    resolved = resolve(SETTINGS, None, {})
    assert resolved.settings == SETTINGS
    assert set(resolved.sources.values()) == {"checkpoint"}


def test_then_a_preset_but_not_about_the_model_itself():
    resolved = resolve(SETTINGS, "longlive", {})
    assert resolved.settings == dataclasses.replace(PRESETS["longlive"], text_encoder="demo-clauses", title="tiny")
    assert set(resolved.sources.values()) == {"preset longlive"}


def test_then_the_options():
    resolved = resolve(SETTINGS, "longlive", {"kv_noise": 50.0, "window_frames": None})
    assert (resolved.settings.kv_noise, resolved.settings.window_frames) == (50.0, None)
    assert resolved.settings.schedule == PRESETS["longlive"].schedule
    sources = resolved.sources
    assert (sources["kv_noise"], sources["window_frames"], sources["schedule"]) == (
        "--kv-noise",
        "--window",
        "preset longlive",
    )


def test_a_checkpoint_that_says_nothing_needs_a_preset_or_a_schedule():
    with pytest.raises(ValueError, match=r"x\.pt does not say how it is sampled: choose with --preset \(diagdistill"):
        resolve(None, None, {"kv_noise": 50.0}, name="x.pt")
    assert resolve(None, "diagdistill", {}).settings == PRESETS["diagdistill"]
    resolved = resolve(None, None, {"schedule": "432"})
    assert resolved.settings == CheckpointSettings(schedule="432")
    assert (resolved.sources["schedule"], resolved.sources["shift"]) == ("--schedule", "default")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kv_noise": 2000.0}, r"^--kv-noise: KV noise is"),
        ({"schedule": "9x"}, r"^--schedule: character 2"),
        ({"shift": -2.0}, r"^--shift: "),
        ({"sink_frames": 12}, r"^--sink: "),
        ({"chunk_frames": 0}, r"^--chunk-frames: "),
        ({"cfg": -1.0}, r"^--cfg: "),
    ],
)
def test_a_wrong_value_is_told_by_its_option(options, said):
    with pytest.raises(ValueError, match=said):
        resolve(SETTINGS, None, options)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "schedule": st.text(max_size=8),
            "shift": st.floats(),
            "kv_noise": st.floats(),
            "reuse_last_step": st.booleans(),
            "window_frames": st.none() | st.integers(-2, 20),
            "sink_frames": st.integers(-2, 20),
            "chunk_frames": st.integers(-2, 20),
            "cfg": st.floats(),
            "negative_prompt": st.text(max_size=5),
        },
    ),
    st.sampled_from([None, *PRESETS, "none"]),
    st.sampled_from([None, SETTINGS]),
)
def test_options_are_taken_or_refused_with_a_reason(options, preset, stored):
    try:
        resolved = resolve(stored, preset, options)
    except ValueError as error:
        assert str(error)
        return
    for field, value in options.items():
        assert getattr(resolved.settings, field) == value
        assert resolved.sources[field] == OPTIONS[field]


SWITCH_AT_5 = (TimelineEntry(0, "a", "0s"), TimelineEntry(5, "b", "5lf"))


def request(**changes) -> VideoRequest:
    values = dict(
        entries=(TimelineEntry(0, "a; b", "0s"),),
        settings=SETTINGS,
        seed=3,
        width=48,
        height=32,
        fps=16.0,
        pixel_frames=41,
    )
    return VideoRequest(**(values | changes))


def test_a_request_survives_json():
    full = request(
        entries=(TimelineEntry(0, "a", "0s"), TimelineEntry(6, "b", "2c")),
        given_frames=3,
        blend_chunks=2,
        switch=SwitchPolicy("joint", True),
    )
    assert VideoRequest.from_dict(json.loads(json.dumps(full.to_dict()))) == full


@pytest.mark.parametrize(
    "values", [None, {}, {"entries": []}, {**request().to_dict(), "extra": 1}, {**request().to_dict(), "entries": 3}]
)
def test_what_is_no_request_is_refused(values):
    with pytest.raises(ValueError):
        VideoRequest.from_dict(values)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # 11 latent frames are 4 chunks, of 2, 1, 1, 1 steps.
        ({}, (5, 4)),
        ({"settings": dataclasses.replace(SETTINGS, kv_noise=100.0, reuse_last_step=True)}, (5, 3)),
        ({"given_frames": 1}, (5, 5)),  # spans of 1, 3, 3, 3, 3
        ({"given_frames": 3}, (4, 4)),
        ({"settings": dataclasses.replace(SETTINGS, schedule="21 @ 4"), "entries": SWITCH_AT_5}, (8, 4)),
        ({"settings": dataclasses.replace(PRESETS["wan"])}, (50, 0)),
    ],
)  # fmt: skip
def test_the_work_is_known_beforehand(changes, expected):
    work = request(**changes).work()
    assert (work.steps, work.commits) == expected
