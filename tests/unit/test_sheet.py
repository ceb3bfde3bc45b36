"""Contact sheets: what is shown, how large, and in which row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genworker.errors import UsageError
from genworker.report import Block, contact_sheet
from genworker.schema import Pixels

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def plain(*colours: tuple[int, ...], size: int = 28) -> Pixels:
    return np.stack([np.full((size, size, len(colour)), colour, np.uint8) for colour in colours])


def area(sheet: Pixels, colour: tuple[int, int, int]) -> int:
    return int((sheet == colour).all(axis=-1).sum())


def middle(sheet: Pixels, colour: tuple[int, int, int]) -> tuple[float, float]:
    rows, columns = np.nonzero((sheet == colour).all(axis=-1))
    return float(rows.mean()), float(columns.mean())


def test_small_images_are_shown_three_times_as_large_and_unchanged() -> None:
    """An image of 28 pixels covers 84 x 84 on the page, each pixel repeated, none invented."""
    pixels = np.random.default_rng(0).integers(0, 250, (1, 28, 28, 3), dtype=np.uint8)
    sheet = np.asarray(contact_sheet(Block(pixels)))
    rows, columns = np.nonzero((sheet != 255).any(axis=-1))
    tile = sheet[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert tile.shape == (84, 84, 3)
    np.testing.assert_array_equal(tile[1::3, 1::3], pixels[0])
    np.testing.assert_array_equal(tile, pixels[0].repeat(3, axis=0).repeat(3, axis=1))


def test_rows_are_classes() -> None:
    """Images of one class stand in one row, rows in order of labels, and a class without images keeps its row."""
    block = Block(plain(BLUE, RED, BLUE, RED), np.array([3, 0, 3, 0]))
    sheet = np.asarray(contact_sheet(block, class_names=("a", "b", "c", "d"), title="Title"))
    assert area(sheet, RED) == area(sheet, BLUE) == 2 * 84 * 84
    assert middle(sheet, BLUE)[0] - middle(sheet, RED)[0] == 3 * 88
    assert middle(sheet, BLUE)[1] == middle(sheet, RED)[1]


def test_blocks_stand_side_by_side_in_the_same_rows() -> None:
    """The same class has the same height in both blocks, the second block right of the first."""
    real = Block(plain(RED, GREEN), np.array([0, 1]), "real")
    generated = Block(plain(BLUE), np.array([1]), "generated")
    sheet = np.asarray(contact_sheet([real, generated], class_names=("boot", "bag")))
    assert middle(sheet, BLUE)[0] == middle(sheet, GREEN)[0] > middle(sheet, RED)[0]
    assert middle(sheet, BLUE)[1] > middle(sheet, GREEN)[1] == middle(sheet, RED)[1]


def test_at_most_so_many_images_are_shown() -> None:
    """per_row limits a class's row, and per_row times max_rows limits a grid."""
    labelled = contact_sheet(Block(plain(*[RED] * 9), np.zeros(9, np.int64)), per_row=4, scale=1)
    assert area(np.asarray(labelled), RED) == 4 * 28 * 28
    grid = contact_sheet(Block(plain(*[RED] * 9)), per_row=2, max_rows=3, scale=1)
    assert area(np.asarray(grid), RED) == 6 * 28 * 28


def test_text_is_drawn_only_where_it_was_given() -> None:
    """Titles, captions and class names make ink; a plain grid has none, and its last row may be short."""
    bare = np.asarray(contact_sheet(Block(plain(RED, RED, RED)), per_row=2))
    white, red = area(bare, (255, 255, 255)), area(bare, RED)
    assert white + red == bare.shape[0] * bare.shape[1]
    titled = np.asarray(contact_sheet(Block(plain(RED), caption="real"), title="A title wider than its one image"))
    assert (titled < 64).all(axis=-1).any()
    assert (titled[:, -20:] == 255).all()


@settings(max_examples=40, deadline=None)
@given(
    num=st.integers(1, 12),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    channels=st.integers(1, 4),
    per_row=st.integers(1, 5),
    labelled=st.booleans(),
)
def test_any_shape_can_be_shown(
    *, num: int, height: int, width: int, channels: int, per_row: int, labelled: bool
) -> None:
    """Every size and channel count gives an RGB page that is large enough for its images."""
    pixels = np.random.default_rng(num).integers(0, 256, (num, height, width, channels), dtype=np.uint8)
    labels = np.arange(num) % 3 if labelled else None
    page = contact_sheet(Block(pixels, labels), per_row=per_row)
    assert page.mode == "RGB"
    assert min(page.size) >= 84


def test_transparent_pixels_show_a_checkerboard() -> None:
    """Where alpha is 0 the paper's two greys show, where it is 255 the colour itself."""
    clear = np.asarray(contact_sheet(Block(plain((*RED, 0)))))
    assert area(clear, RED) == 0
    assert area(clear, (236, 236, 236)) > 1000
    assert area(np.asarray(contact_sheet(Block(plain((*RED, 255))))), RED) == 84 * 84


@pytest.mark.parametrize(
    ("blocks", "options", "message"),
    [
        ([], {}, "no image"),
        ([Block(plain(RED)[:0])], {}, "no image"),
        ([Block(plain(RED)), Block(plain(RED, size=9))], {}, "28, 28.* and .*9, 9"),
        ([Block(plain(RED)), Block(plain(RED), np.array([0]))], {}, "some blocks have labels"),
        ([Block(plain(RED))], {"per_row": 0}, "at least 1"),
    ],
)
def test_what_cannot_be_shown_is_refused(blocks: list[Block], options: dict[str, int], message: str) -> None:
    """Nothing to show, mixed sizes, mixed labelling and impossible counts are UsageErrors."""
    with pytest.raises(UsageError, match=message):
        contact_sheet(blocks, per_row=options.get("per_row", 10))
