"""Views change an image as the plan says, and only by its own draws."""

import pytest
import torch

from client.augment import augment, draw_views, is_active
from shared.study import Augment
from simulations.seeded import SeededStream

IMAGES = torch.rand(6, 3, 20, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
DRAWS = draw_views(SeededStream(1), 6)
EVERYTHING = Augment(shift=0.1, rotate=20, scale=0.2, flip=True, intensity=0.3)


def test_a_plan_without_changes_changes_nothing() -> None:
    assert not is_active(Augment(views=4))
    assert torch.equal(augment(IMAGES, DRAWS, Augment(views=4)), IMAGES)


def test_each_view_depends_on_its_own_image_and_draws_alone() -> None:
    whole = augment(IMAGES, DRAWS, EVERYTHING)
    alone = torch.cat([augment(IMAGES[i : i + 1], DRAWS[i : i + 1], EVERYTHING) for i in range(6)])
    assert is_active(EVERYTHING)
    assert torch.allclose(whole, alone, atol=1e-12)
    assert not torch.allclose(whole, IMAGES, atol=0.05)


def test_flip_mirrors_left_and_right() -> None:
    flipped = augment(IMAGES, DRAWS, Augment(flip=True))
    for view, image, draw in zip(flipped, IMAGES, DRAWS[:, 2], strict=True):
        assert torch.allclose(view, image.flip(2) if draw < 0.5 else image, atol=1e-9)
    assert 0 < (DRAWS[:, 2] < 0.5).sum() < 6


def test_shift_moves_by_at_most_its_part_of_the_side() -> None:
    draws = torch.full((6, 7), 0.5, dtype=torch.float64)
    draws[:, 3] = 1.0
    moved = augment(IMAGES, draws, Augment(shift=0.1))  # 2 of 20 pixels
    assert torch.allclose(moved[..., :-2], IMAGES[..., 2:], atol=1e-9)


def test_rotation_by_the_largest_angle_and_back_is_the_identity_inside() -> None:
    smooth = torch.linspace(-1, 1, 41, dtype=torch.float64)
    image = torch.outer(torch.cos(smooth), smooth)[None, None]
    forth, back = torch.full((1, 7), 0.5, dtype=torch.float64), torch.full((1, 7), 0.5).double()
    forth[0, 0], back[0, 0] = 1.0, 0.0
    plan = Augment(rotate=30)
    turned = augment(image, forth, plan)
    again = augment(turned, back, plan)
    inside = slice(12, 29)
    assert torch.allclose(again[..., inside, inside], image[..., inside, inside], atol=5e-3)
    assert not torch.allclose(turned[..., inside, inside], image[..., inside, inside], atol=0.1)


@pytest.mark.parametrize("extreme", [0.0, 1.0])
def test_intensity_changes_gain_and_offset_within_its_limits(extreme: float) -> None:
    draws = torch.full((6, 7), extreme, dtype=torch.float64)
    sign = 2 * extreme - 1
    view = augment(IMAGES, draws, Augment(intensity=0.2))
    assert torch.allclose(view, IMAGES * (1 + 0.2 * sign) + 0.2 * sign)
