"""Shared by all tests: one thread a process, and hypothesis without deadlines (a busy machine is not a bug)."""

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("repository", deadline=None, max_examples=60)
settings.load_profile("repository")
