"""Keys and values of earlier chunks: a sink that stays and a ring that is overwritten, in storage of fixed size.

Storage of a layer is [B, slots x tokens per frame, H, K]: the sink's latent frames first, then the ring. Keys are
stored rotated, so their order does not matter and attention reads a prefix of the storage without a copy. Frames are
latent frames throughout. The cache owns positions and eviction and knows nothing of denoising: every step of a chunk
overwrites that chunk's own slots until `advance`.

With relative positions the ring's keys stay where they are; the sink, kept unrotated beside, is rotated anew once a
chunk to the positions just before the ring. Attention sees differences of positions only, so this equals rotating the
whole window from 0 (as LongLive does).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .config import CacheConfig, WanConfig
from .kv_storage import KVStorage, Layout
from .rope import rotate, rotation
from .transfer import to_device

# Whether a recomputation that was interrupted has left the keys of the ring, or of the sink too, unusable.
FRESH, RING_STALE, ALL_STALE = 0, 1, 2


class KVCache:
    """Self-attention keys and values of one sequence of chunks, and what the prompt alone determines.

    Args:
        model: sizes of the DiT.
        config: window, sink and positions.
        batch: samples.
        rows, columns: tokens of a latent frame (latent height and width over the patch).
        total_frames: latent frames of the whole video; used only when the window is None.

    Attributes:
        text, cross: the embedded prompt and the cross-attention keys and values of each layer, filled by the model on
            first use and dropped with `drop_text` when the prompt changes.
    """

    def __init__(
        self,
        model: WanConfig,
        config: CacheConfig,
        *,
        batch: int,
        rows: int,
        columns: int,
        total_frames: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config = config
        self.capacity = config.frames(total_frames)
        self.sink = 0 if config.window_frames is None else config.sink_frames
        self.ring = self.capacity - self.sink
        self.rows, self.columns, self.head_dim = rows, columns, model.head_dim
        self.tokens = rows * columns
        self.moves_sink = config.positions == "relative" and self.sink > 0
        self.batch, self.num_heads, self.layers = batch, model.num_heads, model.num_layers
        self.dtype, self.device = dtype, torch.device(device)
        self.k: list[Tensor] = []
        self.v: list[Tensor] = []
        self.sink_k: list[Tensor] = []
        self.lent = False  # whether the storage is another's, and used again when this cache is gone
        self.text: Tensor | None = None
        self.cross: list[tuple[Tensor, Tensor] | None] = [None] * model.num_layers
        self.origin = 0  # position of the sink's first latent frame
        self.ring_start = self.sink  # latent frame (from the origin) that occupies the ring's first slot
        self.held = 0  # latent frames since the origin that are finished
        self.stale = FRESH
        self._placed: tuple[int, int] | None = None
        self._sink_at: int | None = None  # latent frame (from the origin) the stored sink keys are rotated to

    @property
    def layout(self) -> Layout:
        return Layout(
            self.layers, self.batch, self.capacity * self.tokens, self.sink * self.tokens if self.moves_sink else 0,
            self.num_heads, self.head_dim, self.dtype, self.device,
        )  # fmt: skip

    def lend(self, storage: KVStorage) -> None:
        """Storage to use instead of its own. The lender does not touch it as long as this cache exists.

        Raises:
            ValueError: it has storage already, or this one is of another layout.
        """
        if self.k:
            raise ValueError("this cache has storage already")
        if storage.layout != self.layout:
            raise ValueError(f"this storage has the layout {storage.layout}, needed is {self.layout}")
        self.k, self.v, self.sink_k, self.lent = storage.k, storage.v, storage.sink_k, True

    def _allocate(self) -> None:
        """On first use: a condition that a guide never runs, or a model without a past, costs nothing."""
        if not self.k:
            storage = KVStorage(self.layout)
            self.k, self.v, self.sink_k = storage.k, storage.v, storage.sink_k

    # -- where things lie ---------------------------------------------------------------------------------------------

    def _slot(self, frame: int) -> int:
        return frame if frame < self.sink else self.sink + (frame - self.ring_start) % self.ring

    def _runs(self, first: int, count: int) -> Iterator[tuple[int, int, int]]:
        """Contiguous pieces (offset in the chunk, slot, length) of latent frames first .. first + count."""
        offset = 0
        while offset < count:
            slot = self._slot(first + offset)
            end = self.sink if slot < self.sink else self.capacity
            length = min(count - offset, end - slot)
            yield offset, slot, length
            offset += length

    def _visible(self, held: int) -> int:
        """Occupied slots when `held` latent frames are in: always a prefix."""
        return min(held, self.sink) + min(max(0, held - self.ring_start), self.ring)

    def _oldest_in_ring(self, held: int) -> int:
        return max(self.ring_start, held - self.ring)

    # -- used by the model --------------------------------------------------------------------------------------------

    def place(self, start_frame: int, frames: int) -> None:
        """Announces the chunk at latent frame `start_frame`.

        Raises:
            ValueError: the chunk does not follow the last one, or is larger than the ring.
        """
        if self._placed == (start_frame, frames):
            return
        if self.held == 0:
            self.origin = start_frame
        first = start_frame - self.origin
        if first != self.held:
            raise ValueError(
                f"the cache continues at latent frame {self.origin + self.held}, not at {start_frame}; "
                "advance() it after each chunk"
            )
        if frames - max(0, self.sink - first) > self.ring:
            raise ValueError(
                f"a chunk of {frames} latent frames does not fit a window of {self.capacity} with a sink of {self.sink}"
                if self.config.window_frames is not None
                else f"latent frame {first + frames} is beyond the {self.capacity} the cache was made for"
            )
        if self.config.window_frames is None and first + frames > self.capacity:
            raise ValueError(f"latent frame {first + frames} is beyond the {self.capacity} the cache was made for")
        self._placed = (start_frame, frames)
        if self.moves_sink and first >= self.sink:
            self._move_sink(self._oldest_in_ring(first + frames) - self.sink)

    def _move_sink(self, to: int) -> None:
        if self._sink_at == to:
            return
        positions = tuple(range(self.origin + to, self.origin + to + self.sink))
        turn = rotation(positions, self.rows, self.columns, self.head_dim, self.device)
        for k, unrotated in zip(self.k, self.sink_k, strict=True):
            k[:, : self.sink * self.tokens] = rotate(unrotated, turn)
        self._sink_at = to

    def join(self, layer: int, k: Tensor, v: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
        """Writes the placed chunk's keys and values [B,N,H,K] into its slots.

        Returns:
            views of all occupied slots: the sink, the recent frames and the chunk itself.
        """
        assert self._placed is not None, "place() the chunk first"
        self._allocate()
        start, frames = self._placed
        first = start - self.origin
        rotated = rotate(k, turn)
        for offset, slot, length in self._runs(first, frames):
            source = slice(offset * self.tokens, (offset + length) * self.tokens)
            target = slice(slot * self.tokens, (slot + length) * self.tokens)
            self.k[layer][:, target] = rotated[:, source]
            self.v[layer][:, target] = v[:, source]
            if self.moves_sink and slot < self.sink:
                self.sink_k[layer][:, target] = k[:, source]
                self._sink_at = 0
        end = self._visible(first + frames) * self.tokens
        return self.k[layer][:, :end], self.v[layer][:, :end]

    def placement(self) -> tuple[Tensor, int]:
        """For a model that writes keys and values itself: the slot of each latent frame of the placed chunk, int32 on
        the cache's device, and how many tokens at the beginning of the storage are attended to."""
        assert self._placed is not None, "place() the chunk first"
        self._allocate()
        start, frames = self._placed
        first = start - self.origin
        slots = tuple(slot + i for _, slot, length in self._runs(first, frames) for i in range(length))
        return _on_device(slots, self.device), self._visible(first + frames) * self.tokens

    # -- used by the sampler ------------------------------------------------------------------------------------------

    @property
    def placed(self) -> bool:
        """Whether a chunk has been announced (and so written) that is not finished yet."""
        return self._placed is not None

    def advance(self) -> None:
        """Finishes the placed chunk: its slots are kept for the chunks that follow."""
        assert self._placed is not None, "nothing was placed"
        self.held += self._placed[1]
        self._placed = None

    def abandon(self) -> None:
        """Forgets a chunk that was placed but not finished. Only slots it was about to overwrite have changed."""
        self._placed = None

    def drop_text(self) -> None:
        """Forgets all that came from the prompt."""
        self.text = None
        self.cross = [None] * len(self.cross)

    def rewind(self, to_frame: int) -> None:
        """Forgets the ring, and the sink unless `to_frame` lies behind it, so that frames can be committed anew.

        Args:
            to_frame: position of the first latent frame to be committed next; the sink before it is kept. It becomes
                the ring's first slot, so that occupied slots stay a prefix.
        """
        frame = to_frame - self.origin
        assert frame == 0 or frame >= self.sink, "a sink is kept or forgotten as a whole"
        self._placed, self._sink_at = None, 0 if frame == 0 else self._sink_at
        self.held = frame
        self.ring_start = max(frame, self.sink)

    def held_frames(self) -> tuple[range, range]:
        """Positions of the finished latent frames: of the sink, and of the ring from its oldest on."""
        oldest = self._oldest_in_ring(self.held)
        sink = range(self.origin, self.origin + min(self.held, self.sink))
        return sink, range(self.origin + oldest, self.origin + max(oldest, self.held))

    def snapshot(self, start_frame: int, frames: int) -> Snapshot:
        """A detached, read-only copy of what a chunk there attends to besides itself; for forwards with gradients."""
        self.place(start_frame, frames)
        self._allocate()
        first = start_frame - self.origin
        taken = {slot + i for _, slot, length in self._runs(first, frames) for i in range(length)}
        keep = [slot for slot in range(self._visible(first + frames)) if slot not in taken]
        index = _on_device(tuple(keep), self.device)

        def pick(x: Tensor) -> Tensor:
            return x.detach().unflatten(1, (self.capacity, self.tokens)).index_select(1, index).flatten(1, 2)

        self.abandon()
        return Snapshot([pick(k) for k in self.k], [pick(v) for v in self.v], start_frame, frames)

    # -- saving -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Tensors and counters from which `load_state_dict` continues after the last finished chunk."""
        self._allocate()
        # Without a window the storage is as long as the video; only what is filled is kept.
        end = self._visible(self.held) * self.tokens if self.config.window_frames is None else None
        tensors = {f"{name}.{i}": x[:, :end] for name in ("k", "v") for i, x in enumerate(getattr(self, name))}
        tensors |= {f"sink_k.{i}": k for i, k in enumerate(self.sink_k)}
        if self.lent:  # what is returned may be kept longer than this cache
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        counters = {
            "origin": self.origin,
            "ring_start": self.ring_start,
            "held": self.held,
            "stale": self.stale,
            "sink_at": -1 if self._sink_at is None else self._sink_at,
        }
        return {"tensors": tensors, "counters": counters}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError when the state is of another model, window, batch or video size."""
        self._allocate()
        own = {f"{name}.{i}": x for name in ("k", "v", "sink_k") for i, x in enumerate(getattr(self, name))}
        for name, tensor in own.items():
            given = state["tensors"].get(name)
            grows = self.config.window_frames is None and given is not None and given.shape[1] <= tensor.shape[1]
            if (
                given is None
                or (given.shape[:1], given.shape[2:]) != (tensor.shape[:1], tensor.shape[2:])
                or (given.shape[1] != tensor.shape[1] and not grows)
            ):
                raise ValueError(
                    f"the saved state does not fit: {name} is {None if given is None else list(given.shape)}, "
                    f"needed {list(tensor.shape)} (another model, window, batch or video size?)"
                )
            tensor[:, : given.shape[1]] = given.to(tensor)
        counters = state["counters"]
        self.origin, self.ring_start, self.held = counters["origin"], counters["ring_start"], counters["held"]
        self.stale = counters["stale"]
        self._sink_at = None if counters["sink_at"] < 0 else counters["sink_at"]
        self._placed = None
        self.drop_text()


class Snapshot:
    """A read-only past: joins its keys and values with the chunk's own, and writes nothing.

    A forward with gradients needs this: had it written into the cache's storage, autograd would find its saved tensors
    changed, and under activation checkpointing the recomputation would silently see other keys.
    """

    def __init__(self, k: list[Tensor], v: list[Tensor], start_frame: int, frames: int) -> None:
        self.k, self.v = k, v
        self.expected = (start_frame, frames)

    def place(self, start_frame: int, frames: int) -> None:
        if (start_frame, frames) != self.expected:
            raise ValueError(
                f"this snapshot is of the past of {self.expected[1]} latent frames from {self.expected[0]}, "
                f"not of {frames} from {start_frame}"
            )

    def join(self, layer: int, k: Tensor, v: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
        k = rotate(k, turn)
        return torch.cat((self.k[layer].to(k.dtype), k), 1), torch.cat((self.v[layer].to(v.dtype), v), 1)


@lru_cache(maxsize=64)
def _on_device(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return to_device(torch.tensor(numbers, dtype=torch.int32), device)
