"""Names for what a rewrite adds to a network."""

import numpy as np
import onnx_ir as ir


class Names:
    """Gives nodes, values and initializers names that nothing else in a graph has.

    Attributes:
        graph: the graph.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        nodes = list(graph.all_nodes())
        self.taken = {value.name for value in (*graph.inputs, *graph.initializers.values())}
        self.taken |= {value.name for node in nodes for value in node.outputs} | {n.name for n in nodes}

    def fresh(self, name: str) -> str:
        """The name, with as many underscores behind it as it takes."""
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name

    def initializer(self, name: str, array: np.ndarray) -> ir.Value:
        """A new initializer of the graph, under a fresh name."""
        name = self.fresh(name)
        value = ir.val(name, const_value=ir.tensor(np.asarray(array, order="C"), name=name))
        self.graph.initializers[name] = value
        return value
