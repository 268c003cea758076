"""The rules by operator."""

from collections.abc import Callable

import onnx_ir as ir

from onnxcompress.pruning.channels import ChannelGraph

Rule = Callable[[ChannelGraph, ir.Node], None]
RULES: dict[str, Rule] = {}


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of these operators of the standard domain."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(operators, function))
        return function

    return register
