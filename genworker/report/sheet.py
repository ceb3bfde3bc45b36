"""Contact sheets: many small images on one page, in labelled rows, with blocks side by side to compare.

In: pixels and labels. Out: one PIL image on white. Pixels are only repeated to be seen, never smoothed or recoloured;
saving is the caller's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from genworker.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from genworker.schema import Int64Array, Pixels

_INK = (24, 24, 27)
_MUTED = (113, 113, 122)
_PAPER = (255, 255, 255)
_MIN_TILE = 84  # an image of 28 pixels is shown three times as large
_CHECKER = (255, 236)  # behind transparent pixels

_MARGIN = 28
_GAP = 4
_BLOCK_GAP = 36
_TITLE_SIZE, _CAPTION_SIZE, _ROW_SIZE = 24, 17, 15


@dataclass(frozen=True, eq=False)
class Block:
    """Images to be shown together.

    Attributes:
        pixels: uint8 [N, H, W, C], C from 1 to 4.
        labels: int64 [N], or None for a plain grid in the order given.
        caption: a word above the block, such as "real"; empty for none.
    """

    pixels: Pixels
    labels: Int64Array | None = None
    caption: str = ""


def contact_sheet(
    blocks: Block | Sequence[Block],
    *,
    class_names: Sequence[str] = (),
    per_row: int = 10,
    max_rows: int = 100,
    title: str = "",
    scale: int | None = None,
) -> Image.Image:
    """Draw blocks of images side by side.

    Labelled blocks have one row per class, the same rows in all blocks, with the first ``per_row`` images of that class;
    a place without an image stays empty. Unlabelled blocks are filled row by row.

    Args:
        blocks: one block or several; all labelled or all unlabelled, all with images of one size.
        class_names: captions of the rows, by label; without them rows are called by their numbers.
        per_row: images in a row of a block.
        max_rows: rows at most; further classes or images are left out.
        title: one line above everything; empty for none.
        scale: how often each pixel is repeated; by default as often as makes images 84 pixels high and wide or more.

    Returns:
        An RGB image.

    Raises:
        UsageError: there is nothing to show, sizes differ, or some blocks are labelled and some are not.
    """
    blocks = [blocks] if isinstance(blocks, Block) else list(blocks)
    height, width = _check(blocks, per_row, max_rows, scale)
    scale = scale or max(1, -(-_MIN_TILE // min(height, width)))
    rows, captions = _rows(blocks, class_names, per_row, max_rows)

    row_font, caption_font, title_font = (
        ImageFont.load_default(size=size) for size in (_ROW_SIZE, _CAPTION_SIZE, _TITLE_SIZE)
    )
    step_x, step_y = width * scale + _GAP, height * scale + _GAP
    columns = [max(len(row) for row in block_rows) for block_rows in rows]
    names_width = max((int(row_font.getlength(name)) + 14 for name in captions if name), default=0)
    widths = [
        max(count * step_x - _GAP, int(caption_font.getlength(block.caption)))
        for count, block in zip(columns, blocks, strict=True)
    ]
    top = _MARGIN + (_TITLE_SIZE + 22 if title else 0)
    first_row = top + (_CAPTION_SIZE + 13 if any(block.caption for block in blocks) else 0)
    page_width = 2 * _MARGIN + names_width + sum(widths) + _BLOCK_GAP * (len(blocks) - 1)
    if title:
        page_width = max(page_width, 2 * _MARGIN + int(title_font.getlength(title)))
    page = Image.new("RGB", (page_width, first_row + len(captions) * step_y - _GAP + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(page)

    if title:
        draw.text((_MARGIN, _MARGIN), title, fill=_INK, font=title_font, anchor="lt")
    for number, name in enumerate(captions):
        middle = first_row + number * step_y + (step_y - _GAP) // 2
        draw.text((_MARGIN + names_width - 14, middle), name, fill=_INK, font=row_font, anchor="rm")
    left = _MARGIN + names_width
    for block, block_rows, block_width in zip(blocks, rows, widths, strict=True):
        draw.text((left, top), block.caption, fill=_MUTED, font=caption_font, anchor="lt")
        for number, row in enumerate(block_rows):
            for column, index in enumerate(row):
                tile = Image.fromarray(_tile(block.pixels[index], scale))
                page.paste(tile, (left + column * step_x, first_row + number * step_y))
        left += block_width + _BLOCK_GAP
    return page


def _check(blocks: list[Block], per_row: int, max_rows: int, scale: int | None) -> tuple[int, int]:
    if not blocks or any(len(block.pixels) == 0 for block in blocks):
        raise UsageError("contact sheet: there is no image to show")
    if per_row < 1 or max_rows < 1 or (scale is not None and scale < 1):
        raise UsageError(f"contact sheet: per_row {per_row}, max_rows {max_rows} and scale {scale} must be at least 1")
    if len({block.pixels.shape[1:3] for block in blocks}) > 1:
        raise UsageError(f"contact sheet: images of {' and '.join(str(block.pixels.shape[1:3]) for block in blocks)}")
    if len({block.labels is None for block in blocks}) > 1:
        raise UsageError("contact sheet: some blocks have labels and some have not; their rows cannot be lined up")
    height, width = blocks[0].pixels.shape[1:3]
    return int(height), int(width)


def _rows(
    blocks: list[Block], class_names: Sequence[str], per_row: int, max_rows: int
) -> tuple[list[list[list[int]]], list[str]]:
    """Which image stands where: image indices by block and row, and the captions of the rows."""
    labelled = [block.labels for block in blocks if block.labels is not None]
    if labelled:
        found = {int(label) for labels in labelled for label in np.unique(labels)}
        classes = sorted(found | set(range(len(class_names))))[:max_rows]
        rows = [[np.flatnonzero(labels == label)[:per_row].tolist() for label in classes] for labels in labelled]
        return rows, [class_names[label] if 0 <= label < len(class_names) else str(label) for label in classes]
    shown = [min(len(block.pixels), per_row * max_rows) for block in blocks]
    num_rows = max(-(-count // per_row) for count in shown)
    rows = [[list(range(count))[row * per_row : (row + 1) * per_row] for row in range(num_rows)] for count in shown]
    return rows, [""] * num_rows


def opaque(pixels: Pixels) -> Pixels:
    """Images uint8 [..., H, W, C] as grey (C 1) or RGB (C 2, 3, 4); transparent ones lie on a checkerboard."""
    channels = pixels.shape[-1]
    if channels in {1, 3}:
        return pixels
    colour = pixels[..., :3] if channels == 4 else pixels[..., :1].repeat(3, axis=-1)
    rows, columns = np.indices(pixels.shape[-3:-1]) // 8
    paper = np.where((rows + columns) % 2, _CHECKER[0], _CHECKER[1])[..., None]
    alpha = pixels[..., -1:].astype(np.float64) / 255
    return np.rint(colour * alpha + paper * (1 - alpha)).astype(np.uint8)


def _tile(pixels: Pixels, scale: int) -> Pixels:
    """One image as RGB, each pixel repeated; transparent ones over a checkerboard."""
    large = opaque(pixels.repeat(scale, axis=0).repeat(scale, axis=1))
    return np.ascontiguousarray(large if large.shape[-1] == 3 else large.repeat(3, axis=-1))
