"""Make an exported CNN smaller and faster, straight from its ONNX file.

The verbs are those of the command line: `import_caffe`, `inspect`, `prune`, `decompose`, `compress`,
`apply`, `evaluate`, `bench`; `load` and `save` bring networks in and out.
"""

from onnxcompress.caffe import import_caffe
from onnxcompress.compression import Compressed, Stage, apply, compress, decompose, prune
from onnxcompress.errors import InputError
from onnxcompress.inspection import Inspection, inspect
from onnxcompress.measure.accuracy import Accuracy, evaluate
from onnxcompress.measure.cost import Cost, cost
from onnxcompress.measure.latency import Latency, bench
from onnxcompress.model import load, save
from onnxcompress.plan import Plan, Ranks, read_plan
from onnxcompress.preprocessing import Preprocessing

__version__ = "0.1.0"

__all__ = [
    "Accuracy",
    "Compressed",
    "Cost",
    "InputError",
    "Inspection",
    "Latency",
    "Plan",
    "Preprocessing",
    "Ranks",
    "Stage",
    "apply",
    "bench",
    "compress",
    "cost",
    "decompose",
    "evaluate",
    "import_caffe",
    "inspect",
    "load",
    "prune",
    "read_plan",
    "save",
]
