"""The main job on the network that ships with the project: `make demo`.

How much to prune and at which ranks is chosen on the calibration part of the digits; what is printed was
measured on the test part, on which nothing was chosen or trained.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

import onnxcompress as oc
from models.digits_data import Part, load_digits_parts
from onnxcompress import report
from onnxcompress.data import Data
from onnxcompress.model import write_text
from onnxcompress.plan import to_yaml
from onnxcompress.plots import plot_layers

MODEL = Path(__file__).with_name("digits_inception.onnx")
OUTPUT = Path("demo-out")

RATIOS = np.arange(0.05, 0.85, 0.05).round(2).tolist()
RANKS = ["vbmf", *(f"energy:{share:.2f}" for share in np.arange(0.5, 1.0, 0.05))]
MAY_LOSE = 0.01
"""Accuracy on the calibration part that each stage may cost."""

console = Console(highlight=False, width=110)


def main() -> None:
    """Choose, compress, validate, report."""
    parts = {name: _data(name, part) for name, part in load_digits_parts().items()}
    original = oc.load(MODEL)

    def calibration_accuracy(model: oc.Compressed) -> float:
        return oc.evaluate(model.model, parts["calibration"]).top1 or 0.0

    console.print(f"[bold]{MODEL.name}[/bold], an Inception-style network trained on handwritten digits")
    floor = oc.evaluate(original, parts["calibration"]).top1 or 0.0
    pruned = {ratio: oc.prune(original, ratio=ratio) for ratio in _shown(RATIOS, "pruning")}
    fit = [ratio for ratio, each in pruned.items() if calibration_accuracy(each) >= floor - MAY_LOSE]
    ratio = max(fit, default=0.0)
    both = {
        rank: oc.compress(original, ratio=ratio, rank=rank, include_pointwise=True)
        for rank in _shown(RANKS, "decomposing")
    }
    good = {rank: each for rank, each in both.items() if calibration_accuracy(each) >= floor - 2 * MAY_LOSE}
    rank, result = min((good or both).items(), key=lambda item: item[1].stages[-1].cost.macs)
    console.print(
        f"chosen on {len(parts['calibration'])} calibration images: --ratio {ratio} --rank {rank}\n"
    )

    OUTPUT.mkdir(exist_ok=True)
    files = [OUTPUT / f"{index}_{stage.name}.onnx" for index, stage in enumerate(result.stages)]
    for file, stage in zip(files, result.stages, strict=True):
        oc.save(stage.model, file)
    times = oc.bench(files, names=[stage.name for stage in result.stages], threads=1, runs=200, seconds=10)
    rows = []
    for file, stage, time in zip(files, result.stages, times, strict=True):
        found = oc.evaluate(file, parts["test"])
        rows.append(
            [
                stage.name,
                f"{stage.cost.params:,}",
                f"{stage.cost.macs / 1e6:.2f} M",
                f"{file.stat().st_size / 1e3:.0f} kB",
                f"{100 * (found.top1 or 0):.2f} %",
                f"{time.median:.3f} ms",
                f"{time.ratio:.2f}",
            ]
        )
    columns = ["stage", "parameters", "MACs", "file", "test accuracy", "latency", "ratio"]
    console.print(report.table("", columns, rows))
    for line in report.kept_lines(result):
        console.print(line, markup=False)
    write_text(OUTPUT / "plan.yaml", to_yaml(result.plan))
    plot_layers(result, OUTPUT / "layers.png")
    console.print(
        f"{len(parts['test'])} test images; latency of one image on one thread; nothing was retrained.\n"
        f"written: {', '.join(map(str, files))}, {OUTPUT / 'plan.yaml'}, {OUTPUT / 'layers.png'}"
    )


def _shown(choices: list, what: str) -> Iterable:
    return track(choices, what, console=console, transient=True, disable=not console.is_terminal)


def _data(name: str, part: Part) -> Data:
    return Data(f"digits/{name}", part.images, part.labels)


if __name__ == "__main__":
    main()
