import csv
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxcompress.data import batches, open_data, subset
from onnxcompress.errors import InputError
from onnxcompress.preprocessing import Preprocessing

PLAIN = Preprocessing("RGB", (0.0,), resize=None)


def write_image(path: Path, value: int = 0, size: tuple[int, int] = (6, 5)) -> Path:
    """An image of one grey level, as height × width."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], (value, value, value)).save(path)
    return path


def label_file(folder: Path, *rows: tuple[str, str], header: tuple[str, str] = ("file", "label")) -> Path:
    folder.mkdir(exist_ok=True)
    with (folder / "labels.csv").open("w", newline="") as text:
        csv.writer(text).writerows([header, *rows])
    return folder


def values(data, **options) -> list[int]:
    """The first pixel of every sample."""
    options = {"shape": (3, 6, 5), "preprocessing": PLAIN, **options}
    return [int(sample.flat[0]) for x, _ in batches(data, **options) for sample in x]


def refusal(path: Path, **options) -> str:
    """The message of the refusal to read the data."""
    options = {"shape": (3, 6, 5), "preprocessing": PLAIN, **options}
    with pytest.raises(InputError) as caught:
        list(batches(open_data(path), **options))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_labels_file(tmp_path):
    for value in range(5):
        write_image(tmp_path / f"{value}.png", value)
    write_image(tmp_path / "unnamed.png", 99)
    data = open_data(label_file(tmp_path, ("4.png", "7"), ("0.png", "0"), ("2.png", " 7 ")))
    assert len(data) == 3
    assert data.labels.tolist() == [7, 0, 7]
    assert values(data) == [4, 0, 2]
    assert data.name == str(tmp_path)


def test_folder_per_class_is_numbered_by_name(tmp_path):
    for name, value in [("b/1.png", 1), ("a/2.PNG", 2), ("a/0.png", 0), ("c10/3.bmp", 3), ("c2/4.png", 4)]:
        write_image(tmp_path / name, value)
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    data = open_data(tmp_path)
    assert values(data) == [0, 2, 1, 3, 4]
    assert data.labels.tolist() == [0, 0, 1, 2, 3]
    assert data.classes == ("a", "b", "c10", "c2")


def test_flat_folder_has_no_labels(tmp_path):
    for value in (3, 1):
        write_image(tmp_path / f"{value}.png", value)
    data = open_data(tmp_path)
    assert data.labels is None
    assert [labels for _, labels in batches(data, shape=(3, 6, 5), preprocessing=PLAIN)] == [None]
    assert values(data) == [1, 3]


@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_arrays_are_fed_as_they_are(tmp_path, suffix):
    x = np.random.default_rng(0).standard_normal((7, 2, 3, 4)).astype(np.float32)
    path = tmp_path / f"data.{suffix}"
    if suffix == "npz":
        np.savez(path, x=x, y=np.arange(7, dtype=np.uint8))
    else:
        np.save(path, x)
    read = list(batches(open_data(path), shape=(2, None, 4), batch=3))
    assert [len(part) for part, _ in read] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate([part for part, _ in read]), x)
    if suffix == "npz":
        assert np.concatenate([labels for _, labels in read]).tolist() == list(range(7))


def test_arrays_take_the_type_of_the_network(tmp_path):
    np.save(tmp_path / "x.npy", np.array([[0, 255]], np.uint8))
    ((x, _),) = batches(open_data(tmp_path / "x.npy"), shape=(2,), dtype=np.float16)
    assert x.dtype == np.float16
    assert x.tolist() == [[0, 255]]
    assert "uint8" in refusal(tmp_path / "x.npy", shape=(2,), dtype=bool)


def test_batches_hold_their_labels(tmp_path):
    for value in range(5):
        write_image(tmp_path / f"{value}.png", value)
    label_file(tmp_path, *[(f"{value}.png", str(10 + value)) for value in range(5)])
    read = list(batches(open_data(tmp_path), shape=(3, 6, 5), dtype=np.float16, preprocessing=PLAIN, batch=2))
    assert [x.shape for x, _ in read] == [(2, 3, 6, 5), (2, 3, 6, 5), (1, 3, 6, 5)]
    for x, labels in read:
        assert x.dtype == np.float16
        np.testing.assert_array_equal(x[:, 0, 0, 0] + 10, labels)


def test_limit_spreads_over_the_classes(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.arange(100.0)[:, None], y=np.repeat(np.arange(10), 10))
    data = open_data(tmp_path / "d.npz")
    assert subset(data, 10).labels.tolist() == list(range(10))
    assert values(data, shape=(1,), limit=4) == [0, 25, 50, 75]
    assert len(set(values(data, shape=(1,), limit=99))) == 99
    assert values(data, shape=(1,), limit=1000) == list(range(100))
    with pytest.raises(InputError, match="at least 1"):
        subset(data, 0)


def test_limit_of_images(tmp_path):
    for value in range(6):
        write_image(tmp_path / f"{value}.png", value)
    assert values(open_data(tmp_path), limit=3) == [0, 2, 4]


def test_free_sizes_keep_what_preprocessing_gives(tmp_path):
    write_image(tmp_path / "a.png")
    for size, p in [
        ((4, 4), Preprocessing(resize=(4, 4))),
        ((2, 3), Preprocessing(resize=(4, 4), crop=(2, 3))),
    ]:
        ((x, _),) = batches(open_data(tmp_path), shape=(3, None, None), preprocessing=p)
        assert x.shape == (1, 3, *size)
    assert "any size" in refusal(tmp_path, shape=(3, None, None))


@pytest.mark.parametrize("shape", [(4, 4, 3), (None, None, 3)])
def test_channels_last(tmp_path, shape):
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    p = Preprocessing("RGB", (0.0,), resize=(4, 4))
    ((x, _),) = batches(open_data(tmp_path), shape=shape, preprocessing=p)
    np.testing.assert_array_equal(x, pixels[None])


def test_exif_orientation_is_followed(tmp_path):
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[0, 0] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    ((x, _),) = batches(open_data(tmp_path), shape=(3, 3, 2), preprocessing=PLAIN)
    np.testing.assert_array_equal(x[0, 0], np.rot90(pixels[:, :, 0], -1))


def test_missing_and_empty_sources(tmp_path):
    assert "no such file" in refusal(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "no images" in refusal(tmp_path / "empty")
    (tmp_path / "data.txt").write_text("1")
    assert "data.txt: data must be" in refusal(tmp_path / "data.txt")
    label_file(tmp_path / "labelled")
    assert "names no images" in refusal(tmp_path / "labelled")


def test_ambiguous_folders(tmp_path):
    write_image(tmp_path / "cats/1.png")
    (tmp_path / "dogs").mkdir()
    assert "dogs: no images of this class" in refusal(tmp_path)
    write_image(tmp_path / "2.png")
    assert "both images and folders" in refusal(tmp_path)


@pytest.mark.parametrize("label", ["cat", "-1", "1.0", "", "9" * 5000, "²"])
def test_labels_must_be_class_numbers(tmp_path, label):
    write_image(tmp_path / "a.png")
    label_file(tmp_path, ("a.png", "0"), ("a.png", label))
    assert "labels.csv: line 3: the label" in refusal(tmp_path)


@pytest.mark.parametrize("file", ["b.png", "", "."])
def test_label_file_names_missing_images(tmp_path, file):
    write_image(tmp_path / "a.png")
    label_file(tmp_path, ("a.png", "0"), (file, "0"))
    assert f"labels.csv: line 3: no such image: {file}" in refusal(tmp_path)


def test_malformed_label_files(tmp_path):
    write_image(tmp_path / "a.png")
    label_file(tmp_path, ("a.png", "0"), header=("image", "class"))
    assert "must be 'file,label'" in refusal(tmp_path)
    (tmp_path / "labels.csv").write_bytes(b"file,label\n\xff\xfe,0\n")
    assert "cannot be read" in refusal(tmp_path)
    (tmp_path / "labels.csv").write_text("")
    assert "must be 'file,label'" in refusal(tmp_path)
    (tmp_path / "labels.csv").write_text("file,label\na.png\n")
    assert "line 2: the label ''" in refusal(tmp_path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "tif", "gif"])
@pytest.mark.parametrize("keep", [0, 10, 0.6])
def test_damaged_images(tmp_path, suffix, keep):
    path = tmp_path / f"a.{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (60, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep < 1 else keep])
    assert path.name in refusal(tmp_path, shape=(3, 60, 50))


def test_decompression_bombs(tmp_path, monkeypatch):
    write_image(tmp_path / "a.png", size=(60, 50))
    for pixels in (2000, 1000):  # Pillow warns above its limit and raises above twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert f"a.png: more than {pixels} pixels" in refusal(tmp_path, shape=(3, 60, 50))


def test_images_that_the_preprocessing_cannot_take(tmp_path):
    write_image(tmp_path / "a.png")
    assert "a.png: preprocessing: cannot crop 7×7" in refusal(tmp_path, shape=(3, 7, 7))
    assert "need preprocessing" in refusal(tmp_path, preprocessing=None)
    assert "1 channels, preprocessing gives RGB" in refusal(tmp_path, shape=(1, 6, 5))
    assert "float32 12" in refusal(tmp_path, shape=(12,))
    assert "uint8 3×6×5" in refusal(tmp_path, dtype=np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"z": np.zeros((2, 3))}, "no array 'x'"),
        ({"x": np.zeros((2, 3)), "y": np.zeros(3, int)}, "'y' is 3, but 'x' has 2 samples"),
        ({"x": np.zeros((2, 3)), "y": np.zeros((2, 1), int)}, "'y' is 2×1"),
        ({"x": np.zeros((2, 3)), "y": np.zeros(2)}, "class numbers"),
        ({"x": np.zeros((2, 3)), "y": np.array([0, -1])}, "class numbers"),
        ({"x": np.zeros((2, 3)), "y": np.array([0, 2**64 - 1], np.uint64)}, "class numbers"),
        ({"x": np.array([[{}]], object)}, "cannot be read"),
        ({"x": np.zeros((2, 3)), "y": np.array([None, {}])}, "cannot be read"),
        ({"x": np.array([["a"]])}, "expected numbers"),
        ({"x": np.zeros(())}, "expected numbers"),
        ({"x": np.zeros((0, 3))}, "expected numbers"),
        ({"x": np.zeros((2, 4))}, "samples are 4, but the network takes 3"),
        ({"x": np.zeros((2, 3, 1))}, "samples are 3×1, but the network takes 3"),
        ({"x": np.array([[0, 0, 0], [0, np.nan, 0]])}, "sample 1 holds NaN"),
        ({"x": np.full((1, 3), np.inf)}, "sample 0 holds NaN or infinite"),
    ],
)
def test_malformed_arrays(tmp_path, arrays, message):
    np.savez(tmp_path / "data.npz", **arrays)
    found = refusal(tmp_path / "data.npz", shape=(3,))
    assert "data.npz: " in found
    assert message in found


@pytest.mark.parametrize("name", ["data.npz", "data.npy"])
def test_damaged_arrays(tmp_path, name):
    path = tmp_path / name
    (np.savez if name.endswith("npz") else np.save)(path, np.zeros((100, 3)))
    content = path.read_bytes()
    for damaged in (b"", content[:20], content[: len(content) // 2], b"\x80\x04N."):
        path.write_bytes(damaged)
        assert f"{name}: cannot be read" in refusal(path, shape=(3,))
