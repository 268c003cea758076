"""What `onnxcompress` offers; read by its loader, editors and type checkers."""

from .caffe import import_caffe
from .calibration.given import Calibration
from .compression import apply, compress, decompose, prune, tradeoff
from .data import Data
from .errors import InputError
from .inspection import Inspection, inspect
from .measure.accuracy import Accuracy, evaluate
from .measure.cost import Cost, cost
from .measure.latency import Latency, bench
from .model import load, save
from .plan import Plan, Ranks, read_plan
from .preprocessing import Preprocessing
from .recovery.training import Training
from .results import Compressed, Fitted, Point, Stage
from .training.finetuning import Finetuned, finetune
from .training.runs import Epoch
from .training.schedules import Schedule
from .training.trainer import Recipe

__all__ = [
    "Accuracy",
    "Calibration",
    "Compressed",
    "Cost",
    "Data",
    "Epoch",
    "Finetuned",
    "Fitted",
    "InputError",
    "Inspection",
    "Latency",
    "Plan",
    "Point",
    "Preprocessing",
    "Ranks",
    "Recipe",
    "Schedule",
    "Stage",
    "Training",
    "apply",
    "bench",
    "compress",
    "cost",
    "decompose",
    "evaluate",
    "finetune",
    "import_caffe",
    "inspect",
    "load",
    "prune",
    "read_plan",
    "save",
    "tradeoff",
]

__version__: str
