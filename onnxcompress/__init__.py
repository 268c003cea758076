"""Make an exported CNN smaller and faster, straight from its ONNX file.

The verbs are those of the command line: `import_caffe`, `inspect`, `prune`, `decompose`, `compress`,
`apply`, `tradeoff`, `finetune`, `evaluate`, `bench`; `load` and `save` bring networks in and out.
"""

import lazy_loader

__version__ = "0.1.0"

# The names are in __init__.pyi; each is imported when first used, so that the command line starts at once.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
