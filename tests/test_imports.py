"""The package's parts import in one direction."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import onnxcompress

ROOT = Path(onnxcompress.__file__).parent


def imported(file):
    """Names of the parts of the package that a file imports."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "onnxcompress":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("onnxcompress."):
            yield node.module.split(".")[1]


def test_no_part_imports_one_that_imports_it():
    parts = {}
    for file in ROOT.rglob("*.py"):
        part = file.relative_to(ROOT).parts[0].removesuffix(".py")
        parts.setdefault(part, set()).update(set(imported(file)) - {part})
    assert {"cli", "training", "pruning", "gradients"} <= parts.keys()
    assert parts["training"] >= {"gradients", "pruning"}
    TopologicalSorter(parts).prepare()  # raises CycleError, which names the parts
