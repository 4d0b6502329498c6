"""Diagonal Stream, live prompts and saved states in a real ComfyUI."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import urllib.error
from typing import Any

import av
import numpy as np
import pytest
import torch
from comfy_client import ComfyClient, Run
from graphs import DEMO, OTHER_PROMPT, PROMPT, Graph, Node


def stream(g: Graph, latent_frames: int = 9, prompt: str = PROMPT, **inputs: Any) -> Node:
    """The demo, streamed with two Euler steps a chunk and no guidance, unless `inputs` say otherwise."""
    settings: dict[str, Any] = {
        "width": 64, "height": 64, "length": float(latent_frames), "unit": "latent frames", "seed": 1,
        "preset": "custom", "schedule_text": "2", "step": "euler", "filename_prefix": "test/stream",
    }  # fmt: skip
    vae = g.add("DiagDistillTinyVAELoader", vae_name=DEMO)
    positive = inputs.pop("positive", None) or g.prompt(prompt)
    return g.add(
        "DiagDistillStream", model=g.demo_model(), positive=positive, vae=vae, **{**settings, **inputs}
    )  # fmt: skip


def file_of(run: Run, node: Node) -> dict[str, str]:
    (file,) = run.outputs[node.id]["images"]
    return file


def frames_of(client: ComfyClient, file: dict[str, str]) -> np.ndarray:
    with av.open(io.BytesIO(client.view(file))) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_the_file_holds_what_sampler_and_decoder_make(client, graph):
    g = graph()
    node = stream(g)
    sampler = g.sampler(g.demo_model(), g.prompt(), g.empty(9))
    images = g.add("DiagDistillStreamingDecode", samples=sampler, vae=g.add("DiagDistillTinyVAELoader", vae_name=DEMO))
    video = g.add("CreateVideo", images=images, fps=16.0)
    saved = g.add("SaveVideo", video=video, filename_prefix="test/whole", format="auto", codec="auto")
    run = client.succeed(g)
    file = file_of(run, node)
    assert (file["subfolder"], file["type"]) == ("test", "output") and file["filename"].endswith(".mp4")
    streamed, whole = frames_of(client, file), frames_of(client, file_of(run, saved))
    assert streamed.shape == whole.shape == (33, 64, 64, 3)
    assert np.abs(streamed.astype(int) - whole).mean() < 4  # two encodings of the same frames
    assert [preview.node for preview in run.previews if preview.node == node.id] == [node.id] * 3
    assert {total for _, total in run.progress(node.id)} == {6}  # two steps a chunk, the last of which is the commit
    assert "steps 2 2 2 (6 forwards)" in run.outputs[node.id]["diagdistill"][0]


def test_the_file_tells_how_it_was_made_and_that_a_model_made_it(client, graph):
    g = graph()
    node = stream(g, seed=7)
    data = client.view(file_of(client.succeed(g), node))
    with av.open(io.BytesIO(data)) as container:
        tags = container.metadata
    assert json.loads(tags["prompt"])[node.id]["class_type"] == "DiagDistillStream"
    about = json.loads(tags["comment"])
    assert about["seed"] == 7 and about["settings"]["schedule"] == "2"
    assert data.index(b"trainedAlgorithmicMedia") < data.index(b"mdat")


def test_the_video_goes_on_to_other_nodes_and_two_runs_do_not_overwrite_each_other(client, graph):
    g = graph()
    node = stream(g)
    parts = g.add("GetVideoComponents", video=node)
    shown = g.add("PreviewImage", images=parts)
    run = client.succeed(g.fresh())
    assert len(run.outputs[shown.id]["images"]) == 33
    again = client.succeed(g.fresh())
    assert file_of(run, node) != file_of(again, node)
    assert np.array_equal(frames_of(client, file_of(run, node)), frames_of(client, file_of(again, node)))


def test_the_wan_vae_decodes_beside_the_model(client, graph):
    g = graph()
    vae = g.add("VAELoader", vae_name="wan_2.1_vae.safetensors")
    node = g.add(
        "DiagDistillStream", model=g.demo_model(), positive=g.prompt(), vae=vae, width=64, height=64, length=6.0,
        unit="latent frames", preset="custom", schedule_text="1", filename_prefix="test/wan",
    )  # fmt: skip
    run = client.succeed(g)
    assert frames_of(client, file_of(run, node)).shape == (21, 64, 64, 3)


def test_a_stopped_stream_leaves_a_file_that_plays(client, graph, server):
    g = graph()
    node = stream(g, latent_frames=300, filename_prefix="test/stopped")
    prompt_id = client.submit(g)
    client.wait_for_progress(prompt_id, node.id, 20)  # 8 chunks are sampled, of which 4 at most wait to be written
    client.interrupt()
    assert client.wait(prompt_id).outcome == "interrupted"
    (part,) = (server.base / "output" / "test").glob("stopped*.part.mp4")
    with av.open(str(part)) as container:
        count = sum(1 for _ in container.decode(video=0))
    assert count >= 33 and (count - 9) % 12 == 0
    assert not [path for path in (server.base / "output" / "test").glob("stopped*") if path != part]
    again = graph()
    node = stream(again)
    assert frames_of(client, file_of(client.succeed(again), node)).shape[0] == 33


def test_the_live_prompts_of_a_stopped_stream_are_kept_and_make_its_video_again(client, graph, server):
    g = graph()
    node = stream(g, latent_frames=900, clip=g.prompt()[1], filename_prefix="test/kept.v2")
    prompt_id = client.submit(g.fresh())
    client.wait_for_progress(prompt_id, node.id, 3)
    for number, prompt in enumerate((OTHER_PROMPT, PROMPT), 1):
        say(client, prompt_id=prompt_id, node_id=node.id, prompt=prompt)
        client.wait_for_live(prompt_id, "switched", number)
    client.wait_for_progress(prompt_id, node.id, client.run_of(prompt_id).progress(node.id)[-1][0] + 8)
    client.interrupt()
    assert client.wait(prompt_id).outcome == "interrupted"
    (part,) = (server.base / "output" / "test").glob("kept.v2*.mp4")
    assert part.name.endswith(".part.mp4")
    kept = part.with_name(part.name.replace(".part.mp4", ".timeline.txt")).read_text(encoding="utf-8")
    assert [line.split(": ", 1)[1] for line in kept.splitlines()] == [OTHER_PROMPT, PROMPT]
    with av.open(str(part)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    planned = graph()
    timeline = planned.add("DiagDistillPromptTimeline", clip=planned.prompt()[1], text=f"0s: {PROMPT}\n{kept}")
    again = stream(planned, latent_frames=(len(frames) + 3) // 4, positive=timeline)
    assert np.array_equal(frames, frames_of(client, file_of(client.succeed(planned), again)))


def say(client: ComfyClient, **what: Any) -> dict[str, Any]:
    try:
        return json.loads(client.post("diagdistill/live", what))
    except urllib.error.HTTPError as error:
        return {"status": error.code, **json.load(error)}


def live_run(client: ComfyClient, g: Graph, node: Node, prompt: str, *, at: int = 3) -> tuple[Run, dict[str, Any]]:
    """Runs the graph and says `prompt` once `at` forwards are done."""
    prompt_id = client.submit(g.fresh())
    client.wait_for_progress(prompt_id, node.id, at)
    answer = say(client, prompt_id=prompt_id, node_id=node.id, prompt=prompt)
    return client.wait(prompt_id), answer


def with_clip(g: Graph, **inputs: Any) -> Node:
    return stream(g, latent_frames=60, clip=g.prompt()[1], **inputs)


def test_a_live_prompt_takes_effect_with_the_next_chunk_and_can_be_replayed(client, graph):
    g = graph()
    node = with_clip(g)
    shown = g.add("PreviewAny", source=node[1])
    run, answer = live_run(client, g, node, f"  {OTHER_PROMPT} ")
    assert run.outcome == "success" and answer == {"prompt": OTHER_PROMPT}
    assert [event["state"] for event in run.live] == ["listening", "switched", "ended"]
    switched = run.live[1]
    assert switched["prompt"] == OTHER_PROMPT and switched["waited"] < 60
    (prompts,) = run.outputs[shown.id]["text"]
    label, said = prompts.split(": ", 1)
    assert said == OTHER_PROMPT and label.endswith("lf") and int(label[:-2]) % 3 == 0
    live = frames_of(client, file_of(run, node))
    planned = graph()
    timeline = planned.add("DiagDistillPromptTimeline", clip=planned.prompt()[1], text=f"0s: {PROMPT}\n{prompts}")
    again = stream(planned, latent_frames=60, positive=timeline)
    assert np.array_equal(live, frames_of(client, file_of(client.succeed(planned), again)))
    still = graph()
    unmoved = with_clip(still)
    unchanged = frames_of(client, file_of(client.succeed(still), unmoved))
    first = 4 * int(label[:-2]) - 3
    assert np.array_equal(live[:first], unchanged[:first]) and not np.array_equal(live, unchanged)


@pytest.mark.parametrize("kind", ["stream", "sampler"])
@pytest.mark.parametrize("live", [True, False])
def test_a_run_that_takes_prompts_is_made_anew_and_no_other(client, graph, kind, live):
    g = graph()
    inputs = {"clip": g.prompt()[1]} if live else {}
    if kind == "stream":
        node = stream(g, filename_prefix="test/anew", **inputs)
    else:
        node = g.sampler(g.demo_model(), g.prompt(), g.empty(9), **inputs)
        g.save(node)
    client.succeed(g.fresh())
    again = client.succeed(g)  # with the mark that the first run had: nothing was changed
    assert bool(again.progress(node.id)) == live
    assert (node.id in again.cached) != live


def test_the_sampler_takes_live_prompts_too_and_its_latent_is_extended_with_them(client, graph, latents):
    def sampled(g: Graph, frames: int) -> Node:
        return g.sampler(g.demo_model(), g.prompt(), g.empty(frames), clip=g.prompt()[1])

    g = graph()
    sampler = sampled(g, 48)
    saved = g.save(sampler)
    extended = g.add("DiagDistillExtend", latent=sampler, length=3.0, unit="latent frames")
    longer = g.save(g.sampler(g.demo_model(), g.prompt(OTHER_PROMPT), extended))
    run, answer = live_run(client, g, sampler, OTHER_PROMPT)
    assert run.outcome == "success" and "error" not in answer
    at = round(run.live[1]["seconds"] * 16 + 3) // 4
    planned = graph()
    text = f"0s: {PROMPT}\n{at}lf: {OTHER_PROMPT}"
    timeline = planned.add("DiagDistillPromptTimeline", clip=planned.prompt()[1], text=text)
    whole = planned.save(planned.sampler(planned.demo_model(), timeline, planned.empty(51)))
    expected = latents(client.succeed(planned), whole)
    assert torch.equal(latents(run, saved), expected[:, :, :48])
    torch.testing.assert_close(latents(run, longer), expected, atol=1e-3, rtol=1e-3)


def test_a_live_prompt_is_for_every_video_of_a_batch(client, graph, latents):
    def sampled(g: Graph, prompt: Any, **inputs: Any) -> Node:
        return g.sampler(g.demo_model(), prompt, g.empty(48, batch_size=2), **inputs)

    g = graph()
    sampler = sampled(g, g.prompt(), clip=g.prompt()[1])
    saved = g.save(sampler)
    run, answer = live_run(client, g, sampler, OTHER_PROMPT)
    assert run.outcome == "success" and "error" not in answer
    at = round(run.live[1]["seconds"] * 16 + 3) // 4
    planned = graph()
    text = f"0s: {PROMPT}\n{at}lf: {OTHER_PROMPT}"
    whole = planned.save(
        sampled(planned, planned.add("DiagDistillPromptTimeline", clip=planned.prompt()[1], text=text))
    )
    assert torch.equal(latents(run, saved), latents(client.succeed(planned), whole))


def test_slots_are_asked_for_by_number(client, graph):
    g = graph()
    node = with_clip(g, live_prompts=f"{OTHER_PROMPT}\n\n a green 5 moves up fast and stops, on a black ground ")
    run, answer = live_run(client, g, node, "2")
    assert run.live[0]["slots"] == [OTHER_PROMPT, "a green 5 moves up fast and stops, on a black ground"]
    assert answer == {"prompt": run.live[0]["slots"][1]} == {"prompt": run.live[1]["prompt"]}


def test_what_cannot_be_encoded_is_told_and_the_video_goes_on(client, graph):
    g = graph()
    node = with_clip(g)
    run, answer = live_run(client, g, node, "x" * 20_000)
    assert answer["status"] == 400 and "20000 characters" in answer["error"]
    assert run.outcome == "success" and [event["state"] for event in run.live] == ["listening", "ended"]


def test_the_live_route_takes_nothing_but_prompts_for_what_runs(client, graph, server):
    nothing = say(client, prompt_id="1", node_id="1", prompt="a 1")
    assert nothing["status"] == 409 and "connect a CLIP" in nothing["error"]
    assert client.get_json("diagdistill/live") == {"running": []}
    g = graph()
    node = with_clip(g)
    still = client.succeed(g.fresh())
    prompt_id = client.submit(g.fresh())
    client.wait_for_progress(prompt_id, node.id, 3)
    listening = {"prompt_id": prompt_id, "node": node.id, "slots": [], "workflow": None}  # no page has queued it
    assert client.get_json("diagdistill/live") == {"running": [listening]}
    wrong: list[tuple[dict[str, Any], int]] = [
        ({"prompt_id": "other", "node_id": node.id, "prompt": OTHER_PROMPT}, 409),
        ({"prompt_id": prompt_id, "node_id": "999", "prompt": OTHER_PROMPT}, 409),
        ({"prompt_id": prompt_id, "node_id": int(node.id), "prompt": OTHER_PROMPT}, 400),
        ({"prompt_id": prompt_id, "node_id": node.id, "prompt": {"a": 1}}, 400),
        ({"prompt_id": prompt_id, "node_id": node.id, "prompt": "  "}, 400),
        ({"prompt_id": [prompt_id], "prompt": OTHER_PROMPT}, 400),
    ]
    for sent, status in wrong:
        assert say(client, **sent)["status"] == status, sent
    for body, status in ((b"{", 400), (b"[" * 50_000, 400), (b"null", 400), (b"\xff\xfe", 400), (b"x" * 10**7, 413)):
        assert post_bytes(client, body) in (status, None), body[:10]  # None: hung up on before all was sent
    run = client.wait(prompt_id)
    assert run.outcome == "success" and [event["state"] for event in run.live] == ["listening", "ended"]
    assert np.array_equal(frames_of(client, file_of(run, node)), frames_of(client, file_of(still, node)))


def post_bytes(client: ComfyClient, body: bytes) -> int | None:
    host = client.url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=60)
    with contextlib.closing(connection):
        try:
            connection.request("POST", "/diagdistill/live", body, {"Content-Type": "application/json"})
            return connection.getresponse().status
        except (ConnectionError, http.client.HTTPException):
            return None


def test_a_thousand_rapid_prompts_are_one_switch_a_chunk_at_most(client, graph):
    g = graph()
    node = stream(g, latent_frames=150, clip=g.prompt()[1])
    prompt_id = client.submit(g.fresh())
    client.wait_for_progress(prompt_id, node.id, 3)
    for number in range(1000):
        answer = say(client, prompt_id=prompt_id, node_id=node.id, prompt=(PROMPT, OTHER_PROMPT)[number % 2])
        assert "error" not in answer or answer["status"] == 409  # over before all were sent
    run = client.wait(prompt_id)
    switches = [event["seconds"] for event in run.live if event["state"] == "switched"]
    assert run.outcome == "success" and 1 <= len(switches) <= 50
    assert len(set(switches)) == len(switches)


def test_a_saved_state_goes_on_as_one_longer_run(client, graph, latents, server):
    g = graph()
    sampler = g.sampler(g.demo_model(), g.prompt(), g.empty(7), schedule_text="1000,100", kv_noise=100.0)
    g.add("DiagDistillSaveState", latent=sampler, filename_prefix="one/two")
    run = client.succeed(g)
    del run
    (path,) = (server.base / "output" / "diagdistill" / "one").iterdir()
    name = f"one/{path.name}"
    (server.base / "output" / "diagdistill" / "damaged.video.safetensors").write_bytes(path.read_bytes()[:5000])
    g = graph()
    loaded = g.add("DiagDistillLoadState", state=name)
    longer = g.add("DiagDistillExtend", latent=loaded, length=5.0, unit="latent frames")
    settings = {"schedule_text": "1000,100", "kv_noise": 100.0}
    saved = g.save(g.sampler(g.demo_model(), g.prompt(), longer, **settings))
    streamed = stream(g, latent=longer, **settings)
    whole = g.save(g.sampler(g.demo_model(), g.prompt(), g.empty(12), **settings))
    straight = stream(g, latent_frames=12, filename_prefix="test/straight", **settings)
    run = client.succeed(g)
    torch.testing.assert_close(latents(run, saved), latents(run, whole), atol=1e-5, rtol=1e-5)
    assert np.array_equal(
        frames_of(client, file_of(run, streamed))[25:], frames_of(client, file_of(run, straight))[25:]
    )
    damaged = graph()
    damaged.save(damaged.add("DiagDistillLoadState", state="damaged.video.safetensors"))
    failed = client.run(damaged)
    assert failed.outcome == "error" and "damaged.video.safetensors cannot be read" in failed.message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"filename_prefix": "../../outside"}, "outside"),
        ({"length": 0.0}, "length must be above 0"),
        ({"width": 65}, "width must be a multiple of 16"),
        ({"schedule_text": "4x"}, "character"),
        ({"live_prompts": "a\n" * 40}, "40 lines"),
    ],
)
def test_wrong_inputs_are_named_at_the_node(client, graph, change, message):
    g = graph()
    stream(g, **({"clip": g.prompt()[1]} if "live_prompts" in change else {}), **change)
    assert message in told(client, g)


def test_a_latent_that_cannot_be_saved_or_streamed_is_named(client, graph):
    g = graph()
    g.add("DiagDistillSaveState", latent=g.empty(6))
    assert "does not say how it was sampled" in told(client, g)
    for node, inputs in (("DiagDistillSaveState", {}), ("DiagDistillExtend", {"length": 1.0, "unit": "chunks"})):
        g = graph()
        sampled = g.sampler(g.demo_model(), g.prompt(), g.empty(3))
        after = g.add(node, latent=g.add("LatentMultiply", samples=sampled, multiplier=0.5), **inputs)
        if inputs:
            g.save(after)
        assert "was changed after it was sampled" in told(client, g)
    g = graph()
    stream(g, latent=g.empty(6, batch_size=2))
    assert "one video at a time" in told(client, g)
    g = graph()
    stream(g, latent=g.sampler(g.demo_model(), g.prompt(), g.empty(3)))
    assert "put Extend Video between" in told(client, g)
    g = graph()
    g.save(g.add("DiagDistillLoadState", state="../../x.video.safetensors"))
    assert "there is no file" in told(client, g)


def told(client: ComfyClient, g: Graph) -> str:
    """What the server says at a node, before it runs anything or then."""
    from comfy_client import Refused

    try:
        run = client.run(g)
    except Refused as refused:
        return " ".join(refused.messages.values())
    assert run.outcome == "error"
    return run.message
