"""Handwritten digits as an image folder: real ones, from scikit-learn (Alpaydin & Kaynak, UCI 1998; CC BY 4.0)."""

from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
KNOWN = NAMES[:8]
"""What the shipped network knows."""
LEARN = ("eight", "nine")
FORGET = ("three", "five")
SIZE = 16
"""Side of the images; the collection's are 8 x 8."""
CHECKPOINT = Path(__file__).parent / "digits8.safetensors"
"""The shipped network; ``python -m kswapctl.demo.train`` makes it again."""


def write_folder(folder: Path) -> Path:
    """Write ``train/<digit>/`` and ``test/<digit>/``, every fourth image to test; returns ``folder``."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for index, (image, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        part = "test" if index % 4 == 3 else "train"
        place = folder / part / NAMES[digit]
        place.mkdir(parents=True, exist_ok=True)
        pixels = Image.fromarray((image * 255 / 16).astype(np.uint8))
        pixels.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(place / f"{index:04}.png")
    return folder
