"""Drawings of quantised weights: they say what is in the bytes and on the grids, and a planted fault shows."""

import gguf
import numpy as np
import pytest
import torch
from helpers import assert_words_stay_apart

from llama3_scratch import diagrams

ROW = torch.randn(96, generator=torch.Generator().manual_seed(0))


def words(picture):
    return [text.get_text() for ax in picture.axes for text in ax.texts]


def a_block():
    """Bytes of one block of Q4_1 as gguf's own library makes them, and what it reads in them."""
    raw = gguf.quants.quantize(ROW[None, :32].numpy(), gguf.GGMLQuantizationType.Q4_1)
    d, m = raw[0, :4].copy().view(np.float16).tolist()
    nibbles = [*(raw[0, 4:] & 15).tolist(), *(raw[0, 4:] >> 4).tolist()]
    return raw[0].tolist(), d, m, nibbles, gguf.quants.dequantize(raw, gguf.GGMLQuantizationType.Q4_1)[0]


def test_a_block_shows_its_bytes_and_the_weights_that_the_library_reads_in_them():
    raw, d, m, nibbles, theirs = a_block()
    picture = diagrams.block_of_nibbles(raw, d, m, nibbles)
    drawn = words(picture)
    assert [f"{byte:02x}" for byte in raw] == drawn[: len(raw)]
    for place in (0, 16, 1, 17, 2, 18):
        assert f"number {place}: {nibbles[place]}" in drawn
        assert f"{theirs[place]:.5f}" in drawn
        assert f"number {place} is {nibbles[place]} and stands for {theirs[place]:.5f}" in picture.alt
    assert_words_stay_apart(picture)


def test_halves_exchanged_show():
    raw, d, m, nibbles, _ = a_block()
    right, wrong = (diagrams.block_of_nibbles(raw, d, m, n) for n in (nibbles, nibbles[16:] + nibbles[:16]))
    assert repr(right) != repr(wrong) and right.alt != wrong.alt


def test_a_rounded_row_moves_by_half_a_step_at_most():
    scale = (ROW.abs().max() / 127).item()
    picture = diagrams.rounded_row(ROW, scale)
    before, after = (line for line in picture.axes[1].lines if line.get_marker() in ("o", "s"))
    assert len(before.get_xdata()) == 40
    assert np.abs(after.get_xdata() - before.get_xdata()).max() <= 0.5
    assert np.array_equal(after.get_xdata(), np.round(before.get_xdata()))
    counted = sum(patch.get_height() for patch in picture.axes[2].patches)
    assert counted == len(ROW)
    assert repr(picture) != repr(diagrams.rounded_row(ROW, 2 * scale))


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_levels_are_those_of_so_many_bits_and_the_band_is_what_becomes_0(bits):
    picture = diagrams.levels(ROW, [bits])
    lines = sorted(line.get_xdata()[0] for line in picture.axes[0].lines)
    top = ROW.abs().max().item()
    assert lines == pytest.approx(np.linspace(-top, top, 2**bits - 1).tolist())
    zeros = ((ROW / (top / (2 ** (bits - 1) - 1))).round() == 0).double().mean()
    assert f"{zeros:.0%} become 0" in picture.axes[0].get_title(loc="left")


def test_what_is_lost_stands_at_its_bits_and_a_star_where_nothing_was_measured():
    kinds = {"group": {8: 0.001, 4: 0.3, 3: 1.5}, "row": {8: 0.002, 3: 6.0}}
    picture = diagrams.lost_by_bits(kinds, {4: "told before"}, 4, "lost", "KL")
    ax = picture.axes[0]
    drawn = {line.get_label(): dict(zip(*line.get_data(), strict=True)) for line in ax.lines}
    assert {kind: drawn[kind] for kind in kinds} == kinds
    [star] = [line for line in ax.lines if line.get_marker() == "*"]
    assert star.get_xdata()[0] == 4 and star.get_ydata()[0] < 0.001
    assert "told before" in words(picture) and "a star at 4 bits" in picture.alt
    guide = ax.lines[0].get_ydata()
    assert guide[1] / guide[0] == pytest.approx(4**5)
