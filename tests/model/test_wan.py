"""Wan's autoencoder: as diffusers computes it, faster for one picture, and whole from any checkpoint."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file
from torch import Tensor

from actwam.model.codec import Codec, read_codec
from actwam.model.files import STEM
from actwam.model.wan import WanCodec

FOLDER = Path(__file__).parents[1] / "fixtures" / "gwp0" / "vae"
HEIGHT, WIDTH = 32, 48


@pytest.fixture(scope="module")
def codec() -> WanCodec:
    return WanCodec.load(FOLDER)


@pytest.fixture(scope="module")
def reference() -> AutoencoderKLWan:
    return AutoencoderKLWan.from_pretrained(FOLDER).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy to damage."""
    target = tmp_path / "vae"
    shutil.copytree(FOLDER, target)
    return target


def clip(T: int, B: int = 1) -> Tensor:
    rows = [tiny.squares(HEIGHT, WIDTH, T, seed) for seed in range(B)]
    return torch.from_numpy(np.stack(rows))


def as_diffusers(video: Tensor) -> Tensor:
    return video.permute(0, 4, 1, 2, 3).float() / 255 * 2 - 1


def statistics(reference: AutoencoderKLWan) -> tuple[Tensor, Tensor]:
    config = reference.config
    return torch.tensor(config.latents_mean).view(-1, 1, 1, 1), torch.tensor(config.latents_std).view(-1, 1, 1, 1)


def normalized(reference: AutoencoderKLWan, video: Tensor) -> Tensor:
    mean, std = statistics(reference)
    with torch.no_grad():
        return (reference.encode(as_diffusers(video)).latent_dist.mode() - mean) / std


def three_dimensional(codec: WanCodec, video: Tensor) -> Tensor:
    """The slow twin: the same weights through the 3-D convolutions."""
    return normalized(codec.autoencoder, video)


def config_with(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def tensors_with(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    path = folder / f"{STEM}.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


def test_what_it_says_of_itself(codec: WanCodec) -> None:
    seen: Codec = codec
    assert (seen.kind, seen.time_stride, seen.latent_channels) == ("wan", 4, 4)


@pytest.mark.parametrize(("T", "F"), [(1, 1), (5, 2), (9, 3)])
def test_latents_are_those_of_diffusers(codec: WanCodec, reference: AutoencoderKLWan, T: int, F: int) -> None:
    video = clip(T, B=2)
    latents = codec.encode(video)
    assert latents.shape == (2, 4, F, 2, 3)
    assert latents.dtype == torch.float32
    assert not latents.requires_grad
    assert latents.std() > 0.05
    assert torch.allclose(latents, normalized(reference, video), atol=1e-5, rtol=0)


def test_a_single_picture_gives_what_the_three_dimensional_path_gives(codec: WanCodec) -> None:
    video = clip(5, B=3)
    single = codec.encode(video[:, :1])
    assert (single - three_dimensional(codec, video[:, :1])).abs().max() <= 1e-5
    assert (single - codec.encode(video)[:, :, :1]).abs().max() <= 1e-5


def test_a_single_picture_meets_no_three_dimensional_kernel(codec: WanCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the slow path was taken")

    monkeypatch.setattr(codec.autoencoder.encoder, "forward", refuse)
    codec.encode(clip(1))
    with pytest.raises(AssertionError, match="slow path"):
        codec.encode(clip(5))


def test_the_folded_encoder_shares_what_it_does_not_fold_and_is_contiguous(codec: WanCodec) -> None:
    own = {parameter.data_ptr() for parameter in codec.autoencoder.parameters()}
    new = [parameter for parameter in codec.pictures.parameters() if parameter.data_ptr() not in own]
    assert new
    assert all(parameter.ndim == 4 and parameter.is_contiguous() for parameter in new)
    assert all(parameter.ndim < 5 for parameter in codec.pictures.parameters())


def test_pictures_do_not_depend_on_their_batch(codec: WanCodec) -> None:
    video = clip(1, B=3)
    whole = codec.encode(video)
    for b in range(3):
        assert torch.allclose(codec.encode(video[b : b + 1])[0], whole[b], atol=1e-5)


@pytest.mark.parametrize(("F", "T"), [(1, 1), (3, 9)])
def test_decoding_is_that_of_diffusers(codec: WanCodec, reference: AutoencoderKLWan, F: int, T: int) -> None:
    latents = tiny.noise_of(0, 2, 4, F, 2, 3)
    pictures = codec.decode(latents)
    assert pictures.shape == (2, T, HEIGHT, WIDTH, 3)
    mean, std = statistics(reference)
    with torch.no_grad():
        sample = reference.decode(latents * std + mean).sample
    wanted = (sample.permute(0, 2, 3, 4, 1) + 1) * 127.5
    assert pictures.dtype == torch.uint8
    assert (pictures.float() - wanted).abs().max() <= 0.501
    assert wanted.std() > 1


def test_pictures_stay_in_range(codec: WanCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    latents = tiny.noise_of(0, 1, 4, 1, 2, 3)
    pictures = codec.decode(latents).float()
    out = codec.autoencoder.decoder.conv_out
    monkeypatch.setattr(out, "forward", lambda *args: 100 * type(out).forward(out, *args))
    wild = codec.decode(latents)
    assert wild.min() == 0
    assert wild.max() == 255
    assert torch.equal(wild > 127, pictures > 127)


@pytest.mark.parametrize(("T", "height", "width"), [(2, 32, 48), (4, 32, 48), (1, 33, 48), (1, 32, 40)])
def test_other_lengths_and_sizes_are_refused(codec: WanCodec, T: int, height: int, width: int) -> None:
    with pytest.raises(ValueError, match=rf"{T} pictures of {height} x {width}.* 1 \+ k \* 4 .* by 16"):
        codec.encode(torch.zeros(1, T, height, width, 3, dtype=torch.uint8))


def test_a_checkpoint_carries_it_whole(codec: WanCodec, tmp_path: Path) -> None:
    save_file(codec.tensors(), tmp_path / "codec.safetensors")
    config = json.loads(json.dumps(codec.to_json()))
    again = read_codec(config, load_file(tmp_path / "codec.safetensors"))
    assert again.digest() == codec.digest()
    assert again.to_json() == codec.to_json()
    for video in (clip(1), clip(5)):
        assert torch.equal(again.encode(video), codec.encode(video))


def test_the_type_of_the_tensors_is_kept(folder: Path, codec: WanCodec) -> None:
    tensors_with(folder, lambda t: t.update({name: x.bfloat16() for name, x in t.items()}))
    small = WanCodec.load(folder)
    assert {tensor.dtype for tensor in small.tensors().values()} == {torch.bfloat16}
    assert small.digest() != codec.digest()
    latents = small.encode(clip(5))
    assert latents.dtype == torch.float32
    assert torch.allclose(latents, codec.encode(clip(5)), atol=0.05)
    assert torch.allclose(small.encode(clip(1)), codec.encode(clip(1)), atol=0.05)
    assert small.decode(latents).dtype == torch.uint8


def test_exporting_gives_the_files_back(codec: WanCodec, tmp_path: Path) -> None:
    codec.export(tmp_path / "deep" / "vae")
    for name in ("config.json", f"{STEM}.safetensors"):
        assert (tmp_path / "deep" / "vae" / name).read_bytes() == (FOLDER / name).read_bytes()


def test_exporting_to_an_impossible_place_is_one_line(codec: WanCodec, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="the codec could not be written"):
        codec.export(tmp_path / "file" / "vae")


def test_shards_with_an_index_are_read(folder: Path, codec: WanCodec) -> None:
    tensors = load_file(folder / f"{STEM}.safetensors")
    names = sorted(tensors)
    shards = {f"{STEM}-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for shard, part in shards.items():
        save_file({name: tensors[name].clone() for name in part}, folder / shard)
    (folder / f"{STEM}.safetensors").unlink()
    index = {"weight_map": {name: shard for shard, part in shards.items() for name in part}}
    (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps(index))
    assert WanCodec.load(folder).digest() == codec.digest()


def test_moving_it_keeps_its_latents(folder: Path, codec: WanCodec) -> None:
    other = WanCodec.load(folder)
    assert other.to(torch.device("cpu")) is other
    assert torch.equal(other.encode(clip(1)), codec.encode(clip(1)))
    meta = other.to(torch.device("meta"))
    assert all(tensor.is_meta for tensor in [*meta.autoencoder.parameters(), *meta.pictures.parameters()])


def test_the_digest_sees_every_weight_and_the_configuration(folder: Path, codec: WanCodec) -> None:
    assert WanCodec.load(folder).digest() == codec.digest()
    config_with(folder, latents_mean=[0.1, -0.2, 0.3, 0.1])
    digests = {codec.digest(), WanCodec.load(folder).digest()}
    tensors_with(folder, lambda t: t["encoder.conv_in.bias"].add_(1e-3))
    digests.add(WanCodec.load(folder).digest())
    assert len(digests) == 3


def test_unknown_keys_of_released_configurations_are_left_out_and_kept(folder: Path, codec: WanCodec) -> None:
    config_with(folder, clip_output=False)
    other = WanCodec.load(folder)
    assert torch.equal(other.encode(clip(1)), codec.encode(clip(1)))
    assert other.to_json()["config"]["clip_output"] is False


def test_threads_may_share_it(codec: WanCodec) -> None:
    latents = [tiny.noise_of(seed, 1, 4, 2, 2, 3) for seed in range(8)]
    videos = [clip(5)[:, :, :, :, [seed % 3, 1, 2]] for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        decoded, encoded = pool.map(codec.decode, latents), pool.map(codec.encode, videos)
        for latent, video, pictures, found in zip(latents, videos, decoded, encoded, strict=True):
            assert torch.equal(pictures, codec.decode(latent))
            assert torch.equal(found, codec.encode(video))


def test_without_diffusers_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r'needs diffusers: pip install "actwam\[wan\]"'):
        WanCodec.load(FOLDER)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: truncate(f / f"{STEM}.safetensors"), r"diffusion_pytorch_model.safetensors: cannot be read"),
        (lambda f: (f / f"{STEM}.safetensors").unlink(), "no weights here"),
        (lambda f: (f / "config.json").unlink(), r"config.json: cannot be read"),
        (lambda f: (f / "config.json").write_text("[]"), r"config.json: must hold a JSON object"),
        (lambda f: config_with(f, _class_name="AutoencoderKL"), "_class_name is 'AutoencoderKL', this codec is"),
        (lambda f: config_with(f, dim_mult="wide"), "cannot be an AutoencoderKLWan"),
        (lambda f: config_with(f, base_dim=None), "cannot be an AutoencoderKLWan"),
        (lambda f: config_with(f, latents_std=[1.0, 0.0, 1.0, 1.0]), "must be 4 finite numbers"),
        (lambda f: config_with(f, latents_mean=[1.0]), "must be 4 finite numbers"),
        (lambda f: config_with(f, scale_factor_spatial=8), "spatial is 8, its layers compress by 16"),
        (lambda f: config_with(f, scale_factor_temporal=8), "temporal is 8, its layers compress by 4"),
        (lambda f: config_with(f, z_dim=5, latents_mean=[0.0] * 5, latents_std=[1.0] * 5), r"is \(8,\), not \(10,\)"),
        (lambda f: tensors_with(f, lambda t: t.pop("quant_conv.bias")), "missing quant_conv.bias"),
        (lambda f: tensors_with(f, lambda t: t.update(spare=torch.ones(2))), "unused spare"),
        (lambda f: tensors_with(f, lambda t: t.update({"quant_conv.bias": torch.ones(8).double()})), "float64"),
    ],
)  # fmt: skip
def test_a_damaged_folder_is_one_line(folder: Path, damage: Callable[[Path], Any], message: str) -> None:
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        WanCodec.load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("frames", [1, 5])
def test_a_codec_in_bfloat16_is_close_and_keeps_its_statistics(codec: WanCodec, frames: int) -> None:
    low = WanCodec.load(FOLDER).to(torch.device("cpu"), torch.bfloat16)
    assert low.autoencoder.center.dtype == low.autoencoder.spread.dtype == torch.float32
    assert {parameter.dtype for parameter in low.pictures.parameters()} == {torch.bfloat16}
    seen = clip(frames)
    expected, found = codec.encode(seen), low.encode(seen)
    assert found.dtype == torch.float32
    assert 0 < float((found - expected).abs().max()) < 0.05 * float(expected.abs().max())
