import pytest

from diffusion_lens.toys.cards import BEGIN, END, measured, update_page

FACTS = {
    "samples": 1600,
    "step": 100,
    "guidance": 2.0,
    "sample_steps": 20,
    "counts": {"single": 3, "single, all": 3},
    "shares": {"single": {"all": 2 / 3}, "single, all": {"all": 2 / 3}},
    "sha256": {"unet/model.safetensors": "abc"},
}


def test_the_measured_part_has_grades_counts_and_checksums():
    text = measured(FACTS)
    assert "| single | 3 | 66.7 |" in text
    assert "Share of 3 held-out captions" in text and "1,600 samples" in text
    assert "| `unet/model.safetensors` | `abc` |" in text


def test_only_what_is_between_the_markers_changes(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"above\n{BEGIN}\nold\n{END}\nbelow\n")
    update_page(page, FACTS)
    update_page(page, FACTS)
    assert page.read_text() == f"above\n{BEGIN}\n{measured(FACTS)}\n{END}\nbelow\n"


def test_a_page_without_markers_is_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("text")
    with pytest.raises(ValueError, match=r"page.md lacks the lines .* add them"):
        update_page(page, FACTS)
