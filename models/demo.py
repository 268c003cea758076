"""The main job on the network that ships with the project: `make demo`.

Filters and ranks are chosen and weights fitted on the calibration part of the digits, without labels; what is
printed was measured on the test part, on which nothing was chosen, fitted or trained.
"""

from pathlib import Path

from rich.console import Console

import onnxcompress as oc
from models.digits import SHIPPED
from models.digits_data import Part, load_digits_parts
from onnxcompress.data import Data
from onnxcompress.drafts import write_text
from onnxcompress.plan import to_yaml
from onnxcompress.plots import plot_layers
from onnxcompress.report.compressed import fitted_lines
from onnxcompress.report.tables import table

OUTPUT = Path("demo-out")

KEEP = 0.99
"""Share of the original's answers to keep."""

console = Console(highlight=False, width=110)


def main() -> None:
    """Choose, compress, validate, report."""
    parts = {name: _data(name, part) for name, part in load_digits_parts().items()}
    original = oc.load(SHIPPED)
    console.print(f"[bold]{SHIPPED.name}[/bold], an Inception-style network trained on handwritten digits")
    with console.status("") as status:
        result = oc.compress(
            original,
            keep_accuracy=KEEP,
            data=oc.Calibration(parts["calibration"]),
            progress=lambda what, done, total: status.update(f"{what}: {done} of {total}"),
        )
    console.print(f"the smallest network found to keep {100 * KEEP:.0f} % of its answers\n")

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
    console.print(table("", columns, rows))
    for line in fitted_lines(result):
        console.print(line, markup=False)
    write_text(OUTPUT / "plan.yaml", to_yaml(result.plan))
    plot_layers(result, OUTPUT / "layers.png")
    console.print(
        f"{len(parts['test'])} test images; latency of one image on one thread; nothing was trained.\n"
        f"written: {', '.join(map(str, files))}, {OUTPUT / 'plan.yaml'}, {OUTPUT / 'layers.png'}"
    )


def _data(name: str, part: Part) -> Data:
    return Data(f"digits/{name}", part.images, part.labels)


if __name__ == "__main__":
    main()
