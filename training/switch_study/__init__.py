"""A study of prompt switches: how soon a video follows the new prompt, and how far its motion jumps.

Pairs of held-out prompts, one digit each, with the same ground; digit, colour and direction differ. A video is begun
with the first prompt and switched to the second at a chunk boundary, once for every `Variant`: with and without
recomputing the window's keys, with and without extra steps. All videos of a pair start from the same noise and share
the chunks before the switch; the control is the same video without a switch.
"""

from .sampling import VARIANTS, StudyConfig, Variant
from .study import Study, report, run

__all__ = ["VARIANTS", "Study", "StudyConfig", "Variant", "report", "run"]
