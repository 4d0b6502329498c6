"""Checkpoint settings: valid or refused by name, through JSON and back, and the presets of published models."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diag_core.settings import PRESETS, CheckpointSettings, published_settings

SETTINGS = PRESETS["diagdistill"]


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(sorted(SETTINGS.to_dict())) | st.text(max_size=5),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=5)
        | st.lists(st.integers(), max_size=2),
    )
)
def test_settings_are_valid_or_refused_by_name(changes: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            made = CheckpointSettings.from_dict({**SETTINGS.to_dict(), **changes})
        except ValueError as error:
            assert str(error).startswith("checkpoint settings, ")
            return
    assert CheckpointSettings.from_json(made.to_json()) == made
    made.diagonal_schedule(), made.policy(), made.cache()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"schedule": "43x"}, "schedule: character 3"),
        ({"schedule": 4}, "schedule: must be text"),
        ({"shift": -1.0}, "schedule: shift must be"),
        ({"kv_noise": 1001}, "kv_noise: .*0 to 1000"),
        ({"window_frames": 5}, "window_frames: must hold the sink and at least one chunk, got 5"),
        ({"window_frames": 2.5}, "window_frames: must be a whole number"),
        ({"positions": "rotary"}, "window_frames: .*positions"),
        ({"step": "heun"}, "step: must be one of renoise, euler, got 'heun'"),
        ({"text_encoder": "clip"}, "text_encoder: must be one of umt5, demo"),
        ({"cfg": float("inf")}, "cfg: must be a finite number"),
        ({"causal": 1}, "causal: must be true or false"),
    ],
)
def test_each_wrong_setting_is_named(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(SETTINGS, **changes)


def test_settings_of_a_newer_version_are_read_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="left out: aspect, mood"):
        assert CheckpointSettings.from_dict({**SETTINGS.to_dict(), "mood": 1, "aspect": "16:9"}) == SETTINGS
    for text in ("[]", "{", "{}", '"4322222"'):
        with pytest.raises(ValueError, match="checkpoint settings"):
            CheckpointSettings.from_json(text)


def test_presets_are_taken_from_a_name_only_when_it_is_certain() -> None:
    assert published_settings("a/self_forcing_dmd.pt") == PRESETS["self-forcing"]
    assert published_settings("self_forcing_dmd.safetensors") == PRESETS["self-forcing"]
    assert published_settings("longlive_base.pt") == PRESETS["longlive"]
    assert published_settings("wan2.1_t2v_1.3B_fp16.safetensors") == PRESETS["wan"]
    for name in ("model.pt", "ode_init.pt", "diffusion_pytorch_model.safetensors", "my_self_forcing_dmd.pt"):
        assert published_settings(name) is None
    assert PRESETS["longlive"].policy().sigma == 0 and PRESETS["longlive"].cache().window_frames == 12
    assert PRESETS["self-forcing"].diagonal_schedule().schedule_timesteps(3) == (1000, 750, 500, 250)
    assert PRESETS["wan"].diagonal_schedule().steps(0) == 50 and not PRESETS["wan"].causal
    assert SETTINGS.policy().sigma == pytest.approx(5 * 0.1 / 1.4)
