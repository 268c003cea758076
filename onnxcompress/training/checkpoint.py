"""The state of a training run on the disk, to go on from after an interruption."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

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
