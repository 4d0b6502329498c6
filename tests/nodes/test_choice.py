"""Which settings count: the model's, a preset's or the widgets', and the schedule that goes before them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from diagdistill_pack.diag_core import DiagonalSchedule
from diagdistill_pack.diag_core.settings import PRESETS, CheckpointSettings
from diagdistill_pack.nodes.choice import CUSTOM, FROM_MODEL, SamplingChoice, describe

WIDGETS = {"shift": 3.0, "kv_noise": 50.0, "window_frames": 15, "sink_frames": 0, "cfg": 2.0}
OWN = CheckpointSettings(schedule="21", text_encoder="demo-clauses", kv_noise=10.0)


def choice(preset: str, text: str = "", schedule: DiagonalSchedule | None = None, **values) -> SamplingChoice:
    return SamplingChoice(preset, schedule, text, WIDGETS | values)


def test_from_model_takes_the_models_own():
    assert choice(FROM_MODEL).resolve(OWN) == OWN


@pytest.mark.parametrize("preset", [FROM_MODEL, CUSTOM])
def test_the_widgets_count_for_custom_and_where_the_model_says_nothing(preset):
    settings = choice(preset).resolve(None)
    assert (settings.kv_noise, settings.window_frames, settings.cfg) == (50.0, 15, 2.0)
    assert settings.schedule == "4322222"


def test_it_is_known_when_the_model_was_asked_and_said_nothing():
    assert choice(FROM_MODEL).guesses(None)
    assert not choice(FROM_MODEL).guesses(OWN) and not choice(CUSTOM).guesses(None)
    assert not choice("longlive").guesses(None)


def test_custom_goes_before_the_models_own_where_there_is_a_widget_and_keeps_the_rest():
    own = replace(OWN, causal=False, title="a model", positions="relative")
    settings = choice(CUSTOM, positions="absolute").resolve(own)
    assert (settings.kv_noise, settings.window_frames, settings.positions) == (50.0, 15, "absolute")
    assert (settings.schedule, settings.text_encoder, settings.title) == ("21", "demo-clauses", "a model")
    assert not settings.causal


def test_a_preset_changes_the_sampling_but_not_what_the_model_is():
    settings = choice("longlive").resolve(OWN)
    assert settings.schedule == PRESETS["longlive"].schedule and settings.kv_noise == 0.0
    assert settings.text_encoder == "demo-clauses"


@pytest.mark.parametrize("preset", [FROM_MODEL, CUSTOM, "self-forcing"])
def test_a_text_goes_before_the_preset_and_a_connected_schedule_before_both(preset):
    assert choice(preset, "33").resolve(OWN).schedule == "33"
    connected = DiagonalSchedule.parse("2 1", 7.0)
    settings = choice(preset, "33", connected).resolve(OWN)
    assert settings.diagonal_schedule() == connected and settings.shift == 7.0


def test_values_that_cannot_be_are_named():
    with pytest.raises(ValueError, match="window_frames"):
        choice(CUSTOM, window_frames=2, sink_frames=3).resolve(None)
    with pytest.raises(ValueError, match="schedule"):
        choice(FROM_MODEL, "4x2").resolve(OWN)


def test_the_description_says_what_a_reader_must_know():
    text = describe(PRESETS["diagdistill"], 7)
    assert "4 3 2 2 2 2 2 (17 forwards)" in text and "true timestep 357.1" in text and "last step reused" in text
    text = describe(PRESETS["longlive"], 7)
    assert "28 forwards" in text and "one forward a chunk" in text
    assert describe(PRESETS["diagdistill"], 40).count("..") == 1
    assert "KV noise" not in describe(PRESETS["wan"], 1)
