import io

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_advdef.purifiers import JPEG
from lightning_advdef.rng import SampleRNG
from tests.purifiers.helpers import apply, random_images, structured_images


def by_pillow(image, quality):
    """An image ``(C, H, W)`` coded as 4:2:0 and decoded by Pillow, in 0..255."""
    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return np.atleast_3d(np.asarray(Image.open(file), dtype=np.float64)).transpose(2, 0, 1)


@pytest.mark.parametrize("quality", [10, 75, 95])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("make", [random_images, structured_images])
def test_it_agrees_with_pillow(make, channels, quality):
    images = make(3, channels)
    found = 255 * apply(JPEG(quality), images).double().numpy()
    expected = np.stack([by_pillow(image, quality) for image in images])
    assert np.abs(found - expected).max() <= 1.01, "two builds of one codec may round differently"


def test_the_output_has_eight_bits():
    pixels = 255 * apply(JPEG(50), random_images())
    torch.testing.assert_close(pixels, pixels.round(), rtol=0, atol=1e-4)


def test_lower_quality_changes_more():
    images = random_images()
    errors = [float((apply(JPEG(quality), images) - images).square().mean()) for quality in (95, 75, 30, 5)]
    assert errors == sorted(errors)
    assert errors[0] < errors[-1]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [30, 75])
def test_the_stand_in_is_near_the_real_codec(channels, quality):
    images = structured_images(5, channels)
    near = (JPEG(quality).stand_in()(images) - apply(JPEG(quality), images)).abs().mean()
    changed = (apply(JPEG(quality), images) - images).abs().mean()
    assert near < 0.5 * changed


def test_stand_ins_of_two_qualities_are_told_apart():
    assert repr(JPEG(30).stand_in()) != repr(JPEG(75).stand_in())


def test_the_stand_in_codes_an_image_alone_as_in_a_batch():
    images = torch.cat([random_images(1), structured_images(1)])
    alone = JPEG(75).stand_in()(images[1:])
    torch.testing.assert_close(JPEG(75).stand_in()(images)[1:], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("quality", [0, 101])
def test_other_qualities_are_refused(quality):
    with pytest.raises(ValueError, match="quality from 1 to 100"):
        JPEG(quality)


def test_images_of_two_channels_are_refused():
    images = random_images(1, channels=2)
    with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
        JPEG()(images, SampleRNG.default(images))
