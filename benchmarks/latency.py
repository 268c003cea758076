"""How much faster: original, pruned, decomposed and both, in ONNX Runtime on the CPU. `make bench`.

Networks: the one that ships with the project, those given as arguments, and the Caffe networks of
../shared/data/models where that folder exists. Ratios are taken within one run, in turns.
"""

import argparse
import csv
from pathlib import Path

import onnx_ir as ir
from rich.console import Console

import onnxcompress as oc
from models.digits import SHIPPED
from onnxcompress.plots import AFTER, finish, new_figure
from onnxcompress.report.measured import latency_table

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data" / "models"
RESULTS = ROOT / "benchmarks" / "results"
RATIO, RANK = 0.3, "vbmf"

console = Console(highlight=False, width=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", type=Path, help="ONNX files to time as well")
    parser.add_argument("--runs", type=int, default=30)
    arguments = parser.parse_args()
    try:
        networks = _networks(arguments.models)
    except oc.InputError as error:
        parser.error(str(error))

    RESULTS.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, object]] = []
    for name, model in networks.items():
        stages = {
            "original": oc.prune(model, ratio=0.0),
            f"pruned {RATIO:g}": oc.prune(model, ratio=RATIO),
            f"decomposed {RANK}": oc.decompose(model, rank=RANK),
            "both": oc.compress(model, ratio=RATIO, rank=RANK),
        }
        costs = {stage: result.stages[-1].cost for stage, result in stages.items()}
        for threads in (1, 0):
            for batch in (1, 8):
                found = oc.bench(
                    [result.model for result in stages.values()],
                    names=list(stages),
                    threads=threads,
                    batch=batch,
                    runs=arguments.runs,
                )
                title = f"{name}: {f'{threads} thread' if threads else 'all threads'}, batch {found[0].batch}"
                console.print(latency_table(found, title))
                for each in found:
                    cost = costs[each.name]
                    records.append(
                        {"network": name, "stage": each.name, "threads": threads or "all"}
                        | {"params": cost.params, "macs": cost.macs}
                        | {key: value for key, value in vars(each).items() if key != "name"}
                    )
    with (RESULTS / "latency.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)
    shown = [r for r in records if r["threads"] == 1 and r["batch"] == 1]
    draw(
        [f"{record['network']}: {record['stage']}" for record in shown],
        [float(str(record["ratio"])) for record in shown],
        RESULTS / "latency.png",
    )
    console.print(f"written: {RESULTS / 'latency.csv'}, {RESULTS / 'latency.png'}")


def draw(names: list[str], ratios: list[float], path: Path) -> None:
    """One bar per network."""
    figure, axes = new_figure(8, 0.34 * len(names) + 1.2)
    bars = axes.barh(range(len(names)), ratios, color=AFTER)
    axes.bar_label(bars, [f" {ratio:.2f}" for ratio in ratios], fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("time, relative to the original (1 thread, batch 1)")
    finish(figure, path)


def _networks(files: list[Path]) -> dict[str, ir.Model]:
    networks = {"digits_inception": oc.load(SHIPPED)}
    networks |= {file.stem: oc.load(file) for file in files}
    for folder in sorted(SHARED.iterdir()) if SHARED.is_dir() else []:
        for weights in folder.glob("*.caffemodel"):
            networks[folder.name] = oc.import_caffe(folder / "deploy.prototxt", weights)
    return networks


if __name__ == "__main__":
    main()
