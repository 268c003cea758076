"""What each operator does to channels. To support another operator, add a function to one of these files:

    @rule("Another")
    def another(graph, node):
        hand_on(graph, node, graph.atoms(node.inputs[0]))

A rule reads the atoms of the inputs (`atoms`; `along` an axis, which ties those that differ along others)
and says which atoms the outputs have (`hand_on`), what must be cut together (`tie`), what may not be cut
(`lock`), which weights follow (`parameter`) and what else changes (`edit`). It raises `NoRuleError` where
the node is of a form that it does not know; the node is then treated as unknown: all that reaches it is
kept whole.
"""

from onnxcompress.pruning.rules import elements, layers, mixing, moving
from onnxcompress.pruning.rules.registry import RULES, rule

__all__ = ["RULES", "elements", "layers", "mixing", "moving", "rule"]
