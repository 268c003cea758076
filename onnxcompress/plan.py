"""What was decided: which filters go and at which ranks layers are factored. Plain data, YAML in and out."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from onnxcompress.errors import InputError, one_line

FORMAT = 1

LARGEST = 2**31
"""Number that no filter and no rank reaches."""


SEPARATOR = " + "
"""Between the names of layers that are factored as one."""


class Ranks(NamedTuple):
    """Ranks of one layer's factors; a rank equal to the layer's own width leaves that side as it is.

    For k×k convolutions: Tucker-2 ranks, or the CP rank, given twice. For 1×1 convolutions and Gemm: one
    rank, given twice.

    Attributes:
        out: filters of the core.
        into: filters of the input factor.
        depthwise: whether the core convolves every channel by itself (CP). The rank may then be higher than
            the layer is wide.
    """

    out: int
    into: int
    depthwise: bool = False

    def __str__(self) -> str:
        """As tables have them: ``41, 32``; ``136 depthwise``."""
        return f"{self.out} depthwise" if self.depthwise else f"{self.out}, {self.into}"

    def entries(self) -> dict[str, int | bool]:
        """As plans and reports have them: ``out``, ``in`` and, where it is so, ``depthwise: true``."""
        found: dict[str, int | bool] = {"out": self.out, "in": self.into}
        return found | {"depthwise": True} if self.depthwise else found


@dataclass(frozen=True)
class Plan:
    """Decisions by layer (node name), in the order of the network.

    Attributes:
        prune: indices of the filters (of a Gemm: neurons) that are removed, ascending.
        rewrite: LRN nodes to write as banded convolutions, which is exact and faster; pruning does so of
            itself with those whose channels it cuts.
        decompose: ranks at which the layer, as it is after pruning, is factored. 1×1 convolutions of the same
            input may share one input factor: ``a + b`` are the layers a and b, factored as one.
        kept: layers that stay as they are, with the reason. For the reader; applying ignores it.
        trained: how the weights were trained after a stage, by its name. For the reader likewise.
    """

    prune: dict[str, list[int]] = field(default_factory=dict)
    rewrite: list[str] = field(default_factory=list)
    decompose: dict[str, Ranks] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    trained: dict[str, str] = field(default_factory=dict)


def matches(layer: str, patterns: Sequence[str]) -> bool:
    """Whether a layer's name fits one of these glob patterns."""
    return any(fnmatchcase(layer, pattern) for pattern in patterns)


def members(layer: str) -> list[str]:
    """The layers that a plan's name of a factored layer stands for; most often it alone."""
    return layer.split(SEPARATOR)


def to_yaml(plan: Plan) -> str:
    """The plan as YAML that a person can edit and `from_yaml` reads back."""
    content = {
        "format": FORMAT,
        "prune": plan.prune,
        "rewrite": plan.rewrite,
        "decompose": {name: ranks.entries() for name, ranks in plan.decompose.items()},
        "kept": plan.kept,
        "trained": plan.trained,
    }
    header = (
        "# prune: filters (of a Gemm: neurons) to remove, by layer, counted from 0\n"
        "# rewrite: LRN nodes to write as banded convolutions (exact, and several times as fast)\n"
        "# decompose: Tucker-2 ranks by layer; 1×1 and Gemm layers have the same rank on both sides;\n"
        "#   a + b: 1×1 layers of the same input that share their input factor\n"
        "#   depthwise: the core convolves every channel by itself; the CP rank, on both sides\n"
        "# kept: layers left as they are, and why (not read back)\n"
        "# trained: how the weights were trained after a stage (not read back)\n"
    )
    return header + yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)


def from_yaml(text: str, source: str = "plan") -> Plan:
    """Read a plan.

    Args:
        text: YAML as `to_yaml` writes it; each section may be missing.
        source: name of the file, for messages.

    Raises:
        InputError: when the text is not such a plan.
    """
    try:
        content = yaml.load(text, _Loader)
    except Exception as error:  # the constructors of its types raise errors of many kinds
        raise InputError(f"{source}: not YAML: {one_line(error)}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{source}: not a plan of this version: its first entry must be 'format: {FORMAT}'")
    if unknown := set(content) - {"format", *(each.name for each in fields(Plan))}:
        known = ", ".join(each.name for each in fields(Plan))
        raise InputError(f"{source}: unknown entry '{min(map(str, unknown))}'; a plan has {known}")
    prune = {
        layer: _filters(filters, f"{source}: prune: {layer}")
        for layer, filters in _section(content, "prune", source).items()
    }
    rewrite = content.get("rewrite") or []
    if not isinstance(rewrite, list) or not all(isinstance(name, str) for name in rewrite):
        raise InputError(f"{source}: 'rewrite' must be a list of node names")
    decompose = {
        layer: _ranks(ranks, f"{source}: decompose: {layer}")
        for layer, ranks in _section(content, "decompose", source).items()
    }
    kept, trained = (_texts(content, key, source) for key in ("kept", "trained"))
    return Plan(prune, rewrite, decompose, kept, trained)


def read_plan(path: str | Path) -> Plan:
    """Read a plan file.

    Raises:
        InputError: when it is missing, unreadable or not a plan.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise InputError(f"{path}: cannot read the plan: {reason}") from None
    return from_yaml(text, str(path))


def _section(content: dict[str, Any], key: str, source: str) -> dict[str, Any]:
    section = content.get(key) or {}
    if not isinstance(section, dict) or not all(isinstance(name, str) for name in section):
        raise InputError(f"{source}: '{key}' must map layer names to values")
    return section


def _texts(content: dict[str, Any], key: str, source: str) -> dict[str, str]:
    section = _section(content, key, source)
    if not all(isinstance(text, str) for text in section.values()):
        raise InputError(f"{source}: '{key}' must map names to texts")
    return section


def _filters(value: Any, where: str) -> list[int]:
    if not isinstance(value, list) or not all(type(index) is int and 0 <= index < LARGEST for index in value):
        raise InputError(f"{where}: expected a list of filter numbers counted from 0, as in [0, 5, 7]")
    if len(set(value)) < len(value):
        raise InputError(f"{where}: a filter is listed twice")
    return sorted(value)


def _ranks(value: Any, where: str) -> Ranks:
    if (
        not isinstance(value, dict)
        or not {"out", "in"} <= set(value) <= {"out", "in", "depthwise"}
        or not all(type(value[side]) is int and 1 <= value[side] < LARGEST for side in ("out", "in"))
    ):
        raise InputError(f"{where}: expected two ranks of at least 1, as in {{out: 41, in: 32}}")
    depthwise = value.get("depthwise", False)
    if type(depthwise) is not bool:
        raise InputError(f"{where}: 'depthwise' must be true or false")
    if depthwise and value["out"] != value["in"]:
        raise InputError(f"{where}: with a depthwise core both ranks are the same")
    return Ranks(value["out"], value["in"], depthwise)


class _Loader(yaml.SafeLoader):
    """Without merge keys: a few lines of them would fill all memory."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Leave the merge key in its place, where it is refused."""


class _Dumper(yaml.SafeDumper):
    """Layers in block style, their lists and ranks on one line."""


_Dumper.add_representer(
    list, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)
)
_Dumper.add_representer(
    dict,
    lambda dumper, data: dumper.represent_mapping(
        "tag:yaml.org,2002:map", data, flow_style={"out", "in"} <= set(data)
    ),
)
