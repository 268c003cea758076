import numpy as np
import pytest
from PIL import Image

from onnxcompress.data import open_data
from onnxcompress.errors import InputError
from onnxcompress.preprocessing import Preprocessing
from onnxcompress.training.batches import shuffled


@pytest.fixture
def images(tmp_path):
    random = np.random.default_rng(0)
    for number in range(7):
        pixels = random.integers(0, 256, (12, 12), np.uint8)
        Image.fromarray(pixels, "L").save(tmp_path / f"{number}.png")
    return open_data(tmp_path)


PREPROCESSING = Preprocessing("GRAY", mean=(0,), resize=(12, 12))


def batches(data, **options):
    return shuffled(data, shape=(1, 9, 8), preprocessing=PREPROCESSING, batch=2, **options)


def test_every_step_has_its_own_batch_which_never_changes(images):
    one, again, other = batches(images, seed=3), batches(images, seed=3), batches(images, seed=4)
    drawn = [one(step)[0] for step in range(9)]
    for step in (7, 0, 3):
        np.testing.assert_array_equal(again(step)[0], drawn[step])
    assert not all(np.array_equal(other(step)[0], drawn[step]) for step in range(9))


def test_an_epoch_shows_every_sample_at_most_once(images):
    plain = batches(images, seed=0, crop=False, mirror=False)
    seen = {image.tobytes() for step in range(3) for image in plain(step)[0]}
    assert len(seen) == 6


def test_crops_lie_in_the_image_and_half_are_mirrored(images):
    whole = [np.asarray(Image.open(file), np.float32) for file in images.samples]
    possible = {
        (number, top, left, mirrored): (image[:, ::-1] if mirrored else image)[top : top + 9, left : left + 8]
        for number, image in enumerate(whole)
        for top in range(4)
        for left in range(5)
        for mirrored in (False, True)
    }
    by_bytes = {crop.tobytes(): key for key, crop in possible.items()}
    draw = batches(images, seed=1)
    keys = [
        by_bytes[np.ascontiguousarray(image[0]).tobytes()] for step in range(60) for image in draw(step)[0]
    ]
    assert {key[1] for key in keys} == set(range(4))
    assert {key[2] for key in keys} == set(range(5))
    assert 40 < sum(key[3] for key in keys) < 80


def test_enlarged_images_show_less(images):
    for file in images.samples:  # brightness grows by 10 a column
        Image.fromarray(np.tile(np.arange(12, dtype=np.uint8) * 10, (12, 1)), "L").save(file)
    draw = batches(images, seed=1, mirror=False, zoom=2.0)
    steps = np.concatenate([np.diff(image[0, 4, 2:6]) for step in range(30) for image in draw(step)[0]])
    assert (steps >= 4).all()
    assert (steps <= 11).all()
    assert steps.min() < 6
    assert steps.max() > 9
    with pytest.raises(InputError, match="not a number from 1 on"):
        batches(images, seed=1, zoom=0.5)


def test_images_enlarged_beyond_a_pixel_show_one(images):
    for file in images.samples:
        Image.new("L", (12, 12), 90).save(file)
    draw = batches(images, seed=1, zoom=1e4)
    assert all((draw(step)[0] == 90).all() for step in range(5))


def test_too_few_samples(images):
    with pytest.raises(InputError, match="has 7 samples, fewer than a batch of 8"):
        shuffled(images, shape=(1, 9, 8), preprocessing=PREPROCESSING, batch=8, seed=0)
