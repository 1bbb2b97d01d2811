"""Pictures from files, for objectives and patterns."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from fl_lightning.errors import ConfigError

MODES = {1: "L", 3: "RGB"}


def read_image(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """A PNG, JPEG, BMP or WEBP as `[ch, h, w]` pixels in [0, 1], scaled to the size asked for.

    Raises:
        ConfigError: there is no such picture, or the data has neither one nor three channels.
    """
    channels, height, width = shape
    if channels not in MODES:
        raise ConfigError(f"pictures have 1 or 3 channels, the data has {channels}")
    try:
        with Image.open(path, formats=("PNG", "JPEG", "BMP", "WEBP")) as image:
            array = np.asarray(image.convert(MODES[channels]).resize((width, height)), np.float32)
    except (UnidentifiedImageError, OSError) as error:
        raise ConfigError(f"{path} cannot be read as a picture: {error}") from None
    return torch.from_numpy(array / 255).reshape(height, width, channels).permute(2, 0, 1)
