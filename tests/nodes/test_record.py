"""What an extended video goes by: the record of its beginning, and one timeline out of two."""

from __future__ import annotations

import pytest
import torch
from diagdistill_pack.diag_core import Take, Timeline
from diagdistill_pack.nodes.record import Record, splice

A, B, C = (torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3))


def copies(*entries: tuple[int, torch.Tensor], blend: int = 0) -> Timeline:
    """Equal contexts as one tensor, but not those of the test: as if encoded anew."""
    known: dict[int, torch.Tensor] = {}
    return Timeline([(f, known.setdefault(id(t), t.clone())) for f, t in entries], blend)


def prompts(timeline: Timeline) -> list[str]:
    """The prompt of each chunk of 3, by name; '?' for a mixture."""
    names = []
    for start in range(0, 21, 3):
        context = timeline.at(start, 3).context
        names.append(next((n for n, t in zip("ABC", (A, B, C), strict=True) if torch.equal(t, context)), "?"))
    return names


def switches(timeline: Timeline) -> list[int]:
    return [start for start in range(0, 21, 3) if timeline.at(start, 3).recache]


def test_the_same_prompt_goes_on_without_a_switch():
    timeline = splice(copies((0, A)), copies((0, A)), 9)
    assert prompts(timeline) == ["A"] * 7 and switches(timeline) == []


def test_another_prompt_is_a_switch_where_the_video_is_extended():
    timeline = splice(copies((0, A)), copies((0, B)), 9)
    assert prompts(timeline) == list("AAABBBB") and switches(timeline) == [9]


def test_a_longer_timeline_that_begins_the_same_is_one_longer_run():
    longer = copies((0, A), (6, B), (12, A), blend=2)
    assert splice(copies((0, A), (6, B)), longer, 9) is longer


def test_of_two_timelines_each_counts_on_its_side():
    timeline = splice(copies((0, A), (3, B)), copies((0, C), (6, A), (15, B)), 9)
    assert prompts(timeline) == list("ABBAABB") and switches(timeline) == [3, 9, 15]


def test_a_switch_at_the_seam_is_the_new_timelines():
    timeline = splice(copies((0, A)), copies((0, A), (9, B)), 9)
    assert prompts(timeline) == list("AAABBBB")


def record(length: int = 6) -> Record:
    takes = tuple(Take(torch.full((1, 16, 3, 2, 2), float(n)), None, 0.3) for n in range(2))
    return Record(3, length, None, takes, ())


def latents(frames: int, *values: float) -> torch.Tensor:
    parts = [torch.full((1, 16, 1, 2, 2), value) for value in values]
    return torch.cat([*parts, torch.zeros(1, 16, frames - len(values), 2, 2)], dim=2)


def test_a_record_knows_its_latents_again():
    whole, trimmed = record(), record(length=5)
    whole.check(latents(9, 0, 0, 0, 1, 1, 1), 3)
    trimmed.check(latents(9, 0, 0, 0, 1, 1), 3)
    assert whole.latent_frames == trimmed.latent_frames == 6
    with pytest.raises(ValueError, match="changed after it was sampled"):
        whole.check(latents(9, 0, 0, 0, 1, 1), 3)  # what was trimmed from one is missing in the other


@pytest.mark.parametrize("changed", [latents(9, 0, 0, 0, 1, 1, 0.5), latents(5, 0, 0, 0, 1, 1)])
def test_latents_that_were_changed_cannot_be_continued(changed):
    with pytest.raises(ValueError, match="changed after it was sampled"):
        record().check(changed, 3)


def test_the_chunk_size_stays():
    with pytest.raises(ValueError, match="chunk_frames to 3"):
        record().check(latents(9, 0, 0, 0, 1, 1, 1), 4)
