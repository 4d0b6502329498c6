"""What a user sees while a video is sampled, and what happens when it is stopped."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import torch
from comfy_client import ComfyClient
from graphs import DEMO, OTHER_PROMPT


def test_previews_show_the_chunks_in_order(client, graph):
    g = graph()
    negative, latent = g.prompt(""), g.empty(12)
    sampler = g.sampler(
        g.demo_model(), g.prompt("a red 3 moves right fast and stops, on a black ground"), latent,
        negative=negative, preset="from model", schedule_text="",
    )  # fmt: skip
    decoded = g.add("DiagDistillStreamingDecode", samples=sampler, vae=g.add("DiagDistillTinyVAELoader", vae_name=DEMO))
    shown = g.add("PreviewImage", images=decoded)
    run = client.succeed(g)
    assert [preview.node for preview in run.previews] == [sampler.id] * 4
    last_of_chunk = [8, 20, 32, 44]  # pixel frames
    files = run.outputs[shown.id]["images"]
    frames = [_array(client.view(files[index])) for index in last_of_chunk]
    nearest = []
    for preview in run.previews:
        picture = np.asarray(preview.picture().resize((64, 64)), dtype=np.float32)
        nearest.append(int(np.argmin([np.abs(picture - frame).mean() for frame in frames])))
    assert nearest == [0, 1, 2, 3]


def _array(png: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(BytesIO(png)).convert("RGB"), dtype=np.float32)


def test_progress_counts_the_forwards_and_each_preview_follows_its_chunk(client, graph):
    # The last step of "1000,100" is at the KV noise: with reuse it is the commit too, without it there is one more.
    for reuse, forwards in ((True, 2), (False, 3)):
        g = graph()
        sampler, _ = g.sampled(latent_frames=12, schedule_text="1000,100", kv_noise=100.0, reuse_last_step=reuse)
        run = client.succeed(g)
        assert [done for done, _ in dict.fromkeys(run.progress(sampler.id))] == list(range(1, 4 * forwards + 1))
        assert {total for _, total in run.progress(sampler.id)} == {4 * forwards}
        done, at_preview = 0, []
        for event in run.events:
            if event[1] == sampler.id and event[0] == "progress":
                done = event[2]
            elif event[0] == "preview":
                at_preview.append(done)
        assert at_preview == [forwards * chunk for chunk in (1, 2, 3, 4)]


def test_an_interrupt_ends_it_within_a_forward_and_the_next_run_is_right(client, graph, latents):
    def small():
        g = graph()
        _, saved = g.sampled(latent_frames=6)
        return g.fresh(), saved

    g, saved = small()
    before = latents(client.succeed(g), saved)

    g = graph()
    sampler = g.sampler(g.demo_model(), g.prompt(), g.empty(60, width=256, height=256))
    g.save(sampler)
    prompt_id = client.submit(g)
    client.wait_for_progress(prompt_id, sampler.id, 3)
    client.interrupt()
    client.drain()  # what was under way when the request was taken
    seen = client._runs[prompt_id].progress(sampler.id)[-1][0]
    run = client.wait(prompt_id)
    assert run.outcome == "interrupted"
    done, total = run.progress(sampler.id)[-1]
    assert done <= seen + 1 and done < total // 2

    g, saved = small()
    assert torch.equal(latents(client.succeed(g), saved), before)
    assert client.queue() == ([], [])


def test_two_prompts_in_the_queue_do_not_mix(server, client, graph, latents):
    def one(prompt: str, seed: int):
        g = graph()
        _, saved = g.sampled(prompt, latent_frames=9, seed=seed)
        return g.fresh(), saved

    wanted = (("a red 3 moves right", 1), (OTHER_PROMPT, 2))
    alone = [latents(client.succeed(g), saved) for g, saved in (one(*what) for what in wanted)]
    assert not torch.allclose(alone[0], alone[1], atol=1e-2)

    other = ComfyClient(server.url)
    try:
        queued = [(tab, *one(*what)) for tab, what in zip((client, other), wanted, strict=True)]
        submitted = [(tab, tab.submit(g), saved) for tab, g, saved in queued]
        for (tab, prompt_id, saved), expected in zip(submitted, alone, strict=True):
            run = tab.wait(prompt_id)
            assert run.outcome == "success", run.message
            assert len(run.previews) == 3
            assert torch.equal(latents(run, saved), expected)
        runs_of_others = [set(tab._runs) - {prompt_id} for tab, prompt_id, _ in submitted[1:]]
        assert runs_of_others == [set()]
    finally:
        other.close()
