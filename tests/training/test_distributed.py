"""Two processes train what one does, save what any number reads, and are killed like one."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import distributed_worker as worker
import pytest
import torch
from torch import Tensor
from two_processes import ROOT, ended, free_port, run, start

from training import checkpoint
from training.distributed import own_parts, session
from training.io import load_tensors
from training.logbook import read_log

CLOSE = 1e-5  # of weights and losses; a sum in another order changes the last bits, and Adam makes more of it


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """one/ and two/: the same by one process and by two. grows/ and shrinks/: begun by the one, by the other."""
    folder = tmp_path_factory.mktemp("distributed")
    worker.half(folder / "grows")
    shutil.copytree(folder / "grows", folder / "single")
    run(
        f"parity={folder / 'two'}", f"half={folder / 'shrinks'}", f"whole={folder / 'grows'}",
        f"refused={folder / 'refused'}", f"fused={folder}", f"sampled={folder}",
    )  # fmt: skip
    worker.parity(folder / "one")
    return folder


def end(folder: Path) -> dict[str, Tensor]:
    return load_tensors(folder / "end.safetensors")[0]


def assert_alike(a: Path, b: Path) -> None:
    """Weights, averages and logs of two runs; samples are logged by some."""
    whole, other = end(a), end(b)
    assert whole.keys() == other.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(other[name], tensor, atol=CLOSE, rtol=CLOSE, msg=lambda m, n=name: f"{n}: {m}")
    logs = [[entry for entry in read_log(folder) if "critic" in entry or "ode" in entry] for folder in (a, b)]
    for mine, theirs in zip(*logs, strict=True):
        assert theirs == pytest.approx(mine, rel=CLOSE, abs=1e-6)


@pytest.mark.parametrize("name", ["plain", "micro", "init"])
def test_two_processes_train_what_one_does(folders: Path, name: str) -> None:
    assert_alike(folders / "one" / name, folders / "two" / name)


def test_micro_batches_and_checkpointing_and_samples_do_not_change_what_is_learnt(folders: Path) -> None:
    assert_alike(folders / "one" / "plain", folders / "two" / "micro")
    samples = [
        [entry["sample/size"] for entry in read_log(folders / number / "micro") if "sample/size" in entry]
        for number in ("one", "two")
    ]
    assert len(samples[0]) == 2 and samples[1] == pytest.approx(samples[0], rel=CLOSE)
    assert samples[0][0] != samples[0][1]


def test_in_bf16_two_processes_stay_close_to_one(folders: Path) -> None:
    """Not closer than that: what runs between blocks is float32 in one process, bf16 where weights are gathered."""
    a, b = (read_log(folders / number / "bf16") for number in ("one", "two"))
    for mine, theirs in zip(a, b, strict=True):
        assert theirs == pytest.approx(mine, rel=0.02)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_sharded_model_can_be_compiled(folders: Path, precision: str) -> None:
    made, metadata = load_tensors(folders / "fused.safetensors")
    names = [name.removeprefix(f"{precision}.plain.") for name in made if name.startswith(f"{precision}.plain.")]
    assert len(names) > 20 and {"flow", "rolled", "blocks.0.self_attn.q.weight"} <= set(names)
    close = CLOSE if precision == "float32" else 0.02
    for name in names:
        one, other = (made[f"{precision}.{how}.{name}"] for how in ("fused", "plain"))
        torch.testing.assert_close(one, other, atol=close, rtol=close)
    # One graph for all blocks alike, and none for the lengths of a cache.
    assert json.loads(metadata["graphs"])[f"{precision}.fused"] == [1, 1]


def test_a_sharded_model_is_sampled_in_what_its_weights_are_gathered_in(folders: Path) -> None:
    whole, split = (load_tensors(folders / f"{name}.safetensors")[0]["latents"] for name in ("whole", "split"))
    assert whole.shape == (3, *worker.SHAPE) and split.isfinite().all()
    torch.testing.assert_close(split, whole, atol=0.1, rtol=0.1)


def test_two_processes_share_the_sample_videos(folders: Path, tmp_path: Path) -> None:
    worker.sampled(tmp_path)
    (two, shared), (one, alone) = (load_tensors(folder / "whole.safetensors") for folder in (folders, tmp_path))
    torch.testing.assert_close(two["latents"], one["latents"], atol=CLOSE, rtol=CLOSE)
    assert 3 * int(shared["forwards"]) == 2 * int(
        alone["forwards"]
    )  # of three videos each makes two, one of them twice


@pytest.mark.parametrize("name", ["grows", "shrinks"])
def test_another_number_of_processes_goes_on_as_if_undisturbed(folders: Path, name: str) -> None:
    if name == "shrinks":
        worker.whole(folders / name)
    assert_alike(folders / "one" / "plain", folders / name)
    assert [entry["step"] for entry in read_log(folders / name)] == [1, 2, 3, 4]


def test_the_newest_two_states_are_kept(folders: Path) -> None:
    for number in ("one", "two"):
        states = folders / number / "plain" / "checkpoints"
        assert sorted(path.name for path in states.iterdir()) == ["step_000003", "step_000004"]


# -- killed ----------------------------------------------------------------------------------------------------------


def test_whichever_process_is_killed_the_rest_ends_and_all_go_on_to_the_same_weights(tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    for victim in (0, 1):
        before = len(read_log(folder))
        processes = start(f"long={folder}")
        while len(read_log(folder)) < before + 4 and all(process.poll() is None for process in processes):
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.3))
        processes[victim].send_signal(signal.SIGKILL)
        status = [status for status, _ in ended(processes)]
        assert status[victim] == -signal.SIGKILL and status[1 - victim] != 0
        state = checkpoint.newest(folder / "checkpoints")
        assert state is not None
        assert int(state.name[5:]) > read_log(folder)[-1]["step"] - 2 * worker.LONG.save_every
    run(f"rest={folder}")
    whole, resumed = end(tmp_path / "undisturbed"), end(folder)
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert read_log(folder) == read_log(tmp_path / "undisturbed")
    assert not list(folder.rglob(".*.part"))


def test_if_one_process_is_told_to_stop_all_do_and_go_on_to_the_same_weights(tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    processes = start(f"long={folder}")
    while len(read_log(folder)) < 3 and all(process.poll() is None for process in processes):
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGTERM)
    (first, told), (second, silent) = ended(processes)
    assert (first, second) == (128 + signal.SIGTERM, 128 + signal.SIGTERM)
    assert "distil: stopped after iteration" in told and "stopped" not in silent
    state = checkpoint.newest(folder / "checkpoints")
    assert state is not None and int(state.name[5:]) == read_log(folder)[-1]["step"]  # no iteration is lost
    run(f"rest={folder}")
    whole, resumed = end(tmp_path / "undisturbed"), end(folder)
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_an_error_of_one_process_is_told_and_ends_all(tmp_path: Path) -> None:
    processes = start(f"fails={tmp_path}")
    try:
        assert processes[1].wait(timeout=60) == 1
        (first, _), (_, told) = ended(processes)
        assert first != 0 and told.splitlines()[-1].endswith("OutOfMemoryError: of the second process")
    finally:
        for process in processes:
            process.kill()


# -- what is said when something is wrong ----------------------------------------------------------------------------


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_a_damaged_shard_is_told_once_before_anything_is_trained(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "two" / "plain", tmp_path / "x")
    log = (tmp_path / "x" / "log.jsonl").read_bytes()
    damaged = tmp_path / "x" / "checkpoints" / "step_000004" / "__1_0.distcp"
    flip(damaged)
    (first, told), (second, silent) = ended(start(f"whole={tmp_path / 'x'}"))
    assert (first, second) == (2, 2)
    lines = [line for line in told.splitlines() if line.startswith("error: ")]
    assert lines == [
        f"error: {damaged} is damaged: its check sum is another. Restore the file, or delete the folder "
        f"{damaged.parent} to go on from the state before"
    ]
    assert "error: " not in silent and "Traceback" not in told + silent
    assert (tmp_path / "x" / "log.jsonl").read_bytes() == log


@pytest.mark.parametrize(
    ("harm", "how"),
    [
        (lambda state: os.truncate(state / "__0_0.distcp", 100), "__0_0.distcp is damaged: it has 100 bytes"),
        (lambda state: (state / "__0_0.distcp").unlink(), "__0_0.distcp is damaged: it is missing"),
        (lambda state: flip(state / ".metadata"), ".metadata is damaged: its check sum"),
        (lambda state: (state / "manifest.json").write_text("{"), "manifest.json is damaged: it cannot be read"),
    ],
)
def test_any_damage_is_named_and_the_state_before_is_there(
    folders: Path, tmp_path: Path, harm: Callable[[Path], None], how: str
) -> None:
    shutil.copytree(folders / "single", tmp_path / "x")
    state = tmp_path / "x" / "checkpoints" / "step_000002"
    harm(state)
    with pytest.raises(ValueError, match=how):
        worker.whole(tmp_path / "x")
    shutil.rmtree(state)
    worker.half(tmp_path / "x")
    assert end(tmp_path / "x").keys() == end(folders / "single").keys()
    assert all(torch.equal(tensor, end(folders / "single")[name]) for name, tensor in end(tmp_path / "x").items())


def test_a_half_written_state_is_not_taken_for_one(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "single", tmp_path / "x")
    states = tmp_path / "x" / "checkpoints"
    shutil.copytree(states / "step_000002", states / ".step_000003.part")
    (states / "step_000004").mkdir()  # nor is a folder without a manifest
    assert checkpoint.newest(states) == states / "step_000002"
    worker.half(tmp_path / "x")
    assert not (states / ".step_000003.part").exists()


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, {"weight": torch.zeros(3), "step": 1})
    assert checkpoint.load(tmp_path, own := {"weight": torch.ones(3), "step": 0})
    assert own["step"] == 1 and not own["weight"].any()
    with pytest.raises(ValueError, match="step_000001 does not fit what is trained"):
        checkpoint.load(tmp_path, {"weight": torch.zeros(4), "step": 0})
    with pytest.raises(ValueError, match=r"step_000001 does not fit what is trained.*other"):
        checkpoint.load(tmp_path, {"weight": torch.zeros(3), "other": torch.zeros(3)})


def test_what_does_not_divide_over_processes_is_refused(folders: Path) -> None:
    batch, micro = json.loads((folders / "refused" / "told.json").read_text())
    assert "batch must be a multiple of the 2 processes, got 3" in batch
    assert "micro_batch must divide the 2 samples of each process (batch 4 over 2), got 3" in micro


def test_one_process_alone_takes_the_whole_batch() -> None:
    assert own_parts(6) == [slice(0, 6)]
    assert own_parts(6, 2) == [slice(0, 2), slice(2, 4), slice(4, 6)]
    with pytest.raises(ValueError, match="micro_batch must divide"):
        own_parts(6, 4)


def test_processes_that_do_not_come_are_not_waited_for_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    for name, value in there.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(ValueError, match="no MASTER_PORT: start the processes by torchrun"),
        session(torch.device("cpu")),
    ):
        pass
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    waited = timedelta(seconds=1)
    with pytest.raises(ValueError, match="not all of the 2 processes"), session(torch.device("cpu"), timeout=waited):
        pass


LEAVES = """
import atexit, logging, os
from training.distributed import leave
atexit.register(os.abort)  # what taking the interpreter down may come to
logging.basicConfig()
print("written", end="")

def main():
    {ends}

leave(main)
"""


@pytest.mark.parametrize(
    ("ends", "status"), [("return 0", 0), ("return 2", 2), ("raise SystemExit(2)", 2), ("raise MemoryError", 1)]
)
def test_a_process_of_several_is_not_taken_down_piece_by_piece(ends: str, status: int) -> None:
    command = [sys.executable, "-c", LEAVES.format(ends=ends)]
    several = {**os.environ, "PYTHONPATH": str(ROOT), "WORLD_SIZE": "2"}
    ended = subprocess.run(command, env=several, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (status, "written")
    del several["WORLD_SIZE"]
    assert subprocess.run(command, env=several, capture_output=True).returncode == -signal.SIGABRT
