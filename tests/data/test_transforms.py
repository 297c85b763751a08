"""Between a robot and the model: where every view lands, that inverses invert, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from safetensors.numpy import load_file

from actwam.data.normalize import Normalizer
from actwam.data.quantiles import compute_stats
from actwam.data.transforms import (
    FutureTransform,
    RobotTransform,
    Slot,
    ViewLayout,
    absolute,
    fit,
    layout_of,
    relative,
    t_layout,
)
from actwam.types import Observation

FIXTURES = Path(__file__).parents[1] / "fixtures"
COLOURS = {"front": 10, "wrist_left": 100, "wrist_right": 200}


def views(T: int = 2) -> dict[str, np.ndarray]:
    return {name: np.full((T, 32, 48, 3), colour, np.uint8) for name, colour in COLOURS.items()}


def test_the_t_has_the_head_on_top_and_the_hands_below() -> None:
    assert t_layout(64, 48, 24) == ViewLayout(
        72, 64, (Slot("head", 0, 0, 48, 64), Slot("left", 48, 0, 24, 32), Slot("right", 48, 32, 24, 32))
    )


@pytest.mark.parametrize("order", [("front", "wrist_left", "wrist_right"), ("wrist_right", "wrist_left", "front")])
def test_every_camera_lands_in_its_slot_whatever_the_order(order: tuple[str, ...]) -> None:
    given = views()
    picture = tiny.transform(tiny.robot()).picture({name: given[name] for name in order})
    assert picture.shape == (2, 16, 32, 3)
    assert picture.dtype == np.uint8
    assert (picture[:, :8] == 10).all()
    assert (picture[:, 8:, :16] == 100).all()
    assert (picture[:, 8:, 16:] == 200).all()


def test_the_mapping_of_cameras_to_slots_is_followed() -> None:
    swapped = tiny.robot(cameras={"head": "wrist_right", "left": "front", "right": "wrist_left"})
    picture = tiny.transform(swapped).picture(views())
    assert picture[0, 0, 0, 0] == 200
    assert picture[0, 8, 0, 0] == 10
    assert picture[0, 8, 16, 0] == 100


def test_one_view_fills_the_picture() -> None:
    layout = ViewLayout(4, 6, (Slot("head", 0, 0, 4, 6),))
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 3), dtype=np.uint8)
    assert np.array_equal(layout.compose({"head": frames}), frames)
    with pytest.raises(ValueError, match=r"slots \['head'\], but views \['hand'\]"):
        layout.compose({"hand": frames})


def test_the_bilinear_t_is_the_official_picture_to_the_last_bit() -> None:
    recorded = load_file(FIXTURES / "gwp05/sampling.safetensors")
    layout = t_layout(96, 32, 32, "bilinear")
    given = {name: recorded[f"view_{i}"][None] for i, name in enumerate(("head", "left", "right"))}
    assert np.array_equal(layout.compose(given)[0], recorded["ref_image"])
    areas = replace(layout, resample="area").compose(given)[0]
    assert np.abs(areas.astype(int) - recorded["ref_image"]).max() > 50


def test_bilinear_covers_the_slot_then_cuts_its_centre() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 30, 47, 3), dtype=np.uint8)
    made = fit(frames, 21, 20, "bilinear")
    for frame, small in zip(frames, made, strict=True):
        whole = Image.fromarray(frame).resize((33, 21), Image.Resampling.BILINEAR)  # 47 * 21 / 30 = 32.9
        assert np.array_equal(small, np.asarray(whole.crop((6, 0, 26, 21))))
    assert fit(frames, 30, 47, "bilinear") is frames


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ((), "slots of different names"),
        ((Slot("a", 0, 0, 4, 3), Slot("a", 0, 3, 4, 3)), r"slots of different names, not \['a', 'a'\]"),
        ((Slot("a", 0, 0, 4, 4), Slot("b", 0, 3, 4, 3)), r"name='a'.* and .*name='b'.* overlap"),
        ((Slot("a", 0, 0, 4, 3), Slot("b", 3, 2, 1, 1)), "overlap"),
        ((Slot("a", 0, 0, 5, 3),), "name='a'.* is not within the picture of 4 x 6"),
        ((Slot("a", 0, 4, 4, 3),), "not within the picture"),
        ((Slot("a", -1, 0, 4, 3),), "not within the picture"),
        ((Slot("a", 0, -1, 4, 3),), "not within the picture"),
        ((Slot("a", 0, 0, 4, 0),), "not within the picture"),
    ],
)
def test_slots_that_cannot_be_are_refused(slots: tuple[Slot, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        ViewLayout(4, 6, slots)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_resampling_is_refused() -> None:
    data = {**t_layout(64, 48, 24).to_json(), "resample": "nearest"}
    with pytest.raises(ValueError, match="resample must be one of area, bilinear, not 'nearest'"):
        ViewLayout.from_json(data)


def test_a_robot_with_head_left_and_right_has_the_t() -> None:
    shuffled = tiny.robot(cameras={"right": "wrist_right", "head": "front", "left": "wrist_left"})
    for robot in (tiny.robot(), shuffled):
        assert layout_of(robot, 64, 96, "bilinear") == t_layout(96, 32, 32, "bilinear")
    for size in ((63, 96), (64, 95)):
        with pytest.raises(ValueError, match=r"embodiment robot_0: a picture of .* does not divide into a head above"):
            layout_of(tiny.robot(), *size)


def test_other_slots_stand_one_below_the_other_in_the_order_of_the_robot() -> None:
    robot = tiny.robot(cameras={"top": "front", "hand": "wrist_left", "belly": "wrist_right"})
    layout = layout_of(robot, 12, 6)
    assert layout == ViewLayout(
        12, 6, (Slot("top", 0, 0, 4, 6), Slot("hand", 4, 0, 4, 6), Slot("belly", 8, 0, 4, 6)), "area"
    )
    picture = replace(tiny.transform(robot), layout=layout).picture(views())
    assert [picture[0, row, 0, 0] for row in (0, 4, 8)] == [10, 100, 200]
    assert layout_of(tiny.robot(cameras={"head": "front"}), 7, 5).slots == (Slot("head", 0, 0, 7, 5),)
    with pytest.raises(ValueError, match="13 x 6 does not divide into 3 equal rows"):
        layout_of(robot, 13, 6)


def test_fit_cuts_the_centre_of_a_wide_and_of_a_tall_picture() -> None:
    wide = np.zeros((1, 4, 12, 3), np.uint8)
    wide[:, :, 4:8] = 80
    assert (fit(wide, 4, 4) == 80).all()
    assert (fit(wide, 2, 2) == 80).all()
    tall = wide.transpose(0, 2, 1, 3)
    assert (fit(tall, 4, 4) == 80).all()


def test_fit_scales_by_averaging_areas() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 8, 12, 3), dtype=np.uint8)
    means = frames.reshape(2, 4, 2, 6, 2, 3).astype(float).mean((2, 4))
    assert np.abs(fit(frames, 4, 6) - means).max() <= 0.5
    assert fit(frames, 8, 12) is frames


def test_fit_keeps_a_shape_and_its_place() -> None:
    """No mirror image, no transposition: the bright corner stays at the top left."""
    frames = np.zeros((1, 8, 8, 3), np.uint8)
    frames[:, :2, :2, 0] = 250
    small = fit(frames, 4, 4)
    assert small[0, 0, 0].tolist() == [250, 0, 0]
    assert small.sum() == 250


def actions(robot: RobotTransform, lead: tuple[int, ...] = (5,)) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    width = len(robot.embodiment.action_names)
    action = random.normal(size=(*lead, 4, width)).astype(np.float32)
    return action, random.normal(size=(*lead, 3)).astype(np.float32)


@pytest.mark.parametrize("index", [0, 1], ids=["absolute", "delta and padded"])
@pytest.mark.parametrize("lead", [(), (5,)])
def test_robot_action_inverts_model_action(index: int, lead: tuple[int, ...]) -> None:
    robot = tiny.transform(tiny.robot(index))
    action, state = actions(robot, lead)
    inside = robot.model_action(action, state)
    assert inside.shape == (*lead, 4, 3)
    assert inside.dtype == np.float32
    assert not inside[..., len(robot.embodiment.action_names) :].any()
    assert np.allclose(robot.robot_action(inside, state), action, atol=1e-5)


def test_delta_dimensions_are_relative_to_the_state_at_the_start_of_the_chunk() -> None:
    robot = replace(tiny.robot(0), delta_mask=(True, False, True))
    action = np.arange(12, dtype=np.float32).reshape(1, 4, 3)
    state = np.array([[10.0, 20.0, 30.0]], np.float32)
    delta = relative(action, state, robot)
    assert np.array_equal(delta[0, :, 0], action[0, :, 0] - 10)
    assert np.array_equal(delta[0, :, 1], action[0, :, 1])
    assert np.array_equal(delta[0, :, 2], action[0, :, 2] - 30)
    assert np.array_equal(absolute(delta, state, robot), action)


def test_what_the_model_says_in_padded_dimensions_does_not_matter() -> None:
    robot = tiny.transform(tiny.robot(1))
    action, state = actions(robot)
    inside = robot.model_action(action, state)
    noisy = inside.copy()
    noisy[..., 2] = 1e9
    assert np.array_equal(robot.robot_action(noisy, state), robot.robot_action(inside, state))


def test_a_robot_wider_than_the_model_is_refused() -> None:
    robot = replace(tiny.transform(tiny.robot(0)), action_width=2)
    action, state = actions(robot)
    with pytest.raises(ValueError, match="3 dimensions do not fit into the model's 2"):
        robot.model_action(action, state)


def test_json_and_statistics_bring_the_transform_back() -> None:
    robot = tiny.transform(tiny.robot(1))
    data, stats = (json.loads(json.dumps(part)) for part in (robot.to_json(), robot.norm_stats()))
    assert RobotTransform.from_json(data, stats) == robot


FINE = {name: np.full((32, 48, 3), colour, np.uint8) for name, colour in COLOURS.items()}
STATE = np.zeros(3, np.float32)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            {n: x for n, x in FINE.items() if n != "front"},
            r"has cameras .*'front'.*, not \['wrist_left', 'wrist",
        ),
        ({**FINE, "top": FINE["front"]}, r"not \['front', 'top', 'wrist_left', 'wrist_right'\]"),
        (
            {**FINE, "front": np.zeros((48, 32, 3), np.uint8)},
            "camera front must give 32x48x3 uint8.*not 48x32x3",
        ),
        (
            {**FINE, "front": np.zeros((32, 48, 4), np.uint8)},
            "camera front must give 32x48x3 uint8.*not 32x48x4",
        ),
        ({**FINE, "front": np.zeros((32, 48), np.uint8)}, "camera front must give 32x48x3 uint8.*not 32x48 "),
        ({**FINE, "front": np.zeros((32, 48, 3), np.float32)}, "camera front must .*not 32x48x3 float32"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_pictures_that_do_not_fit_are_refused_in_one_line(images: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        tiny.transform(tiny.robot()).observe(Observation(images, STATE, "lift it"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (np.zeros(4, np.float32), r"state must be the 3 of \('x', 'y', 'grip'\), not shape \(4,\)"),
        (np.zeros((1, 3), np.float32), r"not shape \(1, 3\)"),
        (np.array([0, np.nan, 0], np.float32), "y is nan"),
        (np.array([0, 0, -np.inf], np.float32), "grip is -inf"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_states_that_do_not_fit_are_refused_in_one_line(state: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        tiny.transform(tiny.robot()).observe(Observation(FINE, state, "lift it"))
    assert "\n" not in str(caught.value)


def test_actions_that_are_not_finite_are_refused() -> None:
    robot = tiny.transform(tiny.robot())
    action, state = actions(robot)
    action[2, 1, 0] = np.nan
    with pytest.raises(ValueError, match=r"x is nan at index \(2, 1, 0\)"):
        robot.model_action(action, state)


def test_normalisers_are_the_ones_of_the_checkpoint() -> None:
    rows = np.arange(30, dtype=np.float32).reshape(10, 3)
    normalizer = Normalizer(compute_stats(rows, ("x", "y", "grip")), "min_max")
    robot = replace(tiny.transform(tiny.robot()), state=normalizer)
    assert np.allclose(robot.model_state(rows[0]), [-1, -1, -1])
    assert np.allclose(robot.model_state(rows[-1]), [1, 1, 1])


def test_future_as_change_and_its_inverse() -> None:
    latents = np.random.default_rng(0).normal(size=(5, 3, 4, 2, 2)).astype(np.float32)
    latents[:, 1] *= 10
    transform = FutureTransform.fit(latents, np.ones((5, 3), bool))
    seen = transform.normalize(latents)
    np.testing.assert_array_equal(seen[:, :, 0], latents[:, :, 0])
    np.testing.assert_allclose(seen[:, :, 1:].std(axis=(0, 2, 3, 4)), 1, atol=1e-4)
    back = transform.denormalize(torch.from_numpy(seen[:, :, 1:]), torch.from_numpy(seen[:, :, :1]))
    np.testing.assert_allclose(back.numpy(), latents[:, :, 1:], atol=1e-4)
    still = np.repeat(latents[:, :, :1], 3, axis=2)
    assert not transform.normalize(still)[:, :, 1:].any()


def test_frames_past_the_end_do_not_count_in_the_scale_of_change() -> None:
    """They repeat the last one, so that they would make every change look smaller, or none at all."""
    latents = np.random.default_rng(0).normal(size=(5, 3, 4, 2, 2)).astype(np.float32)
    whole = FutureTransform.fit(latents, np.ones((5, 3), bool))
    valid = np.ones((10, 3), bool)
    valid[5:, 1:] = False
    twice = np.concatenate([latents, latents])
    twice[5:, :, 1] = latents[:, :, 2]
    twice[5:, :, 2:] = 1e6
    expected = np.concatenate([(latents[:, :, i] - latents[:, :, 0]) for i in (1, 2, 3, 2)])
    assert FutureTransform.fit(twice, valid).scale == pytest.approx(expected.std(axis=(0, 2, 3)))
    assert FutureTransform.fit(twice, valid) != whole
    with pytest.raises(ValueError, match="no window has a future frame in its episode"):
        FutureTransform.fit(latents, np.zeros((5, 3), bool))


def test_future_as_it_is() -> None:
    latents = np.ones((1, 2, 3, 1, 1), np.float32)
    assert FutureTransform().normalize(latents) is latents
    future = torch.zeros(1, 2, 2, 1, 1)
    assert FutureTransform().denormalize(future, future[:, :, :1]) is future
