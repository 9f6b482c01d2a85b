"""Decoding: odd but sound images are read right, bad ones are named, skipped only when told, and never in silence."""

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kswapctl.data.images import Images, decode, normalise, open_image
from kswapctl.data.marks import Box, Boxes
from kswapctl.data.sets import check_disjoint, gather
from kswapctl.data.sources import Source, open_source
from kswapctl.errors import DataError
from kswapctl.spec import Preprocessing

INPUT = Preprocessing((3, 8, 8), (0.5, 0.25, 0.0), (0.5, 0.5, 1.0))
RED, BLUE = (255, 0, 0), (0, 0, 255)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def two_halves(mode: str = "RGB") -> Image.Image:
    """Red above, blue below; 8 wide, 16 high."""
    image = Image.new("RGB", (8, 16), RED)
    image.paste(BLUE, (0, 8, 8, 16))
    return image.convert(mode)


def png_header(width: int, height: int) -> bytes:
    """A small PNG that claims to be large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "LA", "L", "1"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    kind = "TIFF" if mode == "CMYK" else "PNG"
    image = open_image(encoded(two_halves(mode), kind), "k")
    assert (image.mode, image.size) == ("RGB", (8, 16))
    top, bottom = image.getpixel((4, 2)), image.getpixel((4, 13))
    assert top != bottom
    if mode in {"RGB", "RGBA", "P", "CMYK"}:
        assert top[0] > 200 > 50 > top[2]


def test_a_palette_with_transparency_keeps_its_colours() -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    assert open_image(encoded(image, transparency=b"\0\x80"), "k").getpixel((3, 3)) == RED


def test_sixteen_bits_are_scaled_to_eight() -> None:
    values = np.full((8, 8), 0x8000, dtype=np.uint16)
    values[0, 0] = 0xFFFF
    image = open_image(encoded(Image.fromarray(values)), "k")
    assert image.getpixel((4, 4)) == (128, 128, 128)
    assert image.getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bits_of_a_grey_map_are_scaled_to_eight() -> None:
    grey = b"P5 8 8 65535\n" + np.full((8, 8), 0x1000, dtype=">u2").tobytes()
    assert open_image(grey, "k").getpixel((4, 4)) == (16, 16, 16)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_an_image_that_does_not_say_what_is_white_is_refused(kind: type) -> None:
    with pytest.raises(DataError, match="image k has 32 bits a pixel"):
        open_image(encoded(Image.fromarray(np.ones((8, 8), dtype=kind)), "TIFF"), "k")


@pytest.mark.parametrize("fault", [struct.error("unpack requires a buffer"), TypeError("not a number")])
def test_what_pillow_raises_of_broken_exif_data_is_a_fault_of_the_image(
    fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(image: Image.Image) -> None:
        raise fault

    monkeypatch.setattr(Image.Image, "getexif", fail)
    with pytest.raises(DataError, match="image k cannot be read"):
        open_image(encoded(two_halves()), "k")


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (8, 8), c) for c in (RED, BLUE)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_image(data, "k").getpixel((4, 4)) == RED


def test_a_photo_taken_sideways_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    image = open_image(encoded(two_halves(), exif=exif), "k")
    assert image.size == (16, 8)
    assert image.getpixel((13, 4)) == RED
    assert image.getpixel((2, 4)) == BLUE


def test_one_channel_is_grey() -> None:
    assert open_image(encoded(two_halves()), "k", channels=1).mode == "L"


JPEG = encoded(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", r"image k is empty \(0 bytes\)"),
        (JPEG[: len(JPEG) // 2], "image k cannot be read"),
        (JPEG[:20], "image k cannot be read"),
        (b"<!DOCTYPE html><html>404</html>", "no image format known here"),
        (encoded(two_halves())[:60], "image k cannot be read"),
        (b"\x89PNG\r\n\x1a\n", "image k cannot be read"),
        (png_header(10_000, 8_000), "10000 x 8000 pixels"),
        (png_header(60_000, 60_000), "image k"),
    ],
    ids=["empty", "half a JPEG", "JPEG header", "HTML", "half a PNG", "PNG signature", "80 megapixels", "bomb"],
)
def test_a_bad_image_is_named_with_its_fault(data: bytes, said: str) -> None:
    with pytest.raises(DataError, match=said) as raised:
        open_image(data, "k")
    assert "--skip-bad" in raised.value.hint
    assert "\n" not in raised.value.message


Fill = Callable[[int, int], Source]


@pytest.fixture
def fill(tmp_path: Path) -> Fill:
    """A folder with so many good and so many bad images of one class."""

    def write(good: int, bad: int) -> Source:
        (tmp_path / "cat").mkdir()
        for index in range(good):
            (tmp_path / "cat" / f"good{index:03}.png").write_bytes(encoded(Image.new("RGB", (9, 9), (index, 0, 0))))
        for index in range(bad):
            (tmp_path / "cat" / f"bad{index}.png").write_bytes(b"<html>")
        return open_source(str(tmp_path))

    return write


def test_a_bad_image_stops_the_reading_and_is_named(fill: Fill) -> None:
    source = fill(3, 1)
    with pytest.raises(DataError, match=r"image cat/bad0\.png cannot be read"):
        decode(source, source.samples, INPUT)


def test_told_to_skip_the_rest_is_read_and_the_bad_are_listed(fill: Fill) -> None:
    source, told = fill(5, 1), []
    images = decode(source, source.samples, INPUT, skip_bad=True, report=told.append)
    assert len(images) == len(images.digests) == len(images.pixels) == 5
    assert len(images.bad) == 1
    assert "cat/bad0.png" in images.bad[0]
    assert sum(told) == 6


@pytest.mark.parametrize(("good", "bad", "fine"), [(198, 2, True), (197, 3, False), (3, 2, False), (3, 1, True)])
def test_more_than_one_bad_in_a_hundred_is_refused_even_so(fill: Fill, good: int, bad: int, fine: bool) -> None:
    source = fill(good, bad)
    if fine:
        assert len(decode(source, source.samples, INPUT, skip_bad=True).bad) == bad
        return
    with pytest.raises(DataError, match=f"{bad} of {good + bad} images cannot be read, the first: .*bad0"):
        decode(source, source.samples, INPUT, skip_bad=True)


def test_a_class_of_which_every_image_is_bad_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.png").write_bytes(b"")
    source = open_source(str(tmp_path))
    with pytest.raises(DataError):
        decode(source, source.samples, INPUT, skip_bad=True)


def test_a_class_that_skipping_would_empty_is_named(fill: Fill) -> None:
    source = fill(300, 0)
    alone = replace(source.samples[0], label="dog")
    broken = replace(source, samples=(alone, *source.samples[1:]), read=lambda s: b"" if s is alone else source.read(s))
    with pytest.raises(DataError, match="class 'dog': none of the 1 images"):
        decode(broken, broken.samples, INPUT, skip_bad=True)


def test_images_come_in_the_order_of_the_samples_at_the_input_size(fill: Fill) -> None:
    source = fill(6, 0)
    images = decode(source, source.samples[::-1], INPUT)
    assert images.pixels.shape == (6, 3, 8, 8)
    assert images.pixels.dtype == torch.uint8
    assert images.pixels[:, 0, 4, 4].tolist() == [5, 4, 3, 2, 1, 0]


def test_pixels_are_normalised_by_channel() -> None:
    """(255 / 255 - 0.5) / 0.5 = 1, (255 / 255 - 0.25) / 0.5 = 1.5, (1 - 0) / 1 = 1."""
    white = torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)
    torch.testing.assert_close(normalise(white, INPUT).flatten(), torch.tensor([1.0, 1.5, 1.0]))


def test_targets_are_positions_of_names(digits: Path) -> None:
    source = open_source(str(digits))
    images = decode(source, [s for s in source.samples if s.label in {"two", "one"}][:300:60], INPUT)
    assert [("two", "x", "one")[t] for t in images.targets(("two", "x", "one")).tolist()] == [
        s.label for s in images.samples
    ]


def test_the_fingerprint_of_images_sees_labels_and_bytes_but_no_order(fill: Fill) -> None:
    source = fill(3, 0)
    one, turned = decode(source, source.samples, INPUT), decode(source, source.samples[::-1], INPUT)
    fewer = decode(source, source.samples[1:], INPUT)
    other = Images(one.pixels, one.samples, ("0" * 64, *one.digests[1:]))
    assert one.fingerprint() == turned.fingerprint()
    assert len({one.fingerprint(), fewer.fingerprint(), other.fingerprint()}) == 3


def test_the_same_image_in_two_sets_is_refused_by_name(fill: Fill) -> None:
    source = fill(4, 0)
    one, two = decode(source, source.samples[:3], INPUT), decode(source, source.samples[2:], INPUT)
    with pytest.raises(DataError, match=r"both the retain and the forget set: 1 of them, such as cat/good002\.png"):
        check_disjoint(one, two, ("retain", "forget"))
    check_disjoint(one, decode(source, source.samples[3:], INPUT), ("retain", "forget"))


def test_gathering_joins_sources_in_order(fill: Fill) -> None:
    source = fill(4, 0)
    images = gather([(source, list(source.samples[2:])), (source, list(source.samples[:1]))], INPUT, False)
    assert [s.key for s in images.samples] == ["cat/good002.png", "cat/good003.png", "cat/good000.png"]
    assert len(gather([], INPUT, False)) == 0


def test_a_link_to_nothing_is_a_bad_image_and_hidden_copies_are_none(fill: Fill, tmp_path: Path) -> None:
    source = fill(5, 0)
    folder = Path(source.name) / "cat"
    (folder / "lost.png").symlink_to(tmp_path / "nowhere.png")
    (folder / ".ipynb_checkpoints").mkdir()
    for copy in (".ipynb_checkpoints/x.png", "._x.png"):
        (folder / copy).write_bytes(b"a copy")
    again = open_source(source.name)
    assert len(again.samples) == 6
    with pytest.raises(DataError, match=r"lost\.png is not there, or a link to nothing"):
        decode(again, again.samples, INPUT)
    assert len(decode(again, again.samples, INPUT, skip_bad=True)) == 5


def test_a_class_that_another_image_shows_as_well_is_not_emptied(fill: Fill) -> None:
    source = fill(300, 0)
    first = replace(source.samples[0], label="dog")
    marked = Boxes(tuple(Box(name, (0.5, 0.5, 0.2, 0.2)) for name in ("dog", "cat")))
    broken = replace(
        source,
        samples=(first, *source.samples[1:]),
        read=lambda s: b"" if s is first else source.read(s),
        mark=lambda key, size: marked,
    )
    assert len(decode(broken, broken.samples, INPUT, skip_bad=True)) == 299


def test_an_image_that_shows_nothing_may_be_skipped(fill: Fill) -> None:
    source = fill(300, 0)
    empty = replace(source.samples[0], label="")
    broken = replace(source, samples=(empty, *source.samples[1:]), read=lambda s: b"" if s is empty else source.read(s))
    assert len(decode(broken, broken.samples, INPUT, skip_bad=True)) == 299
