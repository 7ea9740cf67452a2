"""Parts of a pattern are the parts of the explicit softmax, in value and in gradient."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diffusion_lens.engine.product import Product, safe_softmax
from diffusion_lens.engine.selection import numbers
from diffusion_lens.hook_points.selectors import Indices

BATCH, HEADS, QUERIES, KEYS, WIDTH = 3, 4, 7, 9, 6
EVERY = slice(0, BATCH)
MASKS = ("none", "bool", "additive", "hidden rows", "per head")


def tensors(*, shared: int = 1, dtype: torch.dtype = torch.float64, grad: bool = False) -> Any:
    random = torch.Generator().manual_seed(1)
    shapes = ((HEADS, QUERIES), (HEADS // shared, KEYS), (HEADS // shared, KEYS))
    return [
        torch.randn(BATCH, heads, length, WIDTH, generator=random, dtype=torch.float64)
        .mul(1.5)
        .to(dtype)
        .requires_grad_(grad)
        for heads, length in shapes
    ]


def product_of(inputs: Any, mask: Tensor | None = None, **options: Any) -> Product:
    query, key, value = inputs
    return Product(query, key, value, mask, **options)


def mask_of(kind: str) -> Tensor | None:
    random = torch.Generator().manual_seed(2)
    if kind == "none":
        return None
    if kind == "additive":
        return torch.randn(BATCH, 1, QUERIES, KEYS, generator=random, dtype=torch.float64)
    shape = (BATCH, HEADS if kind == "per head" else 1, QUERIES, KEYS)
    mask = torch.rand(shape, generator=random) < 0.6
    mask[..., 0] = True
    if kind == "hidden rows":
        mask[:, :, 2] = False
    return mask


def explicit(product: Product) -> Tensor:
    """The whole pattern by the textbook formula."""
    key = product.key.repeat_interleave(product.query.shape[1] // product.key.shape[1], 1)
    scale = 1 / math.sqrt(WIDTH) if product.scale is None else product.scale
    scores = product.query @ key.transpose(-1, -2) * scale
    if product.causal:
        visible = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        scores = scores.masked_fill(~visible, -math.inf)
    if product.mask is not None and product.mask.dtype == torch.bool:
        scores = scores.masked_fill(~product.mask, -math.inf)
    elif product.mask is not None:
        scores = scores + product.mask
    top = scores.amax(-1, keepdim=True).detach()
    weights = (scores - top.masked_fill(top == -math.inf, 0.0)).exp()
    total = weights.sum(-1, keepdim=True)
    return weights / total.masked_fill(total == 0, 1.0)


def block(whole: Tensor, rows: slice, *indices: Indices | None) -> Tensor:
    whole = whole[rows]
    for dim, index in enumerate(indices, start=1):
        whole = whole.index_select(dim, torch.tensor(numbers(index, whole.shape[dim])))
    return whole


PARTS: list[tuple[slice, Indices | None, Indices | None, Indices | None]] = [
    (EVERY, None, None, None),
    (slice(1, 2), (2,), None, None),
    (slice(0, 2), slice(1, 3), (0, 5, 2), None),
    (EVERY, (3, 0), slice(2, 6, 2), slice(0, 4)),
    (slice(2, 3), None, None, (8, 0)),
    (EVERY, None, slice(6, 7), (4,)),
]


@pytest.mark.parametrize("kept", [False, True], ids=["own normaliser", "the kernel's"])
@pytest.mark.parametrize("part", PARTS, ids=str)
@pytest.mark.parametrize("mask", MASKS)
def test_a_part_is_the_part_of_the_explicit_softmax(part: Any, mask: str, kept: bool) -> None:
    product = product_of(tensors(), mask_of(mask))
    if kept:
        product.fused_with_normaliser()
    torch.testing.assert_close(
        product.pattern(*part), block(explicit(product), *part), atol=1e-12, rtol=1e-12
    )


@pytest.mark.parametrize("part", PARTS, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"causal": True},
        {"scale": 0.3},
        {"scale": -1.0},
        {"shared": True},
        {"shared": True, "causal": True, "scale": 2.0},
    ],
    ids=str,
)
def test_causal_scaled_and_shared_heads_are_taken_into_account(part: Any, options: Any) -> None:
    product = product_of(tensors(shared=2 if "shared" in options else 1), **options)
    whole = explicit(product)
    torch.testing.assert_close(product.pattern(*part), block(whole, *part), atol=1e-12, rtol=1e-12)
    values = product.value.repeat_interleave(HEADS // product.value.shape[1], 1)
    torch.testing.assert_close(product.fused(), whole @ values, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("mask", MASKS)
def test_the_output_is_the_bits_of_the_fused_call(mask: str) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        given_mask = mask_of(mask)
        if given_mask is not None and given_mask.dtype.is_floating_point:
            given_mask = given_mask.to(dtype)
        query, key, value = tensors(dtype=dtype)
        plain = F.scaled_dot_product_attention(query, key, value, attn_mask=given_mask)
        product = Product(query, key, value, given_mask)
        assert torch.equal(product.fused(), plain)
        assert torch.equal(product.fused_with_normaliser(), plain)


@pytest.mark.parametrize("mask", MASKS)
def test_rows_sum_to_one_or_to_nothing_where_all_is_hidden(mask: str) -> None:
    sums = product_of(tensors(), mask_of(mask)).pattern(EVERY, None, None, None).sum(-1)
    expected = torch.ones_like(sums)
    if mask == "hidden rows":
        expected[:, :, 2] = 0
    torch.testing.assert_close(sums, expected)


@pytest.mark.parametrize("mask", MASKS)
def test_a_part_of_hidden_rows_is_zero(mask: str) -> None:
    product = product_of(tensors(), mask_of("hidden rows"))
    product.fused_with_normaliser()
    part = product.pattern(EVERY, (1,), (2,), (3, 4))
    assert torch.equal(part, torch.zeros_like(part))


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"scale": 0.7}, {"shared": True}])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("part", PARTS, ids=str)
def test_the_gradient_of_a_part_is_that_of_the_full_softmax(
    part: Any, mask: str, options: Any
) -> None:
    shared = 2 if "shared" in options else 1
    inputs: Any = tensors(shared=shared, grad=True)
    product = product_of(inputs, mask_of(mask), **options)
    found = product.pattern(*part)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(3)).double()
    expected = torch.autograd.grad((block(explicit(product), *part) * weight).sum(), inputs[:2])
    gradients = torch.autograd.grad((found * weight).sum(), inputs[:2])
    for gradient, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, wanted, atol=1e-10, rtol=0)
        assert wanted.abs().max() > 1e-4


@pytest.mark.parametrize("mask", ["none", "additive", "hidden rows"])
def test_finite_differences_agree(mask: str) -> None:
    query, key, value = tensors(grad=True)

    def part(query: Tensor, key: Tensor) -> Tensor:
        product = Product(query, key, value, mask_of(mask))
        return product.pattern(slice(0, 1), (1, 3), slice(1, 4), (0, 2))

    assert torch.autograd.gradcheck(part, (query, key), atol=1e-8, fast_mode=True)


@pytest.mark.parametrize("mask", MASKS)
def test_chunks_do_not_change_a_part(mask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    product = product_of(tensors(), mask_of(mask))
    whole = product.rows(EVERY, None, None)
    for heads, queries in ((None, None), ((3, 1), (5, 0, 2))):
        for size in (1, KEYS * BATCH * 2, KEYS * BATCH * QUERIES * 3):
            monkeypatch.setattr("diffusion_lens.engine.product.CHUNK", size)
            torch.testing.assert_close(
                product.rows(EVERY, heads, queries), block(whole, EVERY, heads, queries)
            )
            torch.testing.assert_close(
                product.pattern(EVERY, heads, queries, (1, 2)),
                block(whole, EVERY, heads, queries, (1, 2)),
            )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_patterns_are_computed_in_single_precision(dtype: torch.dtype) -> None:
    product = product_of(tensors(dtype=dtype))
    product.fused_with_normaliser()
    part = product.pattern(EVERY, (0,), None, (1, 2))
    assert part.dtype == torch.float32
    wide = Product(product.query.double(), product.key.double(), product.value.double())
    torch.testing.assert_close(
        part.double(), wide.pattern(EVERY, (0,), None, (1, 2)), atol=1e-5, rtol=1e-3
    )


def test_dropout_keeps_the_models_own_call() -> None:
    query, key, value = tensors()
    torch.manual_seed(0)
    plain = F.scaled_dot_product_attention(query, key, value, dropout_p=0.5)
    torch.manual_seed(0)
    assert torch.equal(Product(query, key, value, dropout=0.5).fused_with_normaliser(), plain)


def test_safe_softmax_is_zero_where_all_is_hidden() -> None:
    scores = torch.tensor([[0.0, -math.inf], [-math.inf, -math.inf]], requires_grad=True)
    found = safe_softmax(scores)
    assert torch.equal(found, torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    found.sum().backward()
    assert scores.grad is not None and scores.grad.isfinite().all()


indices = st.lists(st.integers(0, 5), min_size=1, max_size=6, unique=True).map(tuple)


@given(
    heads=st.lists(st.integers(0, 1), min_size=1, max_size=2, unique=True).map(tuple),
    queries=indices,
    keys=indices,
    causal=st.booleans(),
    masked=st.booleans(),
    scale=st.none() | st.floats(-3, 3),
    seed=st.integers(0, 100),
)
def test_any_part_of_any_product_is_exact(
    heads: Any, queries: Any, keys: Any, causal: bool, masked: bool, scale: float | None, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    inputs: Any = [torch.randn(1, 2, 6, WIDTH, generator=random).double() for _ in range(3)]
    mask = torch.rand(1, 1, 6, 6, generator=random) < 0.5 if masked else None
    causal = causal and not masked
    product = product_of(inputs, mask, causal=causal, scale=scale)
    expected = block(explicit(product), slice(0, 1), heads, queries, keys)
    for _ in range(2):  # with its own normaliser, then with the kernel's
        found = product.pattern(slice(0, 1), heads, queries, keys)
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-8)
        product.fused_with_normaliser()
