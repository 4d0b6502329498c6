"""How the flows of a video's conditions become one flow to follow.

Legend: B batch, C latent channels, f latent frames of a chunk, H and W latent rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Guide(Protocol):
    """How the flows of a video's branches become one.

    Attributes:
        cfg: strength of the guidance, which a saved state is checked against.
    """

    @property
    def cfg(self) -> float: ...

    def __call__(
        self, x: Tensor, sigma: float, flows: Sequence[Callable[[Tensor], Tensor]], *, start_frame: int
    ) -> Tensor:
        """x [B,C,f,H,W] at `sigma`, one function x -> flow a branch -> the flow to follow.

        Args:
            start_frame: latent frame of the whole video that x starts at.
        """


@dataclass(frozen=True)
class ClassifierFree:
    """Classifier-free guidance: other + cfg (prompt - other); the prompt's branch alone where there is no other."""

    cfg: float = 1.0

    def __call__(
        self, x: Tensor, sigma: float, flows: Sequence[Callable[[Tensor], Tensor]], *, start_frame: int
    ) -> Tensor:
        flow = flows[0](x)
        if len(flows) == 1:
            return flow
        other = flows[1](x)
        return other + self.cfg * (flow - other)
