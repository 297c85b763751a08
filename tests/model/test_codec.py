"""The patch code: exact at full rank, better with every component, the same again when fitted again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from actwam.model.codec import Codec, PatchPCACodec, read_codec

FRAMES = torch.from_numpy(tiny.squares(16, 32, 40, seed=1))
NOISE = torch.randint(0, 256, (64, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def error(codec: PatchPCACodec, frames: Tensor) -> float:
    again = codec.decode(codec.encode(frames[None]))[0]
    assert again.dtype == torch.uint8
    assert again.shape == frames.shape
    return float((again.float() - frames.float()).square().mean())


def test_more_channels_are_better_and_all_of_them_exact() -> None:
    errors = [error(PatchPCACodec.fit(NOISE, patch=4, channels=n), NOISE) for n in (4, 16, 40, 48)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 10 * errors[2] > 0
    assert errors[-1] == 0


def test_pictures_that_repeat_need_few_channels() -> None:
    assert error(PatchPCACodec.fit(FRAMES, patch=8, channels=32), FRAMES) < 10


def test_latents_are_standardised_and_ordered_by_variance() -> None:
    codec = PatchPCACodec.fit(NOISE, patch=4, channels=8)
    latents = codec.encode(NOISE[None])
    assert latents.shape == (1, 8, 64, 2, 2)
    channels = latents.transpose(0, 1).flatten(1)
    assert torch.allclose(channels.mean(1), torch.zeros(8), atol=1e-4)
    assert torch.allclose(channels.std(1, correction=0), torch.ones(8), atol=1e-3)
    assert (codec.scale.diff() <= 0).all()


def test_frames_are_coded_one_by_one() -> None:
    codec = PatchPCACodec.fit(NOISE, patch=4, channels=8)
    video = NOISE[:6].unflatten(0, (2, 3))
    whole = codec.encode(video)
    for b in range(2):
        for t in range(3):
            single = codec.encode(video[b : b + 1, t : t + 1])
            assert torch.allclose(whole[b, :, t], single[0, :, 0], atol=1e-5)


def test_a_place_of_the_picture_is_a_place_of_the_latent() -> None:
    codec = PatchPCACodec.fit(NOISE, patch=4, channels=48)
    other = NOISE.clone()
    other[:, 4:, :4] += 50
    change = (codec.encode(NOISE[None]) - codec.encode(other[None])).abs().amax((0, 1, 2))
    assert change[1, 0] > 0.1
    assert change[0, 0] == change[0, 1] == change[1, 1] == 0


def test_decoding_stays_in_range() -> None:
    codec = PatchPCACodec.fit(NOISE, patch=4, channels=8)
    wild = codec.decode(torch.full((1, 8, 1, 2, 2), 100.0))
    assert set(wild.unique().tolist()) <= set(range(256))
    assert {0, 255} & set(wild.unique().tolist())


@pytest.mark.parametrize("shape", [(1, 1, 16, 8, 3), (1, 1, 8, 16, 3)])
def test_pictures_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    codec = PatchPCACodec.fit(NOISE, patch=4, channels=8)
    with pytest.raises(ValueError, match=f"reads pictures of 8 x 8, not {shape[2]} x {shape[3]}"):
        codec.encode(torch.zeros(shape, dtype=torch.uint8))


def test_a_patch_that_does_not_divide_and_too_many_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="8 x 8 pixels do not divide into patches of 3"):
        PatchPCACodec.fit(NOISE, patch=3, channels=4)
    for channels in (0, 49):
        with pytest.raises(ValueError, match=f"has 48 components, not {channels}"):
            PatchPCACodec.fit(NOISE, patch=4, channels=channels)


def test_fitting_again_agrees_and_the_digest_tells_codecs_apart() -> None:
    codec, again = (PatchPCACodec.fit(NOISE, patch=4, channels=8) for _ in range(2))
    assert codec.digest() == again.digest()
    digests = {codec.digest(), PatchPCACodec.fit(NOISE, patch=4, channels=9).digest()}
    digests.add(PatchPCACodec.fit(NOISE[:60], patch=4, channels=8).digest())
    for part in ("mean", "basis", "scale"):
        digests.add(replace(codec, **{part: getattr(codec, part) + 1e-3}).digest())
    assert len(digests) == 6


def test_what_it_says_of_itself() -> None:
    codec: Codec = PatchPCACodec.fit(NOISE, patch=4, channels=8)
    assert (codec.kind, codec.time_stride, codec.latent_channels) == ("patch_pca", 1, 8)
    assert codec.encode(NOISE[None, :3]).shape[1:3] == (8, 3)


def test_a_checkpoint_brings_the_codec_back() -> None:
    codec = PatchPCACodec.fit(NOISE, patch=4, channels=8)
    again = read_codec(codec.to_json(), codec.tensors())
    assert isinstance(again, PatchPCACodec)
    assert again.patch == 4
    assert again.digest() == codec.digest()
    assert torch.equal(again.encode(NOISE[None]), codec.encode(NOISE[None]))
    with pytest.raises(ValueError, match="has mean, basis and scale"):
        read_codec(codec.to_json(), {"mean": codec.mean})


@pytest.mark.parametrize("config", [{}, {"kind": "zip"}, {"kind": "wan"}, {"kind": "wan", "config": "no"}])
def test_a_codec_of_no_known_kind_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a codec is patch_pca, or wan with its config, not"):
        read_codec(config, {})


def test_a_moved_codec_is_another_one() -> None:
    codec = PatchPCACodec.fit(NOISE, patch=4, channels=8)
    meta = codec.to(torch.device("meta"))
    assert all(tensor.is_meta for tensor in meta.tensors().values())
    assert meta.encode(NOISE[None]).is_meta  # the pictures follow the codec
    assert not any(tensor.is_meta for tensor in codec.tensors().values())
    assert codec.to(torch.device("cpu")).digest() == codec.digest()
