"""Scores of segmentations, worked out by hand and against the published code's own steps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from diffusion_lens.metrics import segmentation as metrics

TRUTH = np.array([[0, 0, 0, 1], [0, 0, 1, 1]], dtype=bool)
FOUND = np.array([[0, 0, 1, 1], [0, 0, 0, 1]], dtype=bool)


def random_masks(count: int) -> tuple[np.ndarray, np.ndarray]:
    drawn = np.random.default_rng(0).random((2, count, 6, 5))
    return drawn[0] > 0.6, drawn[1] > 0.3


def test_two_classes_worked_out_by_hand() -> None:
    counts = metrics.confusion([FOUND], [TRUTH])
    assert counts.tolist() == [[4, 1], [1, 2]]
    assert metrics.pixel_accuracy(counts) == pytest.approx(6 / 8)
    assert metrics.class_iou(counts) == pytest.approx([4 / 6, 2 / 4])
    assert metrics.miou(counts) == metrics.miou_fg_bg(counts) == pytest.approx((4 / 6 + 2 / 4) / 2)


def test_pixels_are_pooled_over_images_of_different_sizes() -> None:
    images = [FOUND, torch.ones(1, 2, dtype=torch.bool)]
    truths = [TRUTH, torch.tensor([[True, False]])]
    counts = metrics.confusion(iter(images), iter(truths))
    assert counts.tolist() == [[4, 2], [1, 3]]


def test_classes_that_are_nowhere_do_not_count() -> None:
    counts = metrics.confusion([[0, 0, 2, 2]], [[0, 2, 2, -1]], classes=4, ignore=-1)
    assert metrics.class_iou(counts)[[0, 2]] == pytest.approx([1 / 2, 1 / 2])
    assert np.isnan(metrics.class_iou(counts)[[1, 3]]).all()
    assert metrics.miou(counts) == pytest.approx(1 / 2)


def test_every_other_class_is_foreground() -> None:
    counts = metrics.confusion([[0, 1, 2, 0]], [[0, 2, 1, 1]], classes=3)
    assert metrics.miou(counts) == pytest.approx((1 / 2 + 0 + 0) / 3)
    assert metrics.miou_fg_bg(counts) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert metrics.miou_fg_bg(counts, background=1) == pytest.approx((0 + 1 / 4) / 2)


def test_the_stacked_variant_is_what_the_published_steps_give() -> None:
    found, truth = random_masks(7)
    inside = outside = 0.0
    for one, right in zip(found, truth, strict=True):  # the published code's two-channel sums
        stacked, labels = np.stack([~one, one]), np.stack([~right, right])
        inside += (stacked & labels).sum()
        outside += (stacked | labels).sum()
    counts = metrics.confusion(found, truth)
    assert metrics.miou_stacked_reference(counts) == pytest.approx(inside / outside)
    assert metrics.miou_stacked_reference(counts) != pytest.approx(metrics.miou_fg_bg(counts))


def test_the_published_table_is_accuracy_in_disguise() -> None:
    counts = np.array([[8307, 1693], [0, 0]])
    assert 100 * metrics.miou_stacked_reference(counts) == pytest.approx(71.04, abs=0.01)


def test_average_precision_by_hand() -> None:
    precision = metrics.average_precision([0.9, 0.8, 0.7, 0.1], [True, False, True, False])
    assert precision == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_average_precision_of_a_flat_map_is_the_share_of_the_mask() -> None:
    assert metrics.average_precision(np.ones((2, 4)), TRUTH) == pytest.approx(3 / 8)


def test_average_precision_depends_on_the_order_alone() -> None:
    rng = np.random.default_rng(0)
    saliency, mask = rng.random((8, 8)), rng.random((8, 8)) > 0.7
    assert metrics.average_precision(np.exp(5 * saliency), mask) == pytest.approx(
        metrics.average_precision(saliency, mask)
    )


def test_empty_masks_are_left_out_of_the_mean() -> None:
    empty = np.zeros(4, dtype=bool)
    maps, masks = [[0.9, 0.8, 0.7, 0.1], np.ones(4)], [[True, False, True, False], empty]
    assert metrics.mean_average_precision(maps, masks) == pytest.approx(5 / 6)
    assert math.isnan(metrics.average_precision(np.ones(4), empty))
    assert math.isnan(metrics.mean_average_precision([np.ones(4)], [empty]))


def test_the_stacked_precision_ranks_object_and_background_together() -> None:
    stacked = metrics.average_precision_stacked_reference
    assert stacked([0.0, 5.0], [False, True]) == 1
    # Values 1, .4, 0: ranked are 1 (object, right), 1 (background, right), .6 (wrong), .4 (right).
    found = stacked([5.0, 2.0, 0.0], [True, True, False])
    assert found == pytest.approx(2 / 3 * 1 + 1 / 3 * 3 / 4)
    assert stacked([1.0, 1.0], [False, True]) == 0


def test_the_cut_at_the_mean() -> None:
    cut = metrics.above_mean(torch.tensor([[0.0, 0.0], [1.0, 3.0]]))
    assert cut.tolist() == [[False, False], [False, True]]


@pytest.mark.parametrize(
    ("message", "predicted", "truth"),
    [
        (r"image 1: labels of shape \(1,\) for a truth of shape \(2,\)", [[0], [0]], [[0], [0, 1]]),
        ("image 0: labels from 0 to 2 where there are 2 classes", [[0, 2]], [[0, 1]]),
        ("image 0: labels from -1 to 1 .* ignore=", [[0, 1]], [[-1, 1]]),
        ("^predicted= has 1 images, the other one has more", [[0]], [[0], [1]]),
        ("^truth= has 1 images, the other one has more", [[0], [1]], [[0]]),
    ],
    ids=["shapes", "too many classes", "negative label", "fewer images", "fewer truths"],
)
def test_labels_that_do_not_fit(message: str, predicted: list, truth: list) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.confusion(predicted, truth)


@pytest.mark.parametrize(
    "score", [metrics.average_precision, metrics.average_precision_stacked_reference]
)
def test_a_map_of_another_size_than_the_mask(score: object) -> None:
    assert callable(score)
    with pytest.raises(ValueError, match=r"a map of shape \(4,\) for a mask of shape \(2, 4\)"):
        score(np.ones(4), TRUTH)


def test_nothing_at_all() -> None:
    counts = metrics.confusion([], [])
    assert math.isnan(metrics.pixel_accuracy(counts)) and math.isnan(metrics.miou(counts))
