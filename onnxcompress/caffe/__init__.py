"""Import of Caffe networks, without Caffe."""

from onnxcompress.caffe.importer import import_caffe, import_caffe_text

__all__ = ["import_caffe", "import_caffe_text"]
