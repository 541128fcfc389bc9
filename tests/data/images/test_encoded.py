# SPDX-License-Identifier: Apache-2.0
"""PNG and JPEG come out as Pillow shows them, or are refused for a reason."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from mrpo_jax.data.images import encoded
from mrpo_jax.errors import InputError
from tests.material.pictures import levels, picture, raw_png, saved


class Said(list):
  """What was noted, for the one image that there is."""

  def add(self, what, place):
    assert place == "a row"
    self.append(what)


def decoded(content):
  """(levels, what was noted)."""
  said = Said()
  return encoded.decoded(content, "a row", said), said


def refused(content):
  with pytest.raises(InputError) as found:
    decoded(content)
  assert str(found.value).startswith("a row: ") and "\n" not in str(found.value)
  return str(found.value)


# What is read as it is.


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_is_read_exactly_and_nothing_is_said(channels):
  image = levels(0, channels=channels)
  found, said = decoded(saved(image))
  np.testing.assert_array_equal(found, image)
  assert found.dtype == np.uint8 and not said


def test_our_own_png_is_what_pillow_reads():
  for channels, mode in ((1, "L"), (3, "RGB")):
    image = levels(1, channels=channels)
    with Image.open(io.BytesIO(encoded.png(image))) as opened:
      assert opened.mode == mode and opened.format == "PNG"
      found = np.asarray(opened).reshape(image.shape)
    np.testing.assert_array_equal(found, image)


def test_a_jpeg_is_what_pillow_reads():
  content = saved(levels(2, 16, 16), "JPEG", quality=90)
  with Image.open(io.BytesIO(content)) as opened:
    np.testing.assert_array_equal(decoded(content)[0], np.asarray(opened))


def test_one_bit_a_pixel_is_black_and_white():
  # Rows of 3 bits, each after its filter byte 0: 101, 010.
  content = raw_png(3, 2, 1, 0, bytes([0, 0b10100000, 0, 0b01000000]))
  found, said = decoded(content)
  assert found[..., 0].tolist() == [[255, 0, 255], [0, 255, 0]] and not said


# What is converted, and said.


def test_a_palette_is_read_as_the_colours_that_it_stands_for():
  image = Image.new("P", (2, 1))
  image.putpalette([10, 20, 30, 40, 50, 60])
  image.putdata([1, 0])
  found, said = decoded(saved(image))
  assert found.tolist() == [[[40, 50, 60], [10, 20, 30]]]
  assert said == ["have a palette, and are read as colour"]


@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_comes_out_as_a_channel(channels):
  image = levels(3, channels=channels)
  np.testing.assert_array_equal(decoded(saved(image))[0], image)


@pytest.mark.parametrize(
  "mode, colour, wanted",
  [("L", 7, [7, 0]), ("RGB", (7, 8, 9), [7, 8, 9, 0]), ("P", 0, [0, 0, 0, 0])],
)
def test_a_transparent_colour_is_alpha(mode, colour, wanted):
  content = saved(Image.new(mode, (1, 1), colour), transparency=colour)
  assert decoded(content)[0].tolist() == [[wanted]]


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_exif_turns_the_image(kind):
  image = np.zeros((8, 16, 1), np.uint8)
  image[:, :8] = 255  # bright on the left
  exif = Image.Exif()
  exif[encoded.ORIENTATION] = 6  # turn clockwise by 90 degrees to see it
  found, said = decoded(saved(image, kind, exif=exif))
  assert found.shape == (16, 8, 1)
  assert found[0, 0, 0] > 250 and found[-1, 0, 0] < 5  # left is now at the top
  assert said == ["are turned upright, as their EXIF data says"]
  exif[encoded.ORIENTATION] = 1
  found, said = decoded(saved(image, kind, exif=exif))
  assert found.shape == (8, 16, 1) and not said


def test_a_colour_profile_is_said():
  _, said = decoded(saved(levels(4), icc_profile=b"some"))
  assert said == ["have a colour profile, which is not applied"]


# What is refused.


@pytest.mark.parametrize(
  "colour, channels", [(0, 1), (2, 3), (4, 2), (6, 4)], ids=str
)
def test_16_bits_are_refused_in_every_kind_of_colour(colour, channels):
  line = bytes([0, *range(2 * channels * 2)])
  content = raw_png(2, 1, 16, colour, line)
  assert "16 bits a channel" in refused(content)


def test_whole_numbers_of_32_bits_and_fractions_of_a_tiff_are_refused():
  content = saved(Image.new("F", (2, 2)), "TIFF")
  assert "no PNG and no JPEG" in refused(content)


def test_cmyk_is_refused():
  content = saved(Image.new("CMYK", (8, 8)), "JPEG")
  assert "colour mode CMYK; save it as RGB" in refused(content)


def test_an_animation_is_refused():
  one, other = (picture(levels(i)) for i in range(2))
  content = saved(one, save_all=True, append_images=[other])
  assert "holds 2 pictures" in refused(content)


@pytest.mark.parametrize("kind", ["GIF", "BMP"])
def test_other_formats_are_refused(kind):
  assert "is no PNG and no JPEG image" in refused(saved(levels(5), kind))


@pytest.mark.parametrize("content", [b"", b"picture.png", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_refused(content):
  assert "save it anew" in refused(content)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_cut_image_is_refused_or_whole(kind):
  content = saved(levels(6, 16, 16), kind)
  whole, _ = decoded(content)
  raised = 0
  for length in range(len(content) - 1, 0, -9):
    try:
      np.testing.assert_array_equal(decoded(content[:length])[0], whole)
    except InputError:
      raised += 1
  assert raised > len(content) / 9 - 4  # PNG ends in 12 bytes without pixels


def test_a_cut_image_is_refused_though_pillow_was_told_to_fill_it(monkeypatch):
  monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
  content = saved(levels(7, 16, 16), "JPEG")
  assert "truncated" in refused(content[:-40])
  assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_a_damaged_png_is_refused():
  content = bytearray(saved(levels(8, 16, 16)))
  content[len(content) // 2] ^= 1
  assert "cannot be decoded" in refused(bytes(content))


@pytest.mark.parametrize("limit", [19, 9])  # a warning of Pillow's, an error
def test_a_bomb_is_refused(monkeypatch, limit):
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # as a user may have it
    assert f"has more than {limit} pixels" in refused(saved(levels(9)))


def test_a_bomb_of_text_is_refused():
  text = PngImagePlugin.PngInfo()
  text.add_text("key", "a" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
  assert "cannot be decoded" in refused(saved(levels(10), pnginfo=text))


def test_without_pillow_one_line_says_what_to_install(monkeypatch):
  monkeypatch.setattr(encoded.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(InputError, match=r"pip install 'mrpo-jax\[diffusion\]'"):
    encoded.pillow()
