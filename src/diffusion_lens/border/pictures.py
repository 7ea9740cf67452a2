"""What an image can be: not among the package's own names, because it imports torch and PIL."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

Picture = Image.Image | np.ndarray | Tensor
"""One image."""

Pictures = Picture | Sequence[Picture | Sequence[Picture]]
"""One image, several, the frames of a video, or several videos."""
