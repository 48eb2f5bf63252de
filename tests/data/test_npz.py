import numpy as np
import pytest
import torch

from lightning_advdef.data import NPZ
from lightning_advdef.errors import DatasetNotFoundError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 10, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


@pytest.fixture
def write(tmp_path):
    def save(**arrays):
        path = tmp_path / "data.npz"
        np.savez(path, **{"x_train": PIXELS, "y_train": LABELS, "x_test": PIXELS, "y_test": LABELS} | arrays)
        return str(path)

    return save


def test_spec_is_read_from_the_training_arrays(write):
    data = NPZ(write())
    assert data.spec == "3x8x10x3"
    assert "test" not in data._sources


def test_both_layouts_give_the_same_pixels(write):
    nhwc = NPZ(write()).load("test").pixels
    nchw = NPZ(write(x_test=PIXELS.transpose(0, 3, 1, 2))).load("test").pixels
    assert torch.equal(nhwc, nchw)
    assert nhwc.shape == (6, 3, 8, 10)


def test_layout_can_be_given(write):
    path = write(x_train=np.full((6, 3, 8, 3), 255, dtype=np.uint8))
    assert NPZ(path, layout="nhwc").spec == "3x3x8x3"
    assert NPZ(path, layout="nchw").spec == "3x8x3x3"


def test_gray_images_may_lack_the_channel_axis(write):
    assert NPZ(write(x_train=PIXELS[..., 0])).spec == "1x8x10x3"


def test_float_pixels_keep_their_values(write):
    pixels = np.random.default_rng(1).random((6, 1, 8, 8))
    data = NPZ(write(x_test=pixels), spec="1x8x8x3")
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    assert torch.equal(batch.images, torch.from_numpy(pixels).float())
    assert batch.labels.tolist() == LABELS.tolist()


def test_pixels_of_another_range_are_said_to_be_dark(write):
    with pytest.warns(UserWarning, match=r"x_test in .* divided by 255, but the largest is 16, .*: .* as float"):
        NPZ(write(x_test=PIXELS // 15 % 17)).load("test")


def test_nothing_is_said_of_usual_pixels(write, recwarn):
    NPZ(write()).load("test")
    assert not recwarn


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_test": PIXELS / 1.0}, r"x_test in .* ranges from .* to 255.0, but float pixels lie in \[0, 1\]"),
        ({"x_test": np.full((6, 8, 10, 3), np.nan)}, r"x_test in .* ranges from nan"),
        ({"x_test": PIXELS.astype(np.int64)}, r"x_test in .* has type int64, but pixels are uint8"),
        ({"x_test": PIXELS[0, 0]}, r"x_test in .* has shape \(10, 3\)"),
        ({"x_test": PIXELS[:0]}, r"x_test in .* has shape \(0, .*\), so that there is nothing to read"),
        ({"x_test": PIXELS[:, :4]}, r"has images \(3, 4, 10\), but the spec says \(3, 8, 10\)"),
        ({"x_test": np.full((6, 8, 10, 4), 255, np.uint8)}, r"may be nhwc or nchw; say which with --data.layout"),
        ({"y_test": np.array([0, 1, 2, 0, 1, 3])}, r"y_test in .* has label 3, but the spec says 3 classes"),
        ({"y_test": np.array([0, 1, 2, 0, 1, -1])}, r"y_test in .* has label -1, but labels start at 0"),
        ({"y_test": LABELS[:4]}, r"y_test in .* is int64 \(4,\), but labels are whole numbers of shape \(6,\)"),
        ({"y_test": LABELS / 1.0}, r"y_test in .* is float64"),
        ({"y_test": np.array([{}] * 6)}, r"cannot be read as plain arrays"),
    ],
)
def test_wrong_content_is_named(write, arrays, message):
    with pytest.raises(ValueError, match=message):
        NPZ(write(**arrays)).setup("test")


def test_missing_array_is_named(tmp_path):
    np.savez(tmp_path / "data.npz", x_train=PIXELS)
    with pytest.raises(DatasetNotFoundError, match=r"lacks an array: x_train, y_train.*y_train"):
        NPZ(str(tmp_path / "data.npz")).setup("fit")


def test_damaged_file_is_reported(tmp_path):
    (tmp_path / "data.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(ValueError, match="cannot be read as plain arrays"):
        NPZ(str(tmp_path / "data.npz")).setup("fit")


def test_spec_of_a_missing_file_names_place_and_remedy(tmp_path):
    with pytest.raises(DatasetNotFoundError, match=rf"NPZ was not found at {tmp_path}/data.npz: point --data.root"):
        _ = NPZ(str(tmp_path / "data.npz")).spec


def test_a_file_of_test_images_alone_has_no_mean_training_image(tmp_path):
    np.savez(tmp_path / "data.npz", x_test=PIXELS, y_test=LABELS)
    data = NPZ(str(tmp_path / "data.npz"), spec="3x8x10x3")
    data.setup("test")
    assert len(next(iter(data.test_dataloader())).labels) == 6
    assert data.mean_image() is None
