"""Losses of the distillation: pure functions of tensors, without a model inside."""

from .dmd import dmd_gradient, dmd_loss
from .flow import flow_gradient, flow_loss, frame_weights

__all__ = ["dmd_gradient", "dmd_loss", "flow_gradient", "flow_loss", "frame_weights"]
