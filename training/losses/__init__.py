"""Losses of the distillation: pure functions of tensors, without a model inside."""

from .critic import critic_loss
from .dmd import dmd_gradient, dmd_loss
from .flow import flow_gradient, flow_loss, frame_weights
from .ode import ode_loss
from .regression import flow_regression_loss, regression_loss
from .total import LossWeights, total_loss

__all__ = [
    "LossWeights",
    "critic_loss",
    "dmd_gradient",
    "dmd_loss",
    "flow_gradient",
    "flow_loss",
    "flow_regression_loss",
    "frame_weights",
    "ode_loss",
    "regression_loss",
    "total_loss",
]
