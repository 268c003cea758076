"""Pruning, Tucker decomposition, and both, at similar accuracy. `make paper`.

A network is fine-tuned to a task, then compressed in five ways, at several operating points each: iterative
Taylor pruning alone, Tucker-2 at scaled VBMF ranks alone, both one after the other (Goyal et al. 2019), and
filters and ranks under one budget with fitted weights, of parameters and of MACs. Every network gets the same
training. The best epoch is chosen on a validation part; figures are of the test part.

Without options: GoogLeNet and SqueezeNet of ../shared/data on its 17 categories of flowers, where that folder
exists, and the digits network that ships with the project. The first of them gets three seeds where its
headline rests on them. Every finished network is kept in benchmarks/results/paper and not made again: a run
that was stopped goes on when it is started again.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

import onnxcompress as oc
from benchmarks.paper import arms, report, tasks
from benchmarks.paper.settings import DIGITS, FULL, QUICK, Settings
from onnxcompress.drafts import write_text
from onnxcompress.plan import members
from onnxcompress.progress import Progress, in_lines, within

RESULTS = tasks.ROOT / "benchmarks" / "results" / "paper"

console = Console(highlight=False, width=160)


def every_minute(label: str) -> Progress:
    """A progress line a minute."""
    return within(in_lines(partial(console.print, markup=False)), label)


def measured(task: tasks.Task, file: Path, original: Path) -> dict[str, Any]:
    """Cost and accuracy of a network in a file, as shares of the original's too."""
    network, whole = oc.cost(oc.load(file)), oc.cost(task.model)
    test, validation = oc.evaluate(file, task.test), oc.evaluate(file, task.validation)
    first, second = oc.bench([original, file], threads=1, runs=40, seconds=20)
    return {
        "test": test.top1,
        "test_error": test.top1_error,
        "images": test.n,
        "validation": validation.top1,
        "params": network.params,
        "macs": network.macs,
        "bytes": file.stat().st_size,
        "milliseconds": second.median,
        "params_share": network.params / whole.params,
        "macs_share": network.macs / whole.macs,
        "bytes_share": file.stat().st_size / original.stat().st_size,
        "latency_share": second.median / first.median,
    }


def experiment(task: tasks.Task, settings: Settings, folder: Path) -> None:
    """All arms of one task; what is kept in the folder is not done again."""
    whole = folder / "task.onnx"
    if not whole.exists():
        oc.save(task.model, whole)
    classes = int(oc.load(whole).graph.outputs[0].shape[1])

    def facts(arm: str, setting: str, seed: int, **others: Any) -> dict[str, Any]:
        return {"task": task.name, "arm": arm, "setting": setting, "seed": seed, **others}

    def describe() -> dict[str, Any]:
        filters = {layer.name: layer.filters for layer in oc.cost(task.model).layers}
        others = {"classes": classes, "steps": settings.steps, "filters": filters}
        return facts("", "", 0, removed={}, ranks={}, **others, **measured(task, whole, whole))

    original = _kept(folder / "original.json", describe)
    points = [original]

    def add(arm: str, setting: str, seed: int) -> None:
        name = f"{arm} {setting} seed {seed}"
        label = f"{task.name}, {name}"
        file = folder / "networks" / f"{name.replace(', ', ' ').replace(' ', '-').replace(':', '=')}.onnx"
        file.parent.mkdir(exist_ok=True)

        def make() -> dict[str, Any]:
            began = time.monotonic()
            rate = next((p["rate"] for p in points if (p["arm"], p["setting"]) == (arm, setting)), None)
            run = arms.Run(task, settings, seed, folder, every_minute(label), rate)
            outcome = arms.ARMS[arm](run, setting)
            oc.save(outcome.model, file)
            seconds = round(time.monotonic() - began)
            ranks = {layer: each.entries() for name, each in outcome.ranks.items() for layer in members(name)}
            changes = {"removed": dict(outcome.removed), "ranks": ranks}
            done = {"seconds": seconds, "rate": outcome.rate}
            return facts(arm, setting, seed, **done, **changes, **measured(task, file, whole))

        result = file.with_suffix(".json")
        new = not result.exists()
        point = _kept(result, make)
        points.append(point)
        console.print(
            f"{label}: test {100 * point['test']:.1f} % ({100 * original['test']:.1f}), parameters "
            f"{1 / point['params_share']:.2f}×, MACs {1 / point['macs_share']:.2f}×, {point['seconds']} s",
            markup=False,
        )
        if new:
            report.write(points, folder)

    for place in range(max(map(len, settings.points.values()))):
        for arm, choices in settings.points.items():
            if place < len(choices):
                add(arm, choices[place], 0)
    while wanted := report.lacking(points, settings.seeds):  # with more seeds, it may rest on others
        for arm, setting, seed in wanted:
            add(arm, setting, seed)
    console.print(report.write(points, folder), markup=False)
    console.print(f"written: {folder}")


def _kept(file: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A result from the disk, or made and kept there."""
    if not file.exists():
        write_text(file, json.dumps(make(), indent=1) + "\n")
    return json.loads(file.read_text())


def _folder(name: str, settings: Settings) -> Path:
    """Where the results of these settings are; more points and seeds may be added to them.

    Raises:
        InputError: when results of others are there.
    """
    folder = RESULTS / name
    folder.mkdir(parents=True, exist_ok=True)
    training = {k: v for k, v in asdict(settings).items() if k not in ("points", "seeds")}
    file, text = folder / "settings.json", json.dumps(training, indent=1) + "\n"
    if file.exists() and file.read_text() != text:
        raise oc.InputError(f"{folder}: holds results of other settings; move or remove it")
    write_text(file, text)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="of networks: digits, googlenet, squeezenet, alexnet")
    parser.add_argument("--model", type=Path, help="a network of yours to fine-tune instead")
    parser.add_argument(
        "--data", type=Path, help="a folder with one folder of images per class, or train/ and test/ of such"
    )
    parser.add_argument("--quick", action="store_true", help="fewer points, less training, smaller images")
    arguments = parser.parse_args()
    names = arguments.names or [*tasks.NETWORKS, "digits"]
    try:
        if unknown := set(names) - {*tasks.NETWORKS, "digits"}:
            raise oc.InputError(f"there is no network '{min(unknown)}'")
        settings = QUICK if arguments.quick else FULL
        known = [name for name in names if name != "digits"]
        for name in known if arguments.model is None else []:
            if tasks.weights_of(name) is None:
                console.print(
                    f"left out: {name}: {tasks.SHARED / 'models' / tasks.NETWORKS[name]} is not there"
                )
        for number, (name, model) in enumerate(tasks.given(known, arguments.model)):
            if number:
                settings = replace(settings, seeds=1)
            folder = _folder(f"{name}-quick" if arguments.quick else name, settings)
            console.print(f"{name}: results in {folder}")
            task = tasks.fine_tuned(
                name, model, arguments.data or tasks.FLOWERS, settings, folder, every_minute(name)
            )
            experiment(task, settings, folder)
        if "digits" in names and arguments.model is None:
            experiment(tasks.digits(), DIGITS, _folder("digits", DIGITS))
    except oc.InputError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
