"""Prototxt files: read whatever their comments are written in, and parsed into Caffe's messages."""

import re
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from onnxcompress.errors import InputError

OPEN = frozenset({"V0LayerParameter"})
"""Messages that are refused as a whole, later."""

IRRELEVANT = frozenset(
    """
    engine force_nd_im2col moving_average_fraction share_mode stable_prod_grad
    force_backward debug_info phase propagate_down blob_share_mode
    net train_net test_net train_state test_state test_iter test_interval test_compute_loss
    test_initialization display average_loss snapshot snapshot_prefix snapshot_diff snapshot_format
    snapshot_after_train solver_mode device_id layer_wise_reduce weights rms_decay
    """.split()  # noqa: SIM905  # a list of this length is read more easily as text
)
"""Fields by which nothing else is computed, of networks, layers and solvers."""


def read(path: Path) -> str:
    """The text of a file.

    Raises:
        InputError: when it cannot be read or is none.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read the file: {error.strerror}") from None
    if b"\0" in content:
        raise InputError(f"{path}: not a text file; give the prototxt first, then the caffemodel")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")  # has every byte; what is not ASCII stands in comments and names


def parse(text: str, message: Any) -> Any:
    """Fill a message.

    Raises:
        InputError: when the text does not have its form, or has a field that Caffe's message does not have.
    """
    try:
        text_format.Parse(text, message, allow_unknown_field=True)
        _check_fields(text, message.DESCRIPTOR)
    except text_format.ParseError as error:
        reason = str(error).rsplit("': ", 1)[-1]
        raise InputError(f"truncated, or not a prototxt: line {error.GetLine()}: {reason}") from None
    except RecursionError:
        raise InputError("not a prototxt: its braces are nested too deeply") from None
    return message


def _check_fields(text: str, descriptor: Any) -> None:
    """Look for fields that a message does not have, which the parser skips.

    What other kinds of layers are told is not known here: a message that is called …_param may be anything.
    """
    tokens = text_format.Tokenizer(text.split("\n"))
    within = [(descriptor.name.removesuffix("Parameter").lower(), descriptor)]
    opened = within[0]  # what the next brace opens
    while not tokens.AtEnd():
        name = tokens.token
        tokens.NextToken()
        if name in ("{", "<"):
            within.append(opened)
        elif name in ("}", ">"):
            opened = within.pop()
        elif re.fullmatch(r"[A-Za-z_]\w*", name) and tokens.token in (":", "{", "<"):
            outer, message = within[-1]
            field = None if message is None else message.fields_by_name.get(name)
            of_a_layer = tokens.token != ":" and name.endswith("_param")
            if not (field or message is None or message.name in OPEN or of_a_layer or name in IRRELEVANT):
                line = tokens.ParseErrorPreviousToken(name).GetLine()  # type: ignore[arg-type]
                raise InputError(
                    f"line {line}: {outer} has no field '{name}' in Caffe; correct its name, or remove it "
                    "if all is computed the same without it"
                )
            opened = (name, None if field is None else field.message_type)
