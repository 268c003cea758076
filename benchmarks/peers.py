"""Top-1 against MACs: what this project and other tools leave of a network, untrained. `make peers`.

Networks: the one that ships with the project, and the Caffe networks of ../shared/data where that folder
exists. Whatever a tool chooses, it chooses on calibration data without labels; accuracy is measured on other
data, of which no tool sees anything. Every tool's result is an ONNX network, so that MACs and accuracy are
measured alike.

Torch-Pruning takes part where it is installed (pip install torch-pruning). Its Taylor criterion takes the
classes that the original network gives for labels.

Each point is kept in benchmarks/results/peers as soon as it is done and is not measured again; `--again
GLOB` measures those of some tools anew. The table, a CSV and a plot per network go there too.
"""

import argparse
import csv
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from rich.console import Console

import onnxcompress as oc
from models.digits import SHIPPED
from models.digits_data import load_digits_parts
from onnxcompress.data import Data, batches, open_data, subset
from onnxcompress.drafts import write_text
from onnxcompress.measure.cost import cost
from onnxcompress.model import simplify
from onnxcompress.plots import finish, new_figure
from onnxcompress.preprocessing import from_metadata
from onnxcompress.shapes import fixed_sizes

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
RESULTS = ROOT / "benchmarks" / "results" / "peers"
CALIBRATION, EVALUATION = 500, 500
"""Images."""
BATCH = 16
FEW = 8
"""Batches of the calibration data for criteria that look at it."""

console = Console(highlight=False, width=120)


@dataclass(frozen=True)
class Network:
    """A network and its data, as arrays that it takes; the calibration part without labels."""

    name: str
    model: ir.Model
    calibration: Data
    evaluation: Data

    def some_batches(self) -> Iterator[np.ndarray]:
        """The first `FEW` batches of the calibration data."""
        samples = np.asarray(self.calibration.samples)
        return (samples[start : start + BATCH] for start in range(0, min(FEW * BATCH, len(samples)), BATCH))


# --- tools: from a network and a setting to a smaller network ------------------------------------


def ours(network: Network, setting: str) -> ir.Model:
    """This project, with data and a target."""
    return oc.compress(network.model, data=oc.Calibration(network.calibration), target=setting).model


def tucker(network: Network, setting: str) -> ir.Model:
    """Tucker-2 at ranks that follow from the weights alone."""
    return oc.decompose(network.model, rank=setting).model


def filters(network: Network, setting: str) -> ir.Model:
    """The filters of the least l2 norm go, the same share everywhere."""
    return oc.prune(network.model, ratio=float(setting)).model


def onnxsim_l2(network: Network, setting: str) -> ir.Model:
    """onnxsim's structured pruning."""
    import onnxsim

    proto = ir.to_proto(simplify(network.model))
    return ir.from_proto(onnxsim.apply_structured_pruning(proto, sparsity=float(setting)))


def onnxsim_wanda(network: Network, setting: str) -> ir.Model:
    """The same by weights times activations (Wanda)."""
    import onnxsim

    name = str(network.model.graph.inputs[0].name)
    feeds = [{name: batch} for batch in network.some_batches()]
    proto = ir.to_proto(simplify(network.model))
    pruned = onnxsim.apply_structured_wanda_pruning(proto, calibration_data=feeds, sparsity=float(setting))
    return ir.from_proto(pruned)


def torch_pruning(criterion: str, *, everywhere: bool) -> Callable[[Network, str], ir.Model]:
    """Torch-Pruning by a criterion; `everywhere`: layers compete with each other."""

    def prune(network: Network, setting: str) -> ir.Model:
        import torch
        import torch_pruning as tp

        from benchmarks import torch_networks

        torch.manual_seed(0)
        simplified = simplify(network.model)
        module = torch_networks.Network(simplified)
        example = torch.tensor(next(network.some_batches())[:1])
        if criterion == "taylor":
            for batch in network.some_batches():
                y = module(torch.tensor(batch))
                (-torch.log(y.max(dim=1).values + 1e-12)).mean().backward()
        importance = {
            "l2": tp.importance.GroupMagnitudeImportance(p=2),
            "taylor": tp.importance.GroupTaylorImportance(),
        }[criterion]
        tp.pruner.BasePruner(
            module,
            example,
            importance,
            pruning_ratio=float(setting),
            global_pruning=everywhere,
            ignored_layers=[module.layers[-1]],
        ).step()
        return module.write_back(simplified)

    return prune


SHARES = ("0.03", "0.05", "0.1", "0.2", "0.3", "0.5")
TOOLS: dict[str, tuple[Callable[[Network, str], ir.Model], tuple[str, ...]]] = {
    "onnxcompress": (ours, ("macs=0.8", "macs=0.67", "macs=0.5", "macs=0.4", "macs=0.3")),
    "Tucker-2, VBMF": (tucker, ("vbmf",)),
    "Tucker-2, energy": (tucker, ("energy:0.98", "energy:0.95", "energy:0.9", "energy:0.8", "energy:0.7")),
    "Tucker-2, fraction": (
        tucker,
        ("fraction:0.9", "fraction:0.75", "fraction:0.6", "fraction:0.5", "fraction:0.35"),
    ),
    "l2 filters": (filters, SHARES),
    "Torch-Pruning, l2": (torch_pruning("l2", everywhere=False), SHARES),
    "Torch-Pruning, Taylor": (torch_pruning("taylor", everywhere=False), SHARES),
    "Torch-Pruning, global Taylor": (torch_pruning("taylor", everywhere=True), SHARES),
    "onnxsim, l2": (onnxsim_l2, SHARES),
    "onnxsim, Wanda": (onnxsim_wanda, SHARES),
}


def absent(tool: str) -> str:
    """Why a tool cannot take part, or nothing."""
    if tool.startswith("Torch-Pruning") and not find_spec("torch_pruning"):
        return "not installed"
    return ""


# --- networks and data ---------------------------------------------------------------------------


def networks(pattern: str) -> Iterator[Network]:
    """Those that are there, one after the other."""
    if fnmatchcase("digits_inception", pattern):
        calibration, evaluation = (
            Data(f"digits/{name}", *load_digits_parts()[name]) for name in ("calibration", "test")
        )
        model = oc.load(SHIPPED)
        yield Network("digits_inception", model, replace(calibration, labels=None), evaluation)
    for folder in ("bvlc_googlenet", "squeezenet_v1.0"):
        for weights in (SHARED / "models" / folder).glob("*.caffemodel"):
            if fnmatchcase(folder, pattern):
                model = oc.import_caffe(weights.parent / "deploy.prototxt", weights)
                calibration = _arrays(model, SHARED / "images" / "imagenet_calibration", CALIBRATION)
                evaluation = _arrays(model, SHARED / "images" / "imagenet_eval", EVALUATION)
                yield Network(folder, model, replace(calibration, labels=None), evaluation)


def _arrays(model: ir.Model, folder: Path, limit: int) -> Data:
    """Images, prepared once for all tools."""
    data = subset(open_data(folder), limit)
    shape = fixed_sizes((model.graph.inputs[0].shape or ())[1:])
    found = batches(data, shape=shape, preprocessing=from_metadata(model.metadata_props), batch=BATCH)
    return replace(data, samples=np.concatenate([x for x, _ in found]))


# --- points --------------------------------------------------------------------------------------


def measure(network: Network, tool: str, setting: str) -> dict[str, Any]:
    """One point; where the tool fails, what it says."""
    point: dict[str, Any] = {"network": network.name, "tool": tool, "setting": setting}
    start = time.perf_counter()
    try:
        model = TOOLS[tool][0](network, setting) if setting else network.model
        seconds = time.perf_counter() - start
        spent, found = cost(model), oc.evaluate(model, network.evaluation, batch=BATCH)
    except Exception as error:  # of whatever kind: the other points are to be measured still
        return point | {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    whole = cost(network.model)
    return point | {
        "macs": spent.macs,
        "params": spent.params,
        "macs_share": spent.macs / whole.macs,
        "params_share": spent.params / whole.params,
        "top1": found.top1,
        "top1_error": found.top1_error,
        "top5": found.top5,
        "n": found.n,
        "seconds": seconds,
    }


def kept(network: Network, tool: str, setting: str, again: str) -> dict[str, Any]:
    """A point from the disk, or measured and kept there."""
    path = RESULTS / network.name / f"{tool} {setting}.json".replace(":", "=").replace(" .", ".")
    if path.exists() and not fnmatchcase(tool, again):
        return json.loads(path.read_text())
    point = measure(network, tool, setting)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(point, indent=1) + "\n")
    return point


# --- report --------------------------------------------------------------------------------------


def line(point: dict[str, Any]) -> str:
    """One row of the table."""
    start = f"| {point['network']} | {point['tool']} | {point['setting']} |"
    if "failed" in point:
        return f"{start} failed: {point['failed']} | | | |"
    return (
        f"{start} {point['macs'] / 1e6:,.1f} M ({point['macs_share']:.0%}) | {point['params_share']:.0%} | "
        f"{100 * point['top1']:.1f} ± {100 * point['top1_error']:.1f} | {point['seconds']:.0f} |"
    )


def report(points: list[dict[str, Any]]) -> None:
    """The table, the CSV and the plots, of what is measured so far."""
    head = (
        "| network | tool | setting | MACs | parameters | top-1, % | s |\n|---|---|---|---:|---:|---:|---:|"
    )
    write_text(RESULTS / "peers.md", "\n".join([head, *map(line, points)]) + "\n")
    columns = list(dict.fromkeys(key for point in points for key in point))
    with (RESULTS / "peers.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(points)
    for name in dict.fromkeys(point["network"] for point in points):
        plot([p for p in points if p["network"] == name and "failed" not in p], RESULTS / f"{name}.png")


def plot(points: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against MACs, a line per tool, each from the original network on."""
    figure, axes = new_figure(9, 5.5)
    original = next(point for point in points if not point["setting"])
    for index, tool in enumerate(TOOLS):
        line_ = sorted((p for p in points if p["tool"] == tool), key=lambda p: -p["macs_share"])
        if line_:
            shares, top1 = ([100 * p[key] for p in (original, *line_)] for key in ("macs_share", "top1"))
            strong = tool == "onnxcompress"
            axes.plot(shares, top1, "os^vDP*X<>"[index] + "-", label=tool, lw=2.5 if strong else 1.2, ms=5)
    error = 100 * original["top1_error"]
    axes.axhspan(100 * original["top1"] - error, 100 * original["top1"] + error, color="#c3cbd6", alpha=0.5)
    axes.set_xlabel("MACs, % of the original network")
    axes.set_ylabel(f"top-1, % of {original['n']} images")
    axes.set_title(original["network"], loc="left")
    if axes.lines:
        axes.legend(frameon=False, fontsize=8)
    finish(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default="*", help="glob pattern of their names")
    parser.add_argument("--again", default="", help="glob pattern of the tools to measure anew")
    arguments = parser.parse_args()
    wanted = [("original", "")]
    for tool, (_, settings) in TOOLS.items():
        if reason := absent(tool):
            console.print(f"left out: {tool}: {reason}")
        else:
            wanted += [(tool, setting) for setting in settings]
    points: list[dict[str, Any]] = []
    for network in networks(arguments.networks):
        for number, (tool, setting) in enumerate(wanted, start=1):
            points.append(kept(network, tool, setting, arguments.again))
            console.print(f"{number:>2}/{len(wanted)} {line(points[-1])}", markup=False)
            report(points)
    console.print(f"written: {RESULTS / 'peers.md'}, peers.csv and a plot per network")


if __name__ == "__main__":
    main()
