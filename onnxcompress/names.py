"""Names for what a rewrite adds to a network."""

import onnx_ir as ir


class Names:
    """Gives nodes, values and initializers names that nothing else in a graph has."""

    def __init__(self, graph: ir.Graph) -> None:
        nodes = list(graph.all_nodes())
        self.taken = {value.name for value in (*graph.inputs, *graph.initializers.values())}
        self.taken |= {value.name for node in nodes for value in node.outputs} | {n.name for n in nodes}

    def fresh(self, name: str) -> str:
        """The name, with as many underscores behind it as it takes."""
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name
