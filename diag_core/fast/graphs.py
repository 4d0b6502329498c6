"""CUDA graphs of whole forwards: one for every number of attended tokens, replayed without a launch in Python.

A graph reads its inputs and the cache where they lay when it was captured. Inputs are copied into place before each
replay; keys and values of the cache and of the prompt belong to it, so another cache is another set of graphs. A video
has few numbers of attended tokens (its window fills in a few chunks and stays full), so there are few graphs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .forward import ChunkInputs, Memory

Run = Callable[[ChunkInputs, Memory, int], Tensor]
_WARM_UP = 2  # forwards before a capture: cuBLAS and the allocator settle


@dataclass
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: ChunkInputs
    prompt: list[tuple[Tensor, Tensor]]
    """the prompt's keys and values as the graph reads them"""
    shown: weakref.ref[Tensor]
    """whose values those are at present"""
    out: Tensor


class GraphPool:
    """Captures forwards on first use, and replays them.

    Args:
        run: the forward.
    """

    def __init__(self, run: Run) -> None:
        self.run_eagerly = run
        self._captured: dict[tuple[object, ...], _Captured] = {}
        self._memory: Any = None  # shared by all graphs: they never run at once

    def run(self, inputs: ChunkInputs, memory: Memory, attended: int) -> Tensor:
        """The forward's output; a copy, as the next replay overwrites it."""
        key = (
            attended,
            tuple(inputs.latents.shape),
            inputs.latents.dtype,
            memory.k[0].data_ptr(),
            tuple(memory.cross[0][0].shape),
        )
        captured = self._captured.get(key)
        if captured is None:
            captured = self._captured[key] = self._capture(inputs, memory, attended)
        for name in ("latents", "timestep", "turn", "slots"):
            getattr(captured.inputs, name).copy_(getattr(inputs, name), non_blocking=True)
        first = memory.cross[0][0]
        if captured.shown() is not first:
            for (k, v), (new_k, new_v) in zip(captured.prompt, memory.cross, strict=True):
                k.copy_(new_k, non_blocking=True)
                v.copy_(new_v, non_blocking=True)
            captured.shown = weakref.ref(first)
        captured.graph.replay()
        return captured.out.clone()

    def release(self) -> None:
        """Frees all graphs and their memory."""
        self._captured.clear()
        self._memory = None

    def _capture(self, inputs: ChunkInputs, memory: Memory, attended: int) -> _Captured:
        still = ChunkInputs(*(getattr(inputs, name).clone() for name in ("latents", "timestep", "turn", "slots")))
        prompt = [(k.clone(), v.clone()) for k, v in memory.cross]
        fixed = Memory(memory.k, memory.v, prompt)
        # What a forward writes into the cache it would have written anyway.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                self.run_eagerly(still, fixed, attended)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        if self._memory is None:
            self._memory = torch.cuda.graph_pool_handle()
        with torch.cuda.graph(graph, pool=self._memory):
            out = self.run_eagerly(still, fixed, attended)
        return _Captured(graph, still, prompt, weakref.ref(memory.cross[0][0]), out)
