"""The package's parts import in one direction, as the map in docs/developing.md says."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import onnxcompress

ROOT = Path(onnxcompress.__file__).parent
MAP = Path(__file__).resolve().parents[1] / "docs" / "developing.md"


def imported(file):
    """Names of the parts of the package that a file imports."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "onnxcompress":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("onnxcompress."):
            yield node.module.split(".")[1]


def imports():
    """For every part, those that it imports."""
    found = {}
    for file in ROOT.rglob("*.py"):
        part = file.relative_to(ROOT).parts[0].removesuffix(".py")
        found.setdefault(part, set()).update(set(imported(file)) - {part})
    return found


def lines_of_the_map():
    """The line of every part in the map."""
    (block,) = re.findall(r"^onnxcompress/\n(.*?)^```", MAP.read_text(), re.DOTALL | re.MULTILINE)
    parts = re.compile(r"(\w+)(?:\.py|/)")
    return {part: n for n, line in enumerate(block.splitlines()) for part in parts.findall(line[:42])}


def test_no_part_imports_one_that_imports_it():
    parts = imports()
    assert parts["training"] >= {"gradients", "pruning"}
    TopologicalSorter(parts).prepare()  # raises CycleError, which names the parts


def test_parts_import_from_lower_lines_of_the_map_only():
    line, parts = lines_of_the_map(), imports()
    assert line.keys() <= parts.keys()
    assert line["cli"] < line["training"] < line["gradients"]
    upward = [(a, b) for a in line for b in parts[a] & line.keys() if line[b] < line[a]]
    assert upward == []
