"""ODE pairs that stay on disk: at Wan's size they are hundreds of gigabytes.

Legend: N trajectories, P stored points, B of a batch, C latent channels, F latent frames, H and W latent rows, columns.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from diag_core.safetensors_file import FormatError, SafetensorsFile

from ..io import checksum


class PairError(ValueError):
    """Pairs that cannot be used: names the folder or file, what is wrong, and what to do."""


class PointsOnDisk:
    """float16 [N,P+1,C,F,H,W] in shards, of which rows are read as they are asked for."""

    def __init__(self, paths: list[Path], checksums: list[list[int]], shape: tuple[int, ...]) -> None:
        self.paths, self.starts = paths, [0, *accumulate(map(len, checksums))]
        self.checksums = [value for sums in checksums for value in sums]
        self.shape = torch.Size((self.starts[-1], *shape))

    def __getitem__(self, index: Tensor) -> Tensor:
        """Rows [B,P+1,C,F,H,W] of whole numbers [B].

        Raises:
            PairError: a shard that is damaged, or cannot be read any more.
        """
        return torch.stack([self.row(int(i)) for i in index])

    def row(self, i: int) -> Tensor:
        """Trajectory `i`, [P+1,C,F,H,W]; raises as `__getitem__` does."""
        shard = bisect_right(self.starts, i) - 1
        path = self.paths[shard]
        try:
            with safe_open(str(path), framework="pt") as file:
                row: Tensor = file.get_slice("points")[i - self.starts[shard]]
        except Exception as error:  # the library raises exceptions of its own
            raise PairError(f"{path}: it cannot be read any more ({error}). {_AGAIN}") from error
        if checksum(row) != self.checksums[i]:
            raise PairError(f"{path}: trajectory {i - self.starts[shard]} is damaged. {_AGAIN}")
        if not row.isfinite().all():
            raise PairError(f"{path}: trajectory {i - self.starts[shard]} holds values that are no numbers. {_AGAIN}")
        return row


_AGAIN = "Delete it and run ode-pairs again, which makes this shard anew"


class PairsOnDisk:
    """As `training.stages.ode_pairs.OdePairs`, from headers alone.

    Attributes:
        digest: of all the trajectories' checksums and prompts, by which shards they are in.

    Raises:
        PairError: there are none, or a shard is damaged or of another kind than the first.
    """

    def __init__(self, folder: Path) -> None:
        paths = sorted(folder.glob("pairs_*.safetensors"))
        if not paths:
            raise PairError(f"{folder}: there are no pairs_*.safetensors. Make them with the stage ode-pairs first")
        shapes: list[tuple[int, ...]] = []
        checksums: list[list[int]] = []
        levels: list[Tensor] = []
        self.prompts: list[str] = []
        digest = hashlib.sha256()
        for path in paths:
            try:
                file = SafetensorsFile(path)
                shape = file.specs["points"].shape
                prompts, sums = json.loads(file.metadata["prompts"]), json.loads(file.metadata["checksums"])
                levels.append(file.read("sigmas"))
            except FormatError as error:
                raise PairError(f"{path}: {error}. {_AGAIN}") from error
            except (OSError, ValueError, KeyError) as error:
                raise PairError(f"{path}: it is no shard of ODE pairs ({error}). {_AGAIN}") from error
            if len(shape) != 6 or not len(prompts) == len(sums) == shape[0] or (shapes and shape[1:] != shapes[0]):
                raise PairError(
                    f"{path}: its trajectories {list(shape)} are not like those of {paths[0].name}. {_AGAIN}"
                )
            if not torch.equal(levels[-1], levels[0]):
                raise PairError(f"{path}: its levels are not those of {paths[0].name}. {_AGAIN}")
            shapes.append(shape[1:])
            checksums.append(sums)
            self.prompts += prompts
            digest.update(json.dumps([path.name, sums, prompts]).encode())
        self.points, self.sigmas = PointsOnDisk(paths, checksums, shapes[0]), levels[0]
        self.digest = digest.hexdigest()
        self.bytes = sum(path.stat().st_size for path in paths)

    def check(self, part: int, parts: int) -> None:
        """Reads every `parts`-th trajectory, from number `part`, so that a damaged one is known before training.

        Raises:
            PairError: one that is damaged.
        """
        for number in range(part, len(self.prompts), parts):
            self.points.row(number)
