"""DiffAug: ranges, gradients, randomness, and each change against its plain definition."""

import pytest
import torch

from flashbulb.distill.augment import Changes, augment, draw_changes
from flashbulb.distill.rng import StepRng

KINDS = ("color", "translation", "cutout")


def drawn(kinds, count=4, seed=0, **given):
    changes = draw_changes(kinds, count, StepRng(seed, 0))
    return Changes(**{name: given.get(name, getattr(changes, name)) for name in Changes.__struct_fields__})


def test_the_changes_are_even_in_the_paper_s_ranges():
    changes = draw_changes(KINDS, 20000, StepRng(0, 0))
    for found, low, high in (
        (changes.brightness, -0.5, 0.5), (changes.saturation, 0.0, 2.0), (changes.contrast, 0.5, 1.5),
        (changes.shift, -1 / 8, 1 / 8), (changes.hole, 0.0, 1.0),
    ):  # fmt: skip
        assert found.min() >= low
        assert found.max() <= high
        assert float(found.mean()) == pytest.approx((low + high) / 2, abs=0.02 * (high - low))
        assert float(found.std()) == pytest.approx((high - low) / 12**0.5, rel=0.02)


def test_the_step_decides_and_nothing_is_drawn_for_nothing():
    first, again = (draw_changes(KINDS, 3, StepRng(1, 2)) for _ in range(2))
    other = draw_changes(KINDS, 3, StepRng(1, 3))
    assert torch.equal(first.shift, again.shift)
    assert not torch.equal(first.shift, other.shift)
    used, fresh = StepRng(1, 2), StepRng(1, 2)
    assert draw_changes((), 3, used) is None
    assert torch.equal(used.uniform(3), fresh.uniform(3))
    pictures = torch.randn(2, 3, 8, 8)
    assert augment(pictures, None, 8) is pictures


def test_a_batch_in_parts_is_changed_as_the_whole_one():
    whole = draw_changes((*KINDS, "crop"), 6, StepRng(1, 2))
    parts = [draw_changes((*KINDS, "crop"), 3, StepRng(1, 2, part, 2)) for part in (0, 1)]
    assert torch.equal(whole.hole, torch.cat([part.hole for part in parts]))
    assert whole.crop == parts[0].crop == parts[1].crop


def test_equal_pictures_stay_equal_whatever_is_drawn():
    changes, pictures = drawn((*KINDS, "crop")), torch.rand(4, 3, 40, 40)
    assert torch.equal(augment(pictures, changes, 32), augment(pictures.clone(), changes, 32))


def test_neutral_changes_change_nothing():
    neutral = drawn(
        ("color", "translation"), brightness=torch.zeros(4), saturation=torch.ones(4),
        contrast=torch.ones(4), shift=torch.zeros(4, 2),
    )  # fmt: skip
    pictures = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(augment(pictures, neutral, 16), pictures)


def test_colours_move_as_named():
    pictures = torch.rand(4, 3, 16, 16)
    same = {"brightness": torch.zeros(4), "saturation": torch.ones(4), "contrast": torch.ones(4)}
    brighter = augment(pictures, drawn(("color",), **same | {"brightness": torch.full((4,), 0.25)}), 16)
    torch.testing.assert_close(brighter, pictures + 0.25)
    grey = augment(pictures, drawn(("color",), **same | {"saturation": torch.zeros(4)}), 16)
    torch.testing.assert_close(grey, pictures.mean(1, keepdim=True).expand_as(pictures))
    flat = augment(pictures, drawn(("color",), **same | {"contrast": torch.full((4,), 0.5)}), 16)
    torch.testing.assert_close(flat.mean((1, 2, 3)), pictures.mean((1, 2, 3)))
    torch.testing.assert_close(flat.std((1, 2, 3)), pictures.std((1, 2, 3)) / 2)


def test_a_shift_moves_whole_pixels_and_fills_with_zeros():
    pictures = torch.rand(1, 3, 16, 24) + 1
    moved = augment(pictures, drawn(("translation",), 1, shift=torch.tensor([[1 / 8, -1 / 12]])), 16)
    assert torch.equal(moved[:, :, 2:, :-2], pictures[:, :, :-2, 2:])
    assert not moved[:, :, :2].any()
    assert not moved[:, :, :, -2:].any()


def test_a_hole_is_a_square_of_half_the_side():
    pictures = torch.ones(2, 3, 16, 16)
    cut = augment(pictures, drawn(("cutout",), 2, hole=torch.tensor([[0.5, 0.5], [0.0, 1.0]])), 16)
    assert not cut[0, :, 4:12, 4:12].any()
    assert cut[0].sum() == 3 * (16 * 16 - 8 * 8)
    assert not cut[1, :, :4, 12:].any()
    assert cut[1].sum() == 3 * (16 * 16 - 4 * 4)


def test_a_crop_takes_the_features_size_and_half_of_the_batches():
    pictures = torch.rand(2, 3, 40, 40)
    found = augment(pictures, drawn(("crop",), 2, crop=(0.5, 1.0)), 32)
    assert torch.equal(found, pictures[:, :, 4:36, 8:40])
    assert augment(pictures, drawn(("crop",), 2, crop=(0.5, 1.0)), 64) is pictures
    taken = [draw_changes(("crop",), 1, StepRng(0, step)).crop is not None for step in range(400)]
    assert sum(taken) == pytest.approx(200, abs=40)


def test_gradients_pass_and_are_those_of_finite_differences():
    changes = drawn(KINDS, 2)
    pictures = torch.rand(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: augment(x, changes, 8), pictures)
    (gradient,) = torch.autograd.grad(augment(pictures, changes, 8).square().sum(), pictures)
    assert (gradient != 0).any((1, 2, 3)).all()
