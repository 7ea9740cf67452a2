"""Segmentations and saliency maps against true masks.

Everything over pixels is read off one confusion matrix, which pools the pixels of a whole set, as
the segmentation literature does; average precision needs no threshold and is a mean over images.

Source: the definitions are those of ConceptAttention, arXiv 2502.04320, section 5, and of the code
behind its tables, which is kept under names of its own (`miou_stacked_reference`,
`average_precision_stacked_reference`), because its numbers are not those that the names promise.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.metrics import average_precision_score, confusion_matrix

from diffusion_lens.border import Size, public
from diffusion_lens.errors import ArgumentError

_NONE = object()

Confusion = Int[np.ndarray, "true predicted"]
"""Pixels by true class (rows) and predicted class (columns)."""


@public
def confusion(
    predicted: Iterable[Any], truth: Iterable[Any], *, classes: Size = 2, ignore: int | None = None
) -> Confusion:
    """Count the pixels of a set by true and predicted class.

    Args:
        predicted: For each image its labels, 0 to `classes - 1`, or a boolean mask; arrays or
            tensors. A generator is used up image by image.
        truth: For each image the true labels, of the same shape.
        classes: How many classes there are.
        ignore: A label of the truth whose pixels don't count, such as -1 or 255.

    Returns:
        Counts, true classes along the first axis.

    Raises:
        ArgumentError: If shapes or numbers of images differ, or a label is no class.
    """
    total = np.zeros((classes, classes), dtype=np.int64)
    for place, (found, right) in enumerate(zip_longest(predicted, truth, fillvalue=_NONE)):
        if found is _NONE or right is _NONE:
            fewer = "predicted" if found is _NONE else "truth"
            raise ArgumentError(
                f"{fewer}= has {place} images, the other one has more; give both of the same images"
            )
        labels = _numbers(found, f"image {place}: the labels").astype(int)
        true = _numbers(right, f"image {place}: the truth").astype(int)
        if labels.shape != true.shape:
            raise ArgumentError(
                f"image {place}: labels of shape {labels.shape} for a truth of shape {true.shape}; "
                "bring them to one size first"
            )
        counted = np.ones_like(true, dtype=bool) if ignore is None else true != ignore
        labels, true = labels[counted], true[counted]
        both = np.concatenate([labels, true])
        if both.size and not 0 <= both.min() <= both.max() < classes:
            raise ArgumentError(
                f"image {place}: labels from {both.min()} to {both.max()} where there are "
                f"{classes} classes (0 to {classes - 1}); give classes=, or ignore="
            )
        if both.size:
            total += confusion_matrix(true, labels, labels=range(classes))
    return total


@public
def pixel_accuracy(counts: Confusion) -> float:
    """Share of pixels with the right label; large backgrounds make it large.

    Args:
        counts: From `confusion`.

    Returns:
        In [0, 1]; nan without pixels.
    """
    return _ratio(np.trace(counts), counts.sum())


@public
def class_iou(counts: Confusion) -> Float[np.ndarray, " class"]:
    """Intersection over union of each class, pixels pooled over the set.

    Args:
        counts: From `confusion`.

    Returns:
        In [0, 1]; nan for a class that is neither there nor predicted.
    """
    both = np.diag(counts)
    return np.array(
        [
            _ratio(inside, union)
            for inside, union in zip(both, counts.sum(0) + counts.sum(1) - both, strict=True)
        ]
    )


@public
def miou(counts: Confusion) -> float:
    """Mean of `class_iou` over the classes that are there or predicted.

    Args:
        counts: From `confusion`.

    Returns:
        In [0, 1]; nan without pixels.
    """
    found = class_iou(counts)
    return float(np.nanmean(found)) if not np.isnan(found).all() else float("nan")


@public
def miou_fg_bg(counts: Confusion, *, background: int = 0) -> float:
    """Mean of the IoU of the foreground and of the background.

    Args:
        counts: From `confusion`; all classes but one are foreground.
        background: That one.

    Returns:
        In [0, 1]; nan without pixels.
    """
    behind = np.arange(len(counts)) == background
    sides = np.stack([behind, ~behind]).astype(np.int64)
    return miou(sides @ counts @ sides.T)


@public
def miou_stacked_reference(counts: Confusion) -> float:
    """What ConceptAttention's ImageNet-Segmentation code calls mIoU: Acc / (2 - Acc).

    It stacks masks and their opposites, (1 - m, m) and (1 - t, t), and takes both channels for one
    class, so that intersection and union count every pixel twice: a function of the accuracy that
    knows nothing of the size of the object. For comparison with that table's rows of diffusion and
    self-supervised models only; its CLIP rows are the ordinary `miou_fg_bg`.

    Args:
        counts: From `confusion`, with two classes.

    Returns:
        In [0, 1]; nan without pixels.
    """
    accuracy = pixel_accuracy(counts)
    return accuracy / (2 - accuracy)


@public
def average_precision(saliency: Any, mask: Any) -> float:
    """Area under precision against recall over all thresholds; ties count as one threshold.

    The share of the mask in the image is what an uninformed map reaches. Only the order of the
    values matters.

    Args:
        saliency: More means more salient; array or tensor.
        mask: The truth, of the same shape.

    Returns:
        In (0, 1]; nan where the mask is empty.

    Raises:
        ArgumentError: If the shapes differ.
    """
    values, true = _pair(saliency, mask)
    return float(average_precision_score(true, values)) if true.any() else float("nan")


@public
def mean_average_precision(saliency: Iterable[Any], masks: Iterable[Any]) -> float:
    """Mean over images of `average_precision`; images with an empty mask are left out.

    Args:
        saliency: A map for each image.
        masks: The truths.

    Returns:
        In (0, 1]; nan where every mask is empty.
    """
    each = [average_precision(one, mask) for one, mask in zip(saliency, masks, strict=True)]
    return _ratio(np.nansum(each), np.sum(~np.isnan(each)))


@public
def average_precision_stacked_reference(saliency: Any, mask: Any) -> float:
    """What ConceptAttention's code averages to its mAP: object and background in one ranking.

    The map is brought to [0, 1] by its extremes; values s of object pixels and 1 - s of background
    pixels are ranked together, so that scale and an offset between object and background matter.

    Args:
        saliency: More means more salient.
        mask: The truth, of the same shape.

    Returns:
        In [0, 1]; 0 for a flat map, as there.

    Raises:
        ArgumentError: If the shapes differ.
    """
    values, true = _pair(saliency, mask)
    if values.min() == values.max():
        return 0.0
    values = (values - values.min()) / (values.max() - values.min())
    return float(
        average_precision_score(np.concatenate([~true, true]), np.concatenate([1 - values, values]))
    )


@public
def above_mean(saliency: Any) -> Bool[np.ndarray, "height width"]:
    """A mask of what is larger than the map's own mean: a cut without a parameter.

    It finds about half of the pixels of an even map, however small the object is.

    Args:
        saliency: Axes height, width.
    """
    values = _numbers(saliency, "the map")
    return values > values.mean()


def _numbers(given: Any, what: str) -> np.ndarray:
    try:
        return np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"{what} must be numbers in an array or a tensor: {error}") from error


def _pair(saliency: Any, mask: Any) -> tuple[np.ndarray, np.ndarray]:
    values, true = _numbers(saliency, "the map"), _numbers(mask, "the mask").astype(bool)
    if values.shape != true.shape:
        raise ArgumentError(
            f"a map of shape {values.shape} for a mask of shape {true.shape}; bring them to one "
            "size first"
        )
    return values.ravel(), true.ravel()


def _ratio(part: Any, whole: Any) -> float:
    return float(part) / float(whole) if whole else float("nan")
