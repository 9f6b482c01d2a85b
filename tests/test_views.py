"""Views: fixed by their seed, the first of them the image itself; masks move along, and boxes keep images still."""

import pytest
import torch
from torch import Tensor

from kswapctl.data.marks import NONE
from kswapctl.data.views import Variation, make_views, mix_views


@pytest.fixture
def blobs() -> tuple[Tensor, Tensor]:
    """Six dark images, in each a bright square somewhere, and their masks: row 1 there, row 0 around it."""
    masks = torch.zeros(6, 32, 48, dtype=torch.int16)
    for index, mask in enumerate(masks):
        mask[4 + 2 * index : 16 + 2 * index, 6 + 4 * index : 20 + 4 * index] = 1
    return (40 + 160 * masks)[:, None].expand(-1, 3, -1, -1).to(torch.uint8).clone(), masks


def test_the_first_view_is_the_image_itself_and_the_seed_decides_the_others() -> None:
    pixels, labels = torch.randint(256, (6, 3, 16, 16), dtype=torch.uint8), torch.arange(6)
    views, same = make_views(pixels, labels, 3, Variation(1))
    assert views.shape == (3, 6, 3, 16, 16)
    assert torch.equal(same, labels)
    assert torch.equal(views[0], pixels)
    assert torch.equal(views, make_views(pixels, labels, 3, Variation(1))[0])
    assert not torch.equal(views[1], make_views(pixels, labels, 3, Variation(2))[0][1])
    assert not torch.equal(views[1], views[2])


def test_mixed_views_leave_a_share_untouched() -> None:
    pixels, labels = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8), torch.arange(20)
    (mixed,), same = mix_views(pixels, labels, 0.5, Variation(1))
    assert (mixed == pixels).flatten(1).all(1).sum() == 10
    assert torch.equal(same, labels)
    assert torch.equal(mix_views(pixels, labels, 0.5, Variation(1))[0][0], mixed)


def test_a_mask_moves_with_its_image(blobs: tuple[Tensor, Tensor]) -> None:
    pixels, masks = blobs
    views, moved = make_views(pixels, masks, 4, Variation(1, marks="masks"))
    assert views.shape == (1, 24, 3, 32, 48)  # each view is an image of its own
    assert moved.shape == (24, 32, 48)
    assert moved.dtype == masks.dtype
    assert torch.equal(views[0, :6], pixels)
    assert torch.equal(moved[:6], masks)
    for image, mask, before in zip(views[0, 6:].float().mean(1), moved[6:], masks.repeat(3, 1, 1), strict=True):
        assert (mask != before).float().mean() > 0.05
        bright = image > (image[mask == 1].mean() + image[mask == 0].mean()) / 2
        assert (bright == (mask == 1))[mask != NONE].float().mean() > 0.95


def test_what_comes_in_from_beyond_the_border_counts_for_nothing(blobs: tuple[Tensor, Tensor]) -> None:
    pixels, masks = blobs
    moved = make_views(pixels, torch.ones_like(masks), 8, Variation(1, marks="masks"))[1][6:]
    assert set(moved.unique().tolist()) == {NONE, 1}
    assert 0.01 < (moved == NONE).float().mean() < 0.3


def test_half_of_the_views_of_masks_are_mirrored_and_none_of_labels() -> None:
    masks = (torch.arange(48, dtype=torch.int16) // 8).expand(40, 32, -1)  # row and light rise from left to right
    pixels = (40 * masks)[:, None].expand(-1, 3, -1, -1).to(torch.uint8)
    views, moved = make_views(pixels, masks, 2, Variation(1, marks="masks"))
    mirrored = _falls(moved[40:])
    assert 12 < mirrored.sum() < 28
    assert torch.equal(_falls(views[0, 40:].float().mean(1)), mirrored)
    assert not _falls(moved[:40]).any()
    assert not _falls(make_views(pixels, torch.arange(40), 2, Variation(1))[0][1].float().mean(1)).any()


def _falls(images: Tensor) -> Tensor:
    """Whether the left half of (N, H, W) has more than the right, where it has anything."""
    left, right = (half.flatten(1) for half in images.float().tensor_split(2, dim=2))
    mean_left, mean_right = ((half.clamp_min(0)).sum(1) / (half != NONE).sum(1) for half in (left, right))
    return mean_left > mean_right


def test_a_mixed_mask_moves_where_its_image_does(blobs: tuple[Tensor, Tensor]) -> None:
    pixels, masks = blobs
    (mixed,), moved = mix_views(pixels, masks, 0.5, Variation(1, marks="masks"))
    same = (mixed == pixels).flatten(1).all(1)
    assert same.sum() == 3
    assert torch.equal((moved == masks).flatten(1).all(1), same)


def test_nothing_moves_on_an_image_with_boxes(blobs: tuple[Tensor, Tensor]) -> None:
    pixels, masks = blobs
    boxes = torch.rand(6, 2, 6)
    views, same = make_views(pixels, boxes, 2, Variation(1, marks="boxes"))
    assert len(views) == 2
    assert torch.equal(same, boxes)
    image, mask = views[1].float().mean(1), masks.bool()
    bright = image > image.flatten(1).mean(1)[:, None, None]
    assert (bright == mask).float().mean() > 0.95
