"""PSNR and SSIM against scikit-image's own numbers and against what can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio

from actwam.world import quality


def video(seed: int, frames: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, 16, 20, 3)).astype(np.uint8)


def test_psnr_is_that_of_scikit_image_frame_by_frame() -> None:
    real, other = video(0), video(1)
    expected = [peak_signal_noise_ratio(a, b, data_range=255) for a, b in zip(real, other, strict=True)]
    np.testing.assert_allclose(quality.psnr(real, other), expected, rtol=1e-12)


def test_equal_videos_reach_the_ceiling_and_not_infinity() -> None:
    real = video(0)
    np.testing.assert_array_equal(quality.psnr(real, real.copy()), quality.PSNR_CEILING)
    np.testing.assert_allclose(quality.ssim(real, real.copy()), 1.0)
    assert pytest.approx(58.92, abs=0.01) == quality.PSNR_CEILING


def test_an_error_in_one_frame_shows_in_that_frame() -> None:
    real = video(0)
    other = real.copy()
    other[1] = 255 - other[1]
    assert quality.psnr(real, other)[1] < 10 < quality.psnr(real, other)[[0, 2]].min()
    assert quality.ssim(real, other)[1] < 0.5 < quality.ssim(real, other)[[0, 2]].min()


def test_moved_pixels_are_those_beyond_the_threshold_in_any_colour() -> None:
    present = np.full((8, 8, 3), 100, np.uint8)
    real = np.repeat(present[None], 2, 0)
    real[0, 2, 3, 1] += 17
    real[0, 4, 4, 2] -= 17
    real[1, 5, 6, 0] += 16
    assert np.argwhere(quality.moved(present, real, 16)).tolist() == [[0, 2, 3], [0, 4, 4]]


def test_squared_error_does_not_overflow() -> None:
    black, white = np.zeros((1, 8, 8, 3), np.uint8), np.full((1, 8, 8, 3), 255, np.uint8)
    np.testing.assert_array_equal(quality.squared_error(black, white), 255.0**2)
    assert quality.psnr(black, white)[0] == pytest.approx(0.0)


@pytest.mark.parametrize("measure", [quality.psnr, quality.ssim, quality.squared_error])
@pytest.mark.parametrize("shape", [(2, 16, 20, 3), (3, 16, 18, 3)])
def test_unequal_shapes_are_refused(measure, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"cannot compare videos of shape \(3, 16, 20, 3\)"):
        measure(video(0), np.zeros(shape, np.uint8))


def test_ssim_refuses_pictures_smaller_than_its_window() -> None:
    small = np.zeros((1, 6, 20, 3), np.uint8)
    with pytest.raises(ValueError, match="SSIM needs at least 7 pixels a side"):
        quality.ssim(small, small)
