"""How gradients go back through operators; importing this registers all rules."""

from onnxcompress.gradients.rules import elements, layers, moving, normalization, pooling
from onnxcompress.gradients.rules.registry import RULES, NoGradientError, Rule, rule

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
