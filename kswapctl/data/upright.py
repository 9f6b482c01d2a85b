"""How large an image is once it is upright: cameras store a photo as it was held, and say so in its Exif data.

Annotations are made on upright images; one that was made on the stored pixels would lie sideways on what is seen.
"""

from __future__ import annotations

import io
import struct

from PIL import Image

from kswapctl.errors import DataError

ORIENTATION, SIDEWAYS = 0x0112, {5, 6, 7, 8}
"""The Exif tag that says how a camera was held, and its values where width and height change places."""


def upright_size(data: bytes, key: str) -> tuple[int, int]:
    """Width and height of an encoded image, upright, without decoding it; what is no image is a :class:`DataError`."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            sideways = image.getexif().get(ORIENTATION) in SIDEWAYS
            return (image.height, image.width) if sideways else (image.width, image.height)
    except (OSError, SyntaxError, ValueError, TypeError, struct.error) as error:
        raise DataError(f"image {key} cannot be read ({error})", "restore or remove it") from error
