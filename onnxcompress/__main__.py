"""Entry point of the command ``onnxcompress`` and of ``python -m onnxcompress``."""

import io
import logging
import signal
import sys
import warnings


def main() -> None:
    """Run the command line. Interrupts end in one line from the start, while its modules still load.

    What libraries would tell programmers is not shown.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # not every encoding has a ×
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    try:
        from onnxcompress.cli import app

        app()
    except KeyboardInterrupt:
        print("onnxcompress: interrupted, nothing was written; run the same command again", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
