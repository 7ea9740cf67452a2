import numpy as np

from diffusion_lens.training.samples import contact_sheet


def test_images_stand_in_rows_and_are_enlarged_without_smoothing():
    images = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    sheet = np.asarray(contact_sheet(images * 100, columns=2, scale=2))
    assert sheet.shape == (24, 24, 3)
    assert set(np.unique(sheet)) == {0, 90, 100, 200}
    assert (sheet[2:10, 14:22] == 100).all() and (sheet[14:22, 2:10] == 200).all()
