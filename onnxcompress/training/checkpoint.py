"""The state of a training run on the disk, to go on from after an interruption."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcompress.data import Data
from onnxcompress.drafts import replacing
from onnxcompress.errors import InputError, one_line

Arrays = dict[str, np.ndarray]


def write(path: Path, facts: dict[str, Any], arrays: Arrays) -> None:
    """Write a checkpoint whole or not at all, even if the power fails.

    Args:
        path: of the file.
        facts: what JSON can hold.
        arrays: by any names.
    """
    names = sorted(arrays)
    content = {str(number): arrays[name] for number, name in enumerate(names)}
    text = np.frombuffer(json.dumps({"facts": facts, "names": names}).encode(), np.uint8)
    with replacing(path) as draft, draft.open("wb") as file:
        np.savez(file, allow_pickle=False, text=text, **content)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> tuple[dict[str, Any], Arrays]:
    """What `write` was given.

    Raises:
        InputError: when the file is no checkpoint.
    """
    try:
        with np.load(path, allow_pickle=False) as loaded:
            text = json.loads(loaded["text"].tobytes())
            arrays = {name: loaded[str(number)] for number, name in enumerate(text["names"])}
            return dict(text["facts"]), arrays
    except Exception as error:  # a damaged file may raise about anything
        raise InputError(
            f"{path}: not a checkpoint ({one_line(error, 100)}); remove it to start anew"
        ) from None


def fingerprint_of(facts: object, data: Iterable[Data | None], models: Iterable[ir.Model | None]) -> str:
    """Tells a run from others: its options, training and validation data, network and teacher."""
    identities = [None if each is None else _identity(each) for each in data]
    digest = hashlib.sha256(repr([facts, identities]).encode())
    for model in models:
        if model is not None:
            digest.update(ir.to_proto(model).SerializeToString(deterministic=True))
    return digest.hexdigest()


def _identity(data: Data) -> str:
    """Tells data from others: by the content of arrays, by names and sizes of images, and by labels."""
    digest = hashlib.sha256(b"" if data.labels is None else np.ascontiguousarray(data.labels).tobytes())
    for sample in data.samples:
        if isinstance(sample, Path):
            digest.update(f"{sample.name} {sample.stat().st_size}".encode())
        else:
            digest.update(np.ascontiguousarray(sample).tobytes())
    return digest.hexdigest()
