import json
from pathlib import Path

import cv2
import numpy as np
import onnx_ir as ir
import pytest
from PIL import Image

from onnxcompress.errors import InputError
from onnxcompress.preprocessing import METADATA_KEY, Preprocessing, attach, prepare, read

PHOTOGRAPHS = Path(__file__).parents[2] / "shared/data/images"


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Random RGB pixels: the hardest image for a resampler."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def empty_model() -> ir.Model:
    return ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 17}), ir_version=9)


def as_opencv(rgb: np.ndarray, size: int = 256) -> np.ndarray:
    """Caffe's preprocessing written with OpenCV: (3, 224, 224)."""
    shrinks = rgb.shape[0] >= size and rgb.shape[1] >= size
    bgr = cv2.resize(
        rgb[:, :, ::-1], (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
    middle = slice((size - 224) // 2, (size - 224) // 2 + 224)
    return (bgr[middle, middle].astype(np.float32) - (104, 117, 123)).transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("height", "width"), [(299, 299), (600, 450), (1024, 512), (256, 256), (100, 120), (255, 256)]
)
def test_defaults_are_opencv_within_rounding(height, width):
    rgb = noise(height, width)
    ours = prepare(Image.fromarray(rgb), Preprocessing(), 224, 224)
    assert ours.dtype == np.float32
    assert ours.flags.c_contiguous
    assert np.abs(ours - as_opencv(rgb)).max() <= 1


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="needs ../shared/data/images")
def test_photographs_are_as_opencv_decodes_and_warps_them():
    for file in sorted((PHOTOGRAPHS / "imagenet_eval").glob("*.jpg"))[:10]:
        with Image.open(file) as image:
            ours = prepare(image, Preprocessing(), 224, 224)
        difference = np.abs(ours - as_opencv(cv2.imread(str(file))[:, :, ::-1]))
        assert difference.max() <= 1
        assert difference.mean() < 1e-3


def test_area_mean_of_fractional_shrink():
    rgb = np.repeat(np.array([[[0], [90], [240]]], np.uint8), 3, axis=2)  # three pixels to two: 1.5 each
    x = prepare(Image.fromarray(rgb), Preprocessing("RGB", (0.0,), resize=(1, 2)), 1, 2)
    np.testing.assert_array_equal(x[0, 0], [(0 + 45) / 1.5, (45 + 240) / 1.5])


def test_sides_are_resampled_each_in_its_own_way():
    rgb = noise(8, 2)
    x = prepare(Image.fromarray(rgb), Preprocessing("RGB", (0.0,), resize=(4, 4)), 4, 4)
    rows = rgb.astype(float).reshape(4, 2, 2, 3).mean(axis=1)
    bilinear = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    np.testing.assert_array_equal(x, np.rint(np.einsum("wo,hoc->chw", bilinear, rows)))


@pytest.mark.parametrize(("order", "channels"), [("RGB", [0, 1, 2]), ("BGR", [2, 1, 0])])
def test_value_is_pixel_minus_mean_times_scale_in_channel_order(order, channels):
    rgb = noise(5, 7)
    mean, scale = (1.0, 2.0, 3.0), (0.5, 0.25, 2.0)
    x = prepare(Image.fromarray(rgb), Preprocessing(order, mean, scale, resize=None), 2, 4)
    # (5 − 2) // 2 and (7 − 4) // 2
    expected = (rgb[1:3, 1:5][:, :, channels].astype(np.float32) - mean) * scale
    np.testing.assert_array_equal(x, expected.transpose(2, 0, 1))


def test_grey_has_one_channel():
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    x = prepare(Image.fromarray(pixels), Preprocessing("GRAY", (2.0,), (0.5,), resize=None), 3, 4)
    np.testing.assert_array_equal(x, (pixels[None].astype(np.float32) - 2) / 2)


def test_palette_and_transparent_images_become_rgb():
    colour = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    p = Preprocessing("RGB", (0.0,), resize=None)
    for image in (colour, colour.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE)):
        np.testing.assert_array_equal(prepare(image, p, 1, 1).ravel(), [10, 20, 30])


def test_images_of_16_bits_are_refused():
    image = Image.fromarray(np.full((4, 4), 4096, np.uint16))
    with pytest.raises(InputError, match="8 bits"):
        prepare(image, Preprocessing(resize=None), 4, 4)


def test_crop_must_fit():
    image = Image.fromarray(noise(10, 10))
    with pytest.raises(InputError, match="cannot crop 8×12 from an image of 10×10"):
        prepare(image, Preprocessing(resize=None), 8, 12)
    with pytest.raises(InputError, match="crop is 8×8, but the network takes 9×9"):
        prepare(image, Preprocessing(crop=(8, 8)), 9, 9)


@pytest.mark.parametrize(
    "wrong",
    [
        {"channel_order": "HSV"},
        {"mean": (1.0, 2.0)},
        {"mean": (1.0, 2.0, float("nan"))},
        {"mean": [1.0, 2.0, 3.0]},
        {"scale": ("1",)},
        {"channel_order": "GRAY", "mean": (1.0, 2.0, 3.0)},
        {"resize": (0, 256)},
        {"resize": (256,)},
        {"resize": (256.0, 256.0)},
        {"crop": "224"},
    ],
)
def test_values_are_validated(wrong):
    with pytest.raises(
        InputError, match=f"preprocessing: {'mean' if 'mean' in wrong else next(iter(wrong))} is"
    ):
        Preprocessing(**wrong)


@pytest.mark.parametrize(
    "p",
    [
        Preprocessing(),
        Preprocessing("RGB", (0.5,), (1 / 3, 0.1, 2.0), None, (32, 48)),
        Preprocessing("GRAY", (0.0,)),
    ],
)
def test_what_is_attached_is_read_back(p):
    model = empty_model()
    assert read(model) is None
    attach(model, Preprocessing("RGB"))
    attach(model, p)
    assert read(ir.from_proto(ir.to_proto(model))) == p


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[1]",
        "[" * 100_000,
        json.dumps({"sigma": 1}),
        json.dumps({"mean": "104"}),
        json.dumps({"mean": [[104]]}),
        json.dumps({"resize": {"height": 1}}),
        json.dumps({"channel_order": ["BGR"]}),
    ],
)
def test_malformed_metadata_is_refused(text):
    model = empty_model()
    model.metadata_props[METADATA_KEY] = text
    with pytest.raises(InputError, match="preprocessing"):
        read(model)
