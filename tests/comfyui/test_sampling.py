"""The Diagonal Sampler in ComfyUI: the same results by every way that leads to them, and with ComfyUI's own nodes."""

from __future__ import annotations

import pytest
import torch
from comfy_server import PACK
from graphs import OTHER_PROMPT, PROMPT

from diag_core import CacheConfig, ContextPolicy, DiagonalSchedule, SeededNoise, generate
from diag_core.checkpoint import load_dit
from diag_core.demo_text import DemoTextEncoder
from diag_core.vae.wan import latent_statistics

DEMO_DIT = PACK / "demo" / "dit.safetensors"


@pytest.fixture
def sample(client, graph, latents):
    """(build) -> latents: `build(graph)` returns the node whose LATENT is wanted; everything is run anew."""

    def run(build):
        g = graph()
        saved = g.save(build(g))
        return latents(client.succeed(g.fresh()), saved)

    return run


def test_the_same_workflow_twice_gives_the_same_latents(sample):
    first, again = (sample(lambda g: g.sampled()[0]) for _ in range(2))
    assert torch.equal(first, again)
    assert first.isfinite().all() and first.std() > 0.1
    assert not torch.allclose(sample(lambda g: g.sampled(seed=2)[0]), first, atol=1e-2)


def test_a_longer_video_begins_the_same_and_a_part_of_a_chunk_is_trimmed(sample):
    longer, shorter = sample(lambda g: g.sampled(latent_frames=9)[0]), sample(lambda g: g.sampled(latent_frames=7)[0])
    assert shorter.shape[2] == 7
    assert torch.equal(shorter, longer[:, :, :7])


def test_sample_b_of_a_batch_is_the_video_of_seed_plus_b(sample):
    def build(g, seed, count):
        return g.sampler(g.demo_model(), g.prompt(), g.empty(6, batch_size=count), seed=seed)

    batch = sample(lambda g: build(g, 5, 2))
    torch.testing.assert_close(batch[1:], sample(lambda g: build(g, 6, 1)), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("widgets", "options"),
    [
        ({"kv_noise": 100.0}, {"policy": ContextPolicy.kv_noise(100.0)}),
        ({"kv_noise": 0.0}, {"policy": ContextPolicy.clean()}),
        (
            {"kv_noise": 50.0, "positions": "relative", "window": 9},
            {"policy": ContextPolicy.kv_noise(50.0), "cache": CacheConfig(9, 3, "relative")},
        ),
        (
            {"kv_noise": 0.0, "step": "euler", "cfg": 2.0},
            {"policy": ContextPolicy.clean(), "step": "euler", "cfg": 2.0},
        ),
    ],
)
def test_it_equals_diag_core_without_comfyui(sample, widgets, options):
    def build(g):
        guided = {"negative": g.prompt("")} if widgets.get("cfg") else {}
        settings = {"step": "renoise", "schedule_text": "4322", "seed": 7, **widgets, **guided}
        return g.sampler(g.demo_model(), g.prompt(), g.empty(12), **settings)

    encode = DemoTextEncoder().encode
    alone = generate(
        load_dit(DEMO_DIT, dtype=torch.float32).model,
        encode([PROMPT]),
        DiagonalSchedule.parse("4322"),
        noise=SeededNoise(7),
        num_latent_frames=12,
        height=8,
        width=8,
        negative=encode([""]),
        **options,
    )
    mean, std = latent_statistics(torch.device("cpu"))
    torch.testing.assert_close((sample(build) - mean) / std, alone, atol=1e-4, rtol=1e-4)


def test_sampler_custom_advanced_gives_the_same(sample):
    def advanced(g, guider):
        model, positive = g.demo_model(), g.prompt()
        select = g.add("DiagDistillSamplerSelect", preset="custom", schedule_text="3 2", step="euler")
        return g.add(
            "SamplerCustomAdvanced",
            noise=g.add("RandomNoise", noise_seed=1),
            guider=guider(g, model, positive),
            sampler=select,
            sigmas=select[1],
            latent_image=g.empty(),
        )

    def basic(g, model, positive):
        return g.add("BasicGuider", model=model, conditioning=positive)

    def guided(g, model, positive):
        return g.add("CFGGuider", model=model, positive=positive, negative=g.prompt(""), cfg=2.0)

    plain = sample(lambda g: g.sampled(schedule_text="3 2")[0])
    assert torch.equal(sample(lambda g: advanced(g, basic)), plain)

    def ours(g):
        return g.sampler(g.demo_model(), g.prompt(), g.empty(), negative=g.prompt(""), cfg=2.0, schedule_text="3 2")

    assert torch.equal(sample(lambda g: advanced(g, guided)), sample(ours))


def test_a_connected_schedule_goes_before_the_text(sample):
    def build(g):
        schedule = g.add("DiagDistillSchedule", preset="custom", steps="3 1")
        return g.sampler(g.demo_model(), g.prompt(), g.empty(), schedule=schedule, schedule_text="2")

    assert torch.equal(sample(build), sample(lambda g: g.sampled(schedule_text="3 1")[0]))


@pytest.mark.parametrize("first", [6, 7])
def test_extend_equals_one_longer_run(sample, first):
    def extended(g):
        model, positive = g.demo_model(), g.prompt()
        beginning = g.sampler(model, positive, g.empty(first), schedule_text="3 2 1")
        more = g.add("DiagDistillExtend", latent=beginning, length=float(12 - first), unit="latent frames")
        return g.sampler(model, positive, more, schedule_text="3 2 1")

    assert torch.equal(sample(extended), sample(lambda g: g.sampled(latent_frames=12, schedule_text="3 2 1")[0]))


def test_chunks_that_are_added_have_the_size_of_those_that_are_there(sample):
    def extended(g):
        model, positive = g.demo_model(), g.prompt()
        beginning = g.sampler(model, positive, g.empty(4), chunk_frames=2)
        more = g.add("DiagDistillExtend", latent=beginning, length=1.0, unit="chunks")
        return g.sampler(model, positive, more, chunk_frames=2)

    assert sample(extended).shape[2] == 6


def test_a_sampler_that_knows_no_record_keeps_what_extend_was_given(sample, client, graph, latents):
    def select(g):
        return g.add("DiagDistillSamplerSelect", preset="custom", schedule_text="2", step="euler")

    g = graph()
    model, positive = g.demo_model(), g.prompt()
    beginning = g.sampler(model, positive, g.empty(6))
    more = g.add("DiagDistillExtend", latent=beginning, length=1.0, unit="chunks")
    sampler = select(g)
    longer = g.add(
        "SamplerCustomAdvanced", noise=g.add("RandomNoise", noise_seed=5), sampler=sampler, sigmas=sampler[1],
        guider=g.add("BasicGuider", model=model, conditioning=g.prompt(OTHER_PROMPT)), latent_image=more,
    )  # fmt: skip
    saved, saved_longer = g.save(beginning, "latents/beginning"), g.save(longer, "latents/longer")
    run = client.succeed(g)
    before, after = latents(run, saved), latents(run, saved_longer)
    torch.testing.assert_close(after[:, :, :6], before, atol=1e-4, rtol=1e-4)
    assert after.shape[2] == 9 and after[:, :, 6:].std() > 0.1


def test_a_single_prompt_can_be_changed_behind_its_timeline(sample):
    def build(g, positive):
        return g.sampler(g.demo_model(), g.add("ConditioningZeroOut", conditioning=positive), g.empty(3))

    def timeline(g):
        return build(g, g.add("DiagDistillPromptTimeline", clip=g.prompt()[1], text=f"0s: {PROMPT}"))

    assert torch.equal(sample(timeline), sample(lambda g: build(g, g.prompt())))


def test_extend_under_another_prompt_is_a_timeline(sample):
    def extended(g):
        model = g.demo_model()
        beginning = g.sampler(model, g.prompt(PROMPT), g.empty(6))
        more = g.add("DiagDistillExtend", latent=beginning, length=1.0, unit="chunks")
        return g.sampler(model, g.prompt(OTHER_PROMPT), more)

    def timeline(g):
        text = f"0lf: {PROMPT}\n6lf: {OTHER_PROMPT}"
        prompts = g.add("DiagDistillPromptTimeline", clip=g.prompt()[1], text=text)
        return g.sampler(g.demo_model(), prompts, g.empty(9))

    torch.testing.assert_close(sample(extended), sample(timeline), atol=1e-3, rtol=1e-3)


def test_a_timeline_switches_when_it_says_and_can_be_joined_by_hand(sample):
    def timeline(g):
        text = f"0s: {PROMPT}\n1c: {OTHER_PROMPT}"
        return g.sampler(g.demo_model(), g.add("DiagDistillPromptTimeline", clip=g.prompt()[1], text=text), g.empty(6))

    def joined(g):
        prompts = g.add("DiagDistillTimelineJoin", before=g.prompt(PROMPT), after=g.prompt(OTHER_PROMPT), at="1c")
        return g.sampler(g.demo_model(), prompts, g.empty(6))

    switched, plain = sample(timeline), sample(lambda g: g.sampled()[0])
    assert torch.equal(switched[:, :, :3], plain[:, :, :3])
    assert not torch.allclose(switched[:, :, 3:], plain[:, :, 3:], atol=1e-2)
    assert torch.equal(sample(joined), switched)


def test_a_plain_ksampler_takes_a_timeline_as_its_first_prompt(sample):
    def build(g, positive):
        return g.add(
            "KSampler", model=g.demo_model(), positive=positive, negative=g.prompt(""), latent_image=g.empty(3),
            seed=1, steps=2, cfg=1.0, sampler_name="euler", scheduler="simple", denoise=1.0,
        )  # fmt: skip

    def timeline(g):
        text = f"0s: {PROMPT}\n2s: {OTHER_PROMPT}"
        return build(g, g.add("DiagDistillPromptTimeline", clip=g.prompt()[1], text=text))

    assert torch.equal(sample(timeline), sample(lambda g: build(g, g.prompt(PROMPT))))


def test_guidance_counts_and_is_nothing_between_equal_prompts(sample):
    def build(g, negative, cfg=3.0):
        return g.sampler(g.demo_model(), g.prompt(), g.empty(), negative=g.prompt(negative), cfg=cfg)

    plain = sample(lambda g: g.sampled()[0])
    torch.testing.assert_close(sample(lambda g: build(g, PROMPT)), plain, atol=1e-2, rtol=1e-2)
    assert not torch.allclose(sample(lambda g: build(g, "")), plain, atol=0.1)


def test_combined_conditions_are_averaged(sample):
    def build(g, *prompts):
        both = g.add("ConditioningCombine", conditioning_1=g.prompt(prompts[0]), conditioning_2=g.prompt(prompts[1]))
        return g.sampler(g.demo_model(), both, g.empty())

    plain, other = sample(lambda g: g.sampled()[0]), sample(lambda g: g.sampled(OTHER_PROMPT)[0])
    torch.testing.assert_close(sample(lambda g: build(g, PROMPT, PROMPT)), plain, atol=1e-3, rtol=1e-3)
    mixed = sample(lambda g: build(g, PROMPT, OTHER_PROMPT))
    torch.testing.assert_close(sample(lambda g: build(g, OTHER_PROMPT, PROMPT)), mixed, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(mixed, plain, atol=0.1) and not torch.allclose(mixed, other, atol=0.1)


def test_a_patch_of_another_node_that_skips_a_block_counts(sample):
    def build(g, layers):
        patched = g.add(
            "SkipLayerGuidanceDiT", model=g.demo_model(), double_layers=layers, single_layers="", scale=3.0,
            start_percent=0.0, end_percent=1.0, rescaling_scale=0.0,
        )  # fmt: skip
        return g.sampler(patched, g.prompt(), g.empty(), negative=g.prompt(""), cfg=2.0)

    plain, skipping = sample(lambda g: build(g, "")), sample(lambda g: build(g, "1"))
    assert skipping.isfinite().all() and not torch.allclose(skipping, plain, atol=0.1)


def test_combined_conditions_with_guidance(sample):
    def build(g):
        both = g.add("ConditioningCombine", conditioning_1=g.prompt(), conditioning_2=g.prompt(OTHER_PROMPT))
        return g.sampler(g.demo_model(), both, g.empty(), negative=g.prompt(""), cfg=2.0)

    assert sample(build).isfinite().all()


def test_frames_whose_noise_mask_is_0_are_kept(sample, client, graph, latents):
    g = graph()
    vae = g.add("DiagDistillTinyVAELoader")
    image = g.add("LoadImage", image="example.png")
    start = g.add("DiagDistillStartLatent", vae=vae, image=image, width=64, height=64, length=6.0, unit="latent frames")
    sampler = g.sampler(g.demo_model(), g.prompt(), start)
    given, saved = g.save(start, "latents/given"), g.save(sampler)
    run = client.succeed(g)
    before, after = latents(run, given), latents(run, saved)
    torch.testing.assert_close(after[:, :, :3], before[:, :, :3], atol=1e-5, rtol=1e-5)
    assert after[:, :, 3:].std() > 0.1 and before[:, :, 3:].abs().max() == 0
    # The rest depends on what is given.
    assert not torch.allclose(after[:, :, 3:], sample(lambda g: g.sampled()[0])[:, :, 3:], atol=1e-2)


def test_a_part_of_the_picture_can_be_kept(sample):
    def masked(g):
        model = g.demo_model()
        first = g.sampler(model, g.prompt(), g.empty())
        # 1 is sampled anew: the right half.
        left, whole = g.add("SolidMask", value=0.0, width=32, height=64), g.add("SolidMask", width=64, height=64)
        mask = g.add("MaskComposite", destination=whole, source=left, x=0, y=0, operation="multiply")
        return g.sampler(model, g.prompt(OTHER_PROMPT), g.add("SetLatentNoiseMask", samples=first, mask=mask))

    first, second = sample(lambda g: g.sampled()[0]), sample(masked)
    torch.testing.assert_close(second[..., :4], first[..., :4], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(second[..., 4:], first[..., 4:], atol=0.1)
