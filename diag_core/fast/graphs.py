"""CUDA graphs of whole forwards: one for every number of attended tokens, replayed without a launch in Python.

A graph reads its inputs, the prompt's keys and the cache where they lay when it was captured. Inputs and prompt are
copied into place before a replay; the cache's storage belongs to the graphs, so other storage is another set of them.
A video has few numbers of attended tokens (its window fills in a few chunks and stays full), so there are few graphs.

For one video at a time on a GPU: the graphs of all models that sample there are captured on one stream, and share what
libraries keep for it.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .forward import ChunkInputs, Memory

log = logging.getLogger(__name__)

Run = Callable[[ChunkInputs, Memory, int], Tensor]
# In the whole process: each begins by waiting for the device, which a capture must not see.
_ONE_AT_A_TIME = threading.Lock()


@cache
def _capture_stream(device: int, role: str) -> torch.cuda.Stream:
    # One for the process, as PyTorch has 32 streams a GPU and hands them out in turn: a new one for every pool would
    # some day be the one that videos are decoded on, or that of the other role.
    return torch.cuda.Stream(device)


class Capturing:
    """Captures what one thread runs, into graphs that share their memory as they never run at once.

    Args:
        role: "sampling" or "decoding", which have a stream each: libraries keep a workspace for each stream, and graphs
            of the two, which do run at once, must not write to the same.
    """

    def __init__(self, role: str) -> None:
        self.role = role
        self.handle: Any = None
        self._alive: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    def capture(self, run: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """The graph of `run`, which is not executed, and where a replay leaves its result."""
        with _ONE_AT_A_TIME:
            graph = torch.cuda.CUDAGraph()
            stream = _capture_stream(torch.cuda.current_device(), self.role)
            if not self._alive:
                # PyTorch takes no more graphs into a pool whose last one is gone.
                self.handle = torch.cuda.graph_pool_handle()
            before = torch.cuda.current_stream()
            try:
                # "thread_local": other threads may allocate meanwhile.
                with torch.cuda.graph(graph, pool=self.handle, stream=stream, capture_error_mode="thread_local"):
                    out = run()
            finally:
                torch.cuda.set_stream(before)  # a capture that fails to begin or to end leaves its own behind
            self._alive.add(graph)
        return graph, out


class SharedPool:
    """What all graphs of a model have in common."""

    def __init__(self) -> None:
        self.lock, self.capturing = threading.Lock(), Capturing("sampling")
        self.failure: str | None = None
        """why nothing is captured any more"""


@dataclass
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: ChunkInputs
    out: Tensor


class StorageGraphs:
    """The graphs over one cache's storage: a forward runs eagerly the first time, and is captured the second.

    Args:
        run: the forward.
    """

    def __init__(self, run: Run, shared: SharedPool) -> None:
        self.run_eagerly, self.shared = run, shared
        self._captured: dict[tuple[object, ...], _Captured | None] = {}
        self._prompt: list[tuple[Tensor, Tensor]] = []
        """where the graphs read the prompt's keys and values"""

    def settle(self, cross: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """The same keys and values of a prompt, where the graphs read them."""
        if self._prompt and self._prompt[0][0].shape == cross[0][0].shape:
            for (k, v), (new_k, new_v) in zip(self._prompt, cross, strict=True):
                if new_k is not k:
                    k.copy_(new_k, non_blocking=True)
                    v.copy_(new_v, non_blocking=True)
        else:
            self._captured.clear()
            self._prompt = [(k.clone(), v.clone()) for k, v in cross]
        return list(self._prompt)

    def run(self, inputs: ChunkInputs, memory: Memory, attended: int) -> Tensor:
        """The forward's output; a copy, as the next replay overwrites it. The prompt in `memory` is settled."""
        key = (attended, inputs.latents.shape, inputs.latents.dtype)
        with self.shared.lock:
            if key not in self._captured or self.shared.failure is not None:
                # This also lets libraries allocate what they may not in a capture.
                self._captured[key] = None
                return self.run_eagerly(inputs, memory, attended)
            captured = self._captured[key]
            if captured is None:
                try:
                    captured = self._captured[key] = self._capture(inputs, memory, attended)
                except RuntimeError as error:
                    self.shared.failure = str(error).splitlines()[0]
                    log.warning("the fast path goes on without CUDA graphs: %s", self.shared.failure)
                    return self.run_eagerly(inputs, memory, attended)
            for field in fields(inputs):
                getattr(captured.inputs, field.name).copy_(getattr(inputs, field.name), non_blocking=True)
            captured.graph.replay()
            return captured.out.clone()

    def _capture(self, inputs: ChunkInputs, memory: Memory, attended: int) -> _Captured:
        still = ChunkInputs(*(getattr(inputs, field.name).clone() for field in fields(inputs)))
        graph, out = self.shared.capturing.capture(lambda: self.run_eagerly(still, memory, attended))
        return _Captured(graph, still, out)
