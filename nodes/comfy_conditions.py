"""A video's conditions under ComfyUI's guiders: hooks, masks and patches keep their say, every condition its own cache.

ComfyUI's guider calls the model for conditions batched as it likes; a wrapper takes such a call apart by uuid, and
each condition runs with the cache of its branch. Commits go the same way, one condition at a time.

Legend: B batch, C latent channels, f latent frames of a chunk, F of the video, H and W latent rows and columns,
L text tokens, D text width. Latents are normalised (model space).
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_patcher
import comfy.patcher_extension
import comfy.samplers
import comfy.utils
import torch
from torch import Tensor

from ..diag_core import Timeline, WanConfig
from ..diag_core.fast import FastDiT
from ..diag_core.kv_cache import KVCache
from . import comfy_bridge
from .comfy_fast import fast_path, options_of_others
from .comfy_model import check_model, stock_forward, warn_of_ignored_patches
from .prompt_timeline import TIMELINE_KEY

log = logging.getLogger(__name__)

KEY = "diagdistill"
RUN_KEY = "diagdistill_run"
_WRAPPER = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL


@dataclass(frozen=True)
class _Inside:
    """ComfyUI's call of the model that a condition's forward is part of."""

    stock: Any
    context: Tensor
    transformer_options: dict[str, Any]
    repeated: bool
    """A second call for the same condition in one step, which is another pack's (skip-layer guidance, say)."""


@dataclass(frozen=True)
class Kept:
    """What a noise mask keeps of the latent that is given.

    latents, mask: [B,C,F,H,W]; 0 keeps, 1 is sampled. Beyond their last latent frame all is sampled.
    """

    latents: Tensor
    mask: Tensor

    def apply(self, x0: Tensor, start_frame: int) -> Tensor:
        there = slice(start_frame, start_frame + x0.shape[2])
        mask, latents = self.mask[:, :, there], self.latents[:, :, there]
        inside = x0[:, :, : mask.shape[2]] * mask + latents * (1 - mask)
        return torch.cat((inside, x0[:, :, mask.shape[2] :]), dim=2)


class Condition:
    """One entry of the guider's conditions, as the model that a branch of diag_core runs."""

    def __init__(self, run: StockRun, cond: dict[str, Any], role: str) -> None:
        for key, what in (("area", "an area"), ("control", "a ControlNet"), ("gligen", "GLIGEN")):
            if cond.get(key) is not None:
                raise ValueError(
                    f"the {role} conditioning has {what}, which chunk-by-chunk sampling cannot apply; remove it"
                )
        if cond.get("cross_attn") is None:
            raise ValueError(f"the {role} conditioning holds no text; encode a prompt (an empty one will do)")
        self.run, self.cond, self.role, self.uuid = run, cond, role, cond["uuid"]
        # By itself, for commits: at every noise level.
        self.alone = {k: v for k, v in cond.items() if k not in ("timestep_start", "timestep_end", "default")}
        self.config, self.dtype, self.device = run.config, run.dtype, run.device
        self.switches = False

    def timeline(self, chunk_frames: int, batch: int) -> Timeline:
        """Its prompts by latent frame, [B,L,D] each; one tensor stays one tensor."""
        given = self.cond.get(TIMELINE_KEY)
        text = self.cond["cross_attn"]
        entries = [(0, text)] if given is None else given.of_text(text).resolve(chunk_frames)
        placed: dict[int, Tensor] = {}
        for _, context in entries:
            if id(context) not in placed:
                on_device = context.to(self.device, torch.float32)
                placed[id(context)] = comfy.utils.repeat_to_batch_size(on_device, batch)
        self.switches = len(placed) > 1
        return Timeline([(f, placed[id(context)]) for f, context in entries], given.blend_chunks if given else 0)

    def __call__(
        self, latents: Tensor, timestep: Tensor, context: Tensor, cache: Any = None, start_frame: int = 0
    ) -> Tensor:
        inside = self.run.inside
        if inside is None:  # a commit: by way of ComfyUI, so that hooks, casts and wrappers apply
            return self.run.alone(self, latents, timestep, context, cache, start_frame)
        comfy_bridge.check_interrupted()
        if self.cond.get("hooks") is not None:
            cache.drop_text()  # hooks may change the weights from step to step
        # What ComfyUI hands over may carry changes of other packs; only a timeline knows better.
        text = context.to(latents) if self.switches else inside.context.to(latents.dtype)
        fast = self.run.fast if self.run.causal else None
        if fast is not None:
            fast.lend(cache)
            if self._goes_fast(fast, inside, timestep, cache, start_frame):
                return fast(latents, timestep, text, cache, start_frame)
        past, frames = cache, latents.shape[2]
        if not self.run.causal:
            cache.place(start_frame, frames)  # only counted: there is no past to keep
            past = None
        elif inside.repeated:  # it shall not leave its keys behind
            past = cache.snapshot(start_frame, frames)
        flow = stock_forward(
            inside.stock,
            latents,
            timestep,
            text,
            cache=past,
            start_frame=start_frame,
            transformer_options=inside.transformer_options,
        )
        if inside.repeated:
            cache.place(start_frame, frames)
        return flow

    def _goes_fast(self, fast: FastDiT, inside: _Inside, timestep: Tensor, cache: KVCache, start_frame: int) -> bool:
        """Not where another pack has a say that the fast path would not hear."""
        if inside.repeated or self.cond.get("hooks") is not None:
            return False
        asked = options_of_others(inside.transformer_options)
        if asked is not None:
            self.run.say_once(f"plain path, as another pack has set {asked}")
        return asked is None and fast.takes(timestep, cache, start_frame)


class StockRun:
    """One video's forwards through a guider; also the guide that joins its conditions.

    Attributes:
        inside: set while ComfyUI is calling the model.
    """

    def __init__(self, guider: Any, model_options: dict[str, Any], seed: int | None, *, causal: bool) -> None:
        self.guider, self.seed, self.causal = guider, seed, causal
        base = guider.inner_model
        self.config: WanConfig = check_model(guider.model_patcher)
        self.dtype = base.manual_cast_dtype or base.get_dtype()
        self.device = guider.model_patcher.load_device
        self.cfg = float(getattr(guider, "cfg", 1.0))
        self.inside: _Inside | None = None
        self.kept: Kept | None = None
        self._acting: dict[Any, Callable[[Tensor], Tensor]] = {}
        self._ran: set[Any] = set()
        self._said: set[str] = set()
        self.fast = fast_path(guider.model_patcher, self.config, self.dtype)
        self.options = comfy.model_patcher.create_model_options_clone(model_options)
        comfy.patcher_extension.add_wrapper_with_key(
            _WRAPPER, KEY, _diffusion_model, self.options, is_model_options=True
        )
        self.options["transformer_options"][RUN_KEY] = self
        self.conditions = [
            Condition(self, cond, role)
            for role, conds in guider.conds.items()
            if self._acts(role)
            for cond in conds or []
        ]
        warn_of_ignored_patches(base.diffusion_model)

    def close(self) -> None:
        """Lets go of the model: in a cycle it would stay in VRAM until Python looks for cycles."""
        self.options["transformer_options"].pop(RUN_KEY, None)
        self.conditions.clear()
        self.fast = None

    def reloaded(self) -> None:
        """To be called when the model was away from the GPU: its weights may lie elsewhere now, or not all be there."""
        self.fast = fast_path(self.guider.model_patcher, self.config, self.dtype)

    def say_once(self, text: str) -> None:
        """In the log, once a run."""
        if text not in self._said:
            self._said.add(text)
            log.info("Diagonal Sampler: %s", text)

    def _acts(self, role: str) -> bool:
        """ComfyUI leaves out the negative at guidance 1: it shall cost no cache."""
        skipped = math.isclose(self.cfg, 1.0) and not self.options.get("disable_cfg1_optimization", False)
        return not (
            role == "negative" and skipped and type(self.guider).predict_noise is comfy.samplers.CFGGuider.predict_noise
        )

    def __call__(
        self, x: Tensor, sigma: float, flows: Sequence[Callable[[Tensor], Tensor]], *, start_frame: int
    ) -> Tensor:
        """x [B,C,f,H,W] -> the guided flow; where the noise mask is 0, the flow to the latent that is given."""
        with self._act({c.uuid: flow for c, flow in zip(self.conditions, flows, strict=True)}):
            x0 = self.guider(
                x, x.new_full((len(x),), sigma, dtype=torch.float32), model_options=self.options, seed=self.seed
            ).to(x.dtype)
        if self.kept is not None:
            x0 = self.kept.apply(x0, start_frame)
        return (x - x0) / sigma

    def alone(
        self, condition: Condition, latents: Tensor, timestep: Tensor, context: Tensor, cache: KVCache, start_frame: int
    ) -> Tensor:
        """One condition's forward outside a step. Its output is not used: what counts is what the cache holds then."""
        sigmas = (timestep / 1000).to(latents.device, torch.float32)  # on the device all along: nothing waits for it
        with self._act({condition.uuid: lambda x: condition(x, timestep, context, cache, start_frame)}):
            comfy.samplers.calc_cond_batch(self.guider.inner_model, [[condition.alone]], latents, sigmas, self.options)
        return latents

    @contextlib.contextmanager
    def _act(self, acting: dict[Any, Callable[[Tensor], Tensor]]) -> Iterator[None]:
        """What ComfyUI's calls of the model run inside, by uuid. Forgotten afterwards: it holds the caches."""
        self._acting, self._ran = acting, set()
        try:
            yield
        finally:
            self._acting = {}

    def model_call(self, stock: Any, x: Tensor, context: Tensor, transformer_options: dict[str, Any]) -> Tensor:
        """ComfyUI's call of the model, conditions batched as it likes: each runs with its own cache."""
        uuids = transformer_options["uuids"]
        out = []
        for uuid, part, text in zip(uuids, x.chunk(len(uuids)), context.chunk(len(uuids)), strict=True):
            if uuid not in self._acting:
                raise ValueError(
                    "another node of this graph adds a condition of its own while sampling, which the Diagonal Sampler "
                    "has no cache for; remove that node"
                )
            self.inside = _Inside(stock, text, transformer_options, repeated=uuid in self._ran)
            self._ran.add(uuid)
            try:
                out.append(self._acting[uuid](part))
            finally:
                self.inside = None
        return torch.cat(out)


def _diffusion_model(executor: Any, x: Tensor, timestep: Tensor, context: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """DIFFUSION_MODEL wrapper; acts only inside a diagonal run."""
    options = kwargs.get("transformer_options") or (args[2] if len(args) > 2 else {})
    run: StockRun | None = options.get(RUN_KEY)
    if run is None:
        return executor(x, timestep, context, *args, **kwargs)
    return run.model_call(executor.class_obj, x, context, options)
