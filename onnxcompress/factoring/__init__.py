"""Low-rank factors of layers: ranks, decompositions, and chains in place of layers."""
