"""The rules by operator."""

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir

from onnxcompress.gradients.tape import NoGradientError, Pullback, Tape

Rule = Callable[[Tape, ir.Node, Sequence[Any]], tuple[Any, Pullback | None]]
"""From the tape, a node and its inputs on the tape to its outputs there and the pullback.

The outputs are one value or a tuple of them. Without a pullback nothing that follows from the outputs has a
gradient (a shape, a comparison).
"""

__all__ = ["RULES", "NoGradientError", "Rule", "rule"]

RULES: dict[str, Rule] = {}


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of these operators of the standard domain."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(operators, function))
        return function

    return register
