"""How gradients go back through operators; importing this registers all rules."""

from onnxcompress.training.rules import elements, layers, moving, normalization, pooling
from onnxcompress.training.rules.registry import RULES, NoGradientError, Rule, rule

__all__ = [
    "RULES",
    "NoGradientError",
    "Rule",
    "elements",
    "layers",
    "moving",
    "normalization",
    "pooling",
    "rule",
]
