import torch
import torch.nn.functional as F

from diffusion_lens.training.attention import PlainAttention, plain_attention


def test_plain_attention_is_attention():
    query, key, value = torch.randn(3, 2, 4, 5, 8).unbind(0)
    expected = F.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(plain_attention(query, key, value), expected)


def test_the_mode_replaces_unmasked_attention_only(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "diffusion_lens.training.attention.plain_attention",
        lambda *given: calls.append(given) or plain_attention(*given),
    )
    q = torch.randn(1, 1, 4, 8)
    mask = torch.ones(4, 4, dtype=torch.bool).tril()
    expected = F.scaled_dot_product_attention(q, q, q, attn_mask=mask)
    with PlainAttention():
        F.scaled_dot_product_attention(q, key=q, value=q)
        masked = F.scaled_dot_product_attention(q, q, q, attn_mask=mask)
    F.scaled_dot_product_attention(q, q, q)
    assert len(calls) == 1
    torch.testing.assert_close(masked, expected)
