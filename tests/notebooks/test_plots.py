"""Pictures, checked by the numbers in them: what was given is what is drawn, and a fault changes the repr that nbval
compares."""

import inspect
import math
import warnings

import numpy as np
import pytest
import torch
from helpers import assert_words_stay_apart
from matplotlib import colormaps
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import FancyArrowPatch
from matplotlib.text import Text

from llama3_scratch import diagrams, functional, plots
from llama3_scratch.params import PUBLISHED

viridis = colormaps["viridis"]

AWKWARD = {
    "newline": "a\nb",
    "carriage return": "\r\n",
    "spaces": "   ",
    "tab": "\tx",
    "dollar": "$",
    "two dollars": "$$",
    "formula": "$x^2$",
    "broken formula": "$\\frac{$",
    "backslashes": "\\n\\alpha",
    "percent and braces": "%{x}_^&#~",
    "leading underscore": "_hidden",  # matplotlib leaves such names out of legends
    "zero byte": "\x00",
    "escape sequence": "\x1b[0m\x07\x7f\x9f",
    "no characters": "",
    "Chinese": "中文",
    "Japanese": "日本語かな",
    "Korean": "한국어",
    "emoji": "😀",
    "joined emoji": "👩\u200d🚀",
    "flag": "🇫🇷",
    "Arabic": "مرحبا",
    "Hindi": "हिन्दी",
    "combining accent": "\u0301",
    "no-break space": "\u00a0",
    "line separator": "\u2028",
    "zero width": "\u200b\ufeff",
    "private use": "\ue000\U0010ffff",
    "half an emoji": "😀".encode()[:2],
    "a byte that is no text": b"\xff",
    "very long": "supercalifragilistic" * 10,
    "very long bytes": b"\xf0\x9f" * 100,
}
GROUPS = [list(AWKWARD)[i : i + 8] for i in range(0, len(AWKWARD), 8)]


def draw(name, labels):
    """The picture of each public function of plots, with these labels wherever it takes text."""
    n = len(labels)
    curve = torch.arange(4.0)
    square = torch.arange(float(n * n)).reshape(n, n)
    circle = torch.polar(torch.ones(n), torch.arange(float(n)))
    by_name = dict(zip(labels, range(1, n + 1), strict=True))
    text = labels[-1]
    return {
        "token_strip": lambda: plots.token_strip(labels, list(range(n)), title=text),
        "token_rows": lambda: plots.token_rows([labels, labels], [text, "row"], [labels, labels], [0, None], text),
        "heatmap": lambda: plots.heatmap(square, labels, labels, text, text, text, text),
        "heatmap_sheet": lambda: plots.heatmap_sheet(torch.stack([square, square]), [text, "second"], text),
        "complex_plane": lambda: plots.complex_plane(circle, text, text),
        "lines": lambda: plots.lines({name: (curve, curve + i) for name, i in by_name.items()}, text, text, text),
        "scatter": lambda: plots.scatter(
            {name: (curve, curve + i) for name, i in by_name.items()}, text, text, text, {text: (1, 2)}
        ),
        "strip": lambda: plots.strip({name: list(range(n)) for name in labels}, text, text),
        "panels": lambda: plots.panels({name: {text: (curve, curve + i)} for name, i in by_name.items()}, text, text),
        "bars": lambda: plots.bars(labels, {text: list(range(n)), "second": list(range(n))}, text, text),
        "histogram": lambda: plots.histogram({name: curve * i for name, i in by_name.items()}, 10, text, text),
        "blocks": lambda: plots.blocks(by_name, text, text),
        "predictions": lambda: plots.predictions(labels, labels, [1 / n] * n, [True] * n, text),
        "turns": lambda: plots.turns({name: circle * i for name, i in by_name.items()}, text),
        "towers": lambda: plots.towers(
            {name: (i, 2 * i) for name, i in by_name.items()}, [labels] * len(by_name), text
        ),
        "word_grids": lambda: plots.word_grids(  # in one row, or the same words would be laid out again and again
            {name: ([labels] + [[""] * n] * (n - 1), square) for name in labels}, labels, labels, text, text, text
        ),
        "curves_at_work": lambda: plots.curves_at_work(dict.fromkeys(labels, torch.relu), square, text, text),
    }[name]()


PUBLIC = [
    name
    for name, function in inspect.getmembers(plots, inspect.isfunction)
    if function.__module__ == plots.__name__
    and name[0] != "_"
    and name not in ("ink", "label", "styled", "token_labels")
]


@pytest.fixture
def fonts(monkeypatch):
    """Pretend that the machine has these fonts and no others. Both used here come with matplotlib."""

    def only(*families):
        monkeypatch.setattr(plots, "_families", lambda: list(families))
        plots._drawable.cache_clear()

    yield only
    plots._drawable.cache_clear()


@pytest.fixture
def scores():
    """Seventeen by seventeen, in -3 to 3 with both ends reached."""
    values = np.random.default_rng(0).uniform(-3, 3, (17, 17))
    values[3, 5], values[11, 2] = -3, 3
    return torch.from_numpy(values)


# What a wrong tensor does to the repr.


def test_the_same_tensor_gives_the_same_repr(scores):
    assert repr(plots.heatmap(scores)) == repr(plots.heatmap(scores.clone()))


def test_last_bits_do_not_change_the_repr(scores):
    assert repr(plots.heatmap(scores)) == repr(plots.heatmap(scores.float()))


@pytest.mark.parametrize("cell", [(0, 0), (0, 16), (8, 8), (16, 0), (16, 16), (5, 11)])
@pytest.mark.parametrize("offset", [0.6, -0.6])
def test_one_wrong_cell_of_a_heatmap_changes_the_repr(scores, cell, offset):
    wrong = scores.clone()
    wrong[cell] += offset  # a tenth of the range
    assert repr(plots.heatmap(wrong)) != repr(plots.heatmap(scores))


@pytest.mark.parametrize(("a", "b"), [((0, 1), (16, 4)), ((3, 5), (3, 6)), ((8, 3), (9, 3))])
def test_two_cells_swapped_change_the_repr(scores, a, b):
    wrong = scores.clone()
    wrong[a], wrong[b] = scores[b], scores[a]
    assert (wrong - scores).abs().max() > 0.6
    assert repr(plots.heatmap(wrong)) != repr(plots.heatmap(scores))


def test_a_transposed_heatmap_changes_the_repr(scores):
    assert repr(plots.heatmap(scores.T)) != repr(plots.heatmap(scores))


def test_a_missing_mask_changes_the_repr(scores):
    masked = plots.heatmap(scores + functional.causal_mask(17))
    assert "masked 136" in repr(masked)
    assert "masked" not in repr(plots.heatmap(scores))


def test_a_mask_off_by_one_changes_the_repr(scores):
    wrong = scores.masked_fill(torch.ones(17, 17, dtype=torch.bool).triu(), -math.inf)
    assert repr(plots.heatmap(wrong)) != repr(plots.heatmap(scores + functional.causal_mask(17)))


def test_one_wrong_cell_of_a_sheet_changes_the_repr(scores):
    sheet = torch.stack([scores, scores.T, -scores]).softmax(-1)
    wrong = sheet.clone()
    wrong[1, 4, 4] += 0.1
    titles = ["0", "1", "2"]
    assert repr(plots.heatmap_sheet(wrong, titles)) != repr(plots.heatmap_sheet(sheet, titles))


@pytest.mark.parametrize("position", [0, 1, 3, 16])
@pytest.mark.parametrize("offset", [0.02, -0.02])
def test_a_rotation_off_by_a_fiftieth_of_a_radian_changes_the_repr(position, offset):
    row = functional.precompute_freqs_cis(128, 17)[position]
    wrong = row * torch.polar(torch.tensor(1.0), torch.tensor(offset))
    assert repr(plots.complex_plane(wrong)) != repr(plots.complex_plane(row))


def test_a_rotation_the_other_way_changes_the_repr():
    row = functional.precompute_freqs_cis(128, 17)[3]
    assert repr(plots.complex_plane(row.conj())) != repr(plots.complex_plane(row))
    assert repr(plots.turns({"q": row.conj()})) != repr(plots.turns({"q": row}))


def test_a_path_turned_by_a_fiftieth_of_a_radian_changes_the_repr():
    path = torch.polar(torch.ones(17), torch.arange(17.0) / 3)
    wrong = path * torch.polar(torch.tensor(1.0), torch.tensor(0.02))
    assert repr(plots.turns({"q": wrong})) != repr(plots.turns({"q": path}))


def test_one_wrong_probability_changes_the_repr():
    def picture(probs):
        return plots.predictions(["a", "b", "c"], ["x", "y", "z"], probs, [True] * 3)

    assert repr(picture([0.5, 0.2, 0.9])) != repr(picture([0.5, 0.21, 0.9]))


# What is wrong with a picture of the right numbers: each fault is planted in the finished figure.

PARAMS = PUBLISHED["Llama 3 8B"]
NAMES = ["the", "of", ",", "life"]
CURVES = {"plain": ([0, 1, 2], [1, 5, 90]), "scaled": ([0, 1, 2], [2, 3, 7])}
SQUARE = torch.arange(16.0).reshape(4, 4)


def of_heatmap(**more):
    return lambda: plots.heatmap(SQUARE, NAMES, NAMES[::-1], "Scores", "asks", "is asked", "score", **more)


def guesses():
    return plots.predictions(NAMES, ["cat", "a", "b", "c"], [0.5, 0.2, 0.9, 0.4], [True, False, True, True], "Guesses")


def two_bars():
    return plots.bars(NAMES, {"before": [1, 2, 3, 4], "after": [4, 3, 2, 2]}, "Sizes", "size")


def panels_of_three():
    return plots.heatmap_sheet(SQUARE.expand(3, 4, 4), ["head 0", "head 1", "head 2"], "Heads")


def clock():
    return plots.complex_plane(functional.precompute_freqs_cis(8, 4)[3], "A clock")


def rows_of_tokens():
    return plots.token_rows([NAMES, NAMES], ["before", "after"], below=[list("0123")] * 2, strong=[1, 2])


def mirror(picture):
    [dots] = [c for c in picture.axes[0].collections if isinstance(c, PathCollection)]
    dots.set_offsets(dots.get_offsets() * [-1, 1])


def exchange(artists, what):
    """What the first of two has becomes the second's, and the other way round."""
    first, other = artists
    old = getattr(first, f"get_{what}")()
    getattr(first, f"set_{what}")(getattr(other, f"get_{what}")())
    getattr(other, f"set_{what}")(old)


def reverse(artists):
    words = [artist.get_text() for artist in artists]
    for artist, word in zip(artists, reversed(words), strict=True):
        artist.set_text(word)


def rename(picture, old, new):
    [text, *_] = [text for text in picture.axes[0].texts if text.get_text() == old]
    text.set_text(new)


def turn_round(picture):
    arrow = next(patch for patch in picture.axes[0].patches if isinstance(patch, FancyArrowPatch))
    arrow.set_positions(*reversed(arrow._posA_posB))


def light_another(picture):
    by_color = {to_hex(patch.get_facecolor()): patch for patch in reversed(picture.axes[0].patches)}
    exchange([by_color[diagrams.board.LIT.lower()], by_color["#ffffff"]], "facecolor")


def tokens(picture):
    return [patch for patch in picture.axes[0].patches if patch.get_gid() == "token"]


# what -> (picture, fault). The first eight are those of an earlier review, all of which passed.
ON_A_PICTURE = {
    "dots mirrored while the arrows are right": (clock, mirror),
    "vmin and vmax ignored": (of_heatmap(vmin=-2, vmax=20), lambda p: p.axes[0].images[0].autoscale()),
    "colours of right and wrong exchanged": (guesses, lambda p: exchange(p.axes[0].patches[:2], "facecolor")),
    "the token read in place of the guess": (guesses, lambda p: rename(p, "cat  0.50", "the  0.50")),
    "titles in reverse": (panels_of_three, lambda p: reverse([ax.title for ax in p.axes[:3]])),
    "positions counted from 1": (of_heatmap(), lambda p: p.axes[0].set_yticks(range(4), [*NAMES[1:], "is"])),
    "log_y ignored": (lambda: plots.lines(CURVES, log_y=True), lambda p: p.axes[0].set_yscale("linear")),
    "the dark box one to the left": (rows_of_tokens, lambda p: exchange(tokens(p)[:2], "facecolor")),
    "ticks moved by one": (of_heatmap(), lambda p: p.axes[0].set_xticks(range(1, 5), NAMES[::-1])),
    "names of rows and columns exchanged": (
        of_heatmap(),
        lambda p: p.axes[0].set(xticks=range(4), xticklabels=NAMES, yticks=range(4), yticklabels=NAMES[::-1]),
    ),
    "names of the axes exchanged": (of_heatmap(), lambda p: p.axes[0].set(xlabel="asks", ylabel="is asked")),
    "names in the legend exchanged": (two_bars, lambda p: reverse(p.axes[0].get_legend().get_texts())),
    "hatch lost": (two_bars, lambda p: [patch.set_hatch(None) for patch in p.axes[0].patches]),
    "dashes lost": (lambda: plots.lines(CURVES), lambda p: p.axes[0].lines[1].set_linestyle("-")),
    "colours of two curves exchanged": (lambda: plots.lines(CURVES), lambda p: exchange(p.axes[0].lines, "color")),
    "a one-sided scale of colours": (of_heatmap(signed=True), lambda p: p.axes[0].images[0].set_cmap("viridis")),
    "the colour bar's name": (of_heatmap(), lambda p: p.axes[1].set_ylabel("weight")),
    "ids in reverse": (rows_of_tokens, lambda p: reverse([t for t in p.axes[0].texts if t.get_text().isdigit()][:4])),
    "a tick's name": (two_bars, lambda p: p.axes[0].set_yticks(range(4), [*NAMES[:3], "of"])),
    "the axis upside down": (two_bars, lambda p: p.axes[0].invert_yaxis()),
    "another title": (guesses, lambda p: p.axes[0].set_title("Answers")),
    "an arrow turned round": (lambda: diagrams.one_head(PARAMS), turn_round),
    "a wrong shape": (lambda: diagrams.one_head(PARAMS), lambda p: rename(p, "[128, 4,096]", "[4,096, 128]")),
    "another box lit": (lambda: diagrams.model_map(PARAMS, here="embedding"), light_another),
    "two names that changed places": (
        lambda: diagrams.one_head(PARAMS),
        lambda p: exchange([t for t in p.axes[0].texts if t.get_text() in ("wq", "wk")], "position"),
    ),
    "the sky drawn below": (lambda: diagrams.tower(PARAMS), lambda p: p.axes[0].invert_yaxis()),
    "another story for the blind": (lambda: diagrams.tower(PARAMS), lambda p: setattr(p, "alt", "A tower.")),
}


@pytest.mark.parametrize("what", ON_A_PICTURE)
def test_a_fault_on_a_picture_changes_the_repr(what):
    draw_it, plant = ON_A_PICTURE[what]
    picture = draw_it()
    before = repr(picture)
    plant(picture)
    assert repr(picture) != before
    assert repr(draw_it()) == before


def test_a_picture_is_told_in_few_words():
    told = [draw(name, ["a", "$b$", "c"]) for name in PUBLIC] + [diagrams.tower(PARAMS), diagrams.one_head(PARAMS)]
    assert max(len(repr(picture)) for picture in told) < 1500
    many = repr(plots.heatmap(torch.eye(60), [f"row {i}" for i in range(60)]))
    assert len(many) < 600 and "row 0 | " in many


def test_of_many_words_each_counts():
    labels = [f"row {i}" for i in range(60)]
    others = [*labels[:24], labels[26], labels[25], labels[24], *labels[27:]]
    assert repr(plots.heatmap(torch.eye(60), labels)) != repr(plots.heatmap(torch.eye(60), others))


def contrast(a, b):
    """As WCAG defines it."""
    linear = [[c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)] for color in (a, b)]
    low, high = sorted(0.2126 * red + 0.7152 * green + 0.0722 * blue for red, green, blue in linear)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("background", [*plots.COLORS, *(to_hex(viridis(i)) for i in range(0, 256, 15))])
def test_words_on_colours_can_be_read(background):
    assert contrast(plots.ink(background), background) >= 4.5


@pytest.mark.parametrize(
    "picture",
    [
        lambda: plots.blocks({str(i): i + 3 for i in range(9)}),
        rows_of_tokens,
        lambda: plots.heatmap(torch.linspace(-1, 1, 49).reshape(7, 7), signed=True),
        lambda: plots.heatmap(torch.linspace(0, 1, 49).reshape(7, 7), numbers=True),
    ],
)
def test_words_on_pictures_can_be_read(picture):
    drawn = picture()
    drawn.figure.canvas.draw()
    ax, read = drawn.axes[0], 0
    for text in ax.texts:
        middle = ax.transData.transform(text.get_position())
        boxes = [patch for patch in ax.patches if patch.contains_point(middle)]
        colors = [boxes[-1].get_facecolor()] if boxes else []
        if ax.images:
            x, y = (round(place) for place in text.get_position())
            colors = [ax.images[0].to_rgba(ax.images[0].get_array())[y, x]]
        for color in colors:
            read += 1
            assert contrast(text.get_color(), color) >= 4.5, text.get_text()
    assert read >= 4


# What is drawn is what was given.


def test_a_heatmap_shows_the_tensor_given(scores):
    [image] = plots.heatmap(scores).axes[0].images
    np.testing.assert_array_equal(image.get_array(), scores.numpy())


def test_a_heatmap_names_its_rows_and_columns(scores):
    rows, columns = [f"r{i}" for i in range(17)], [f"c{i}" for i in range(17)]
    ax = plots.heatmap(scores, rows, columns).axes[0]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == rows
    assert [tick.get_text() for tick in ax.get_xticklabels()] == columns


def test_masked_cells_are_left_to_the_hatching_and_zeros_are_not(scores):
    ax = plots.heatmap((scores + functional.causal_mask(17)).softmax(-1).masked_fill(scores < -2.9, math.nan)).axes[0]
    opaque = ax.images[0].to_rgba(ax.images[0].get_array())[..., 3]
    np.testing.assert_array_equal(opaque, np.where(scores < -2.9, 0, 1))
    assert ax.patch.get_hatch()


def test_hidden_cells_are_masked_in_a_heatmap_and_in_every_matrix_of_a_sheet(scores):
    hidden = torch.ones(17, 17, dtype=torch.bool).triu(1)
    [image] = plots.heatmap(scores, hidden=hidden).axes[0].images
    np.testing.assert_array_equal(np.ma.getmaskarray(image.get_array()), hidden)
    sheet = plots.heatmap_sheet(torch.stack([scores, -scores]), ["a", "b"], hidden=hidden)
    assert repr(sheet).count("masked 136") == 2


def test_a_sheet_shows_every_matrix_on_one_scale(scores):
    sheet = torch.stack([scores, 2 * scores]).abs()
    images = [ax.images[0] for ax in plots.heatmap_sheet(sheet, ["a", "b"]).axes if ax.images]
    np.testing.assert_allclose([image.get_array() for image in images[:2]], sheet.numpy())
    assert [image.get_clim() for image in images[:2]] == [(0, pytest.approx(6))] * 2


def test_a_complex_plane_shows_the_numbers_given():
    row = functional.precompute_freqs_cis(16, 4)[3]
    [arrows] = [c for c in plots.complex_plane(row).axes[0].collections if hasattr(c, "U")]
    np.testing.assert_allclose(arrows.U + 1j * arrows.V, row.numpy(), atol=1e-6)


def test_lines_show_the_numbers_given():
    [line] = plots.lines({"a": ([1, 2, 3], [5, 4, 6])}).axes[0].lines
    assert line.get_xydata().tolist() == [[1, 5], [2, 4], [3, 6]]


def test_only_the_curves_that_are_named_get_dots():
    curves = {"law": ([1, 2, 3], [5, 4, 3]), "measured": ([1, 2, 3], [5.1, 3.9, 3.2])}
    markers = [line.get_marker() for line in plots.lines(curves, dots=["measured"]).axes[0].lines]
    assert markers == ["", "."]
    assert [line.get_marker() for line in plots.lines(curves, dots=True).axes[0].lines] == [".", "."]


def test_between_two_steps_panels_have_no_tick():
    part = {"a": (range(20), [float(i) for i in range(20)])}
    ticks = plots.panels({"one": part, "two": part}, x_name="step").axes[-1].get_xticks()
    assert all(tick == round(tick) for tick in ticks)


def test_scattered_points_lie_where_they_were_put():
    points = {"a": ([0.5, -1.0], [2.0, 0.25]), "b": ([1.0], [3.0])}
    picture = plots.scatter(points, "T", "x", "y", names={"far": (1.0, 3.0)}, equal=True)
    drawn = [list(zip(*line.get_data(), strict=True)) for line in picture.axes[0].lines]
    assert drawn == [[(0.5, 2.0), (-1.0, 0.25)], [(1.0, 3.0)], [(-1.0, -1.0), (3.0, 3.0)]]
    assert [text.get_text() for text in picture.axes[0].texts] == ["far"]
    moved = plots.scatter({**points, "b": ([1.0], [3.1])}, "T", "x", "y", names={"far": (1.0, 3.0)}, equal=True)
    assert repr(moved) != repr(picture)


def test_names_beside_points_stay_apart():
    """At one place all names would be written over each other; there is room for four around a point."""
    names = {f"point {name}": (1.0 + 0.001 * i, 2.0) for i, name in enumerate("abcd")}
    names |= {"far to the left, with a long name": (0.1, 1.0), "far to the right, with a long name": (10.0, 1.0)}
    picture = plots.scatter({"": tuple(zip(*names.values(), strict=True))}, names=names, log_x=True)
    assert [text.get_text() for text in picture.axes[0].texts] == list(names)
    assert picture.axes[0].get_xscale() == "log"
    assert_words_stay_apart(picture)


def test_bars_are_as_long_as_the_numbers_given():
    ax = plots.bars(["a", "b"], {"x": [1, 2], "y": [3, 4]}).axes[0]
    assert [bar.get_width() for bar in ax.patches] == [1, 2, 3, 4]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a", "b"]


def test_a_histogram_counts_every_number():
    ax = plots.histogram({"a": torch.arange(100.0), "b": torch.arange(30.0)}, bins=10).axes[0]
    assert [patch.get_data().values.tolist() for patch in ax.patches] == [[10] * 10, [10] * 3 + [0] * 7]


def test_blocks_are_as_wide_as_their_share():
    widths = [patch.get_width() for patch in plots.blocks({"a": 30, "b": 10}).axes[0].patches]
    assert widths[0::2] == [0.75, 0.25]


def test_towers_are_drawn_to_one_scale():
    ax = plots.towers({"a": (1, 4), "b": (2, 2)}, [["first"], ["second", "third"]]).axes[0]
    (a, b), texts = ax.patches, [text.get_text() for text in ax.texts]
    assert (b.get_width() / a.get_width(), b.get_height() / a.get_height()) == (pytest.approx(2), pytest.approx(0.5))
    assert a.get_x() + a.get_width() <= b.get_x()
    assert texts == ["a", "first", "b", "second", "third"]


def test_a_tower_of_another_size_changes_the_repr():
    def picture(width):
        return plots.towers({"a": (width, 4), "b": (2, 2)}, [["x"], ["y"]])

    assert repr(picture(1)) != repr(picture(1.2))


def test_a_token_strip_shows_tokens_and_ids():
    texts = [text.get_text() for text in plots.token_strip(["the", "␣cat"], [1820, 8415]).axes[0].texts]
    assert texts == ["the", "1820", "␣cat", "8415"]


# Labels.


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        ("the", "the"),
        (" the", "␣the"),
        (b" the", "␣the"),
        ("\n\n", "\\n\\n"),
        ("\r\n\t", "\\r\\n\\t"),
        ("$x$", "$x$"),
        ("\x00\x07", "U+0000U+0007"),
        ("\u200b", "U+200B"),
        ("\u00a0", "U+00A0"),
        ("é", "é"),
        (b"\xf0\x9f\x98", "\\xf0\\x9f\\x98"),
        ("abcdefghijklmn", "abcdefghijklmn"),
        ("abcdefghijklmno", "abcdefghijklm…"),
        (" " * 40, "␣" * 13 + "…"),
    ],
    ids=ascii,
)
def test_label(token, shown):
    assert plots.label(token) == shown


def test_every_kind_of_space_is_visible():
    spaces = [chr(c) for c in range(0x10000) if chr(c).isspace()]
    assert [ascii(space) for space in spaces if not plots.label(space).strip()] == []


def test_characters_without_a_glyph_are_shown_by_number(fonts):
    fonts("DejaVu Sans")
    assert plots.label("中") == "U+4E2D"
    assert plots.label("🇫") == "U+1F1EB"
    assert plots.label("мир") == "мир"


def test_token_labels_are_those_of_the_bytes(llama3):
    the, half_emoji, other_half, newline = 1820, 76460, 222, 198
    labels = plots.token_labels(llama3, [the, half_emoji, other_half, newline])
    assert labels == ["the", "\\xf0\\x9f\\x98", "\\x80", "\\n"]


# Drawing.


def draw_all(names):
    # A few tokens at a time: a reader never sees more names in one legend, and a failure says which.
    labels = [plots.label(AWKWARD[name]) for name in names]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in PUBLIC:
            draw(name, labels)._repr_mimebundle_()


@pytest.mark.parametrize("group", GROUPS, ids=", ".join)
def test_any_token_is_drawn_without_a_warning(group):
    draw_all(group)


def test_any_token_is_drawn_without_a_warning_where_fonts_are_few(fonts):
    fonts("DejaVu Sans")
    draw_all(["Chinese", "emoji", "Arabic", "Hindi"])


@pytest.mark.parametrize("name", PUBLIC)
def test_the_repr_does_not_depend_on_the_fonts_installed(fonts, name):
    # The second lacks a character, so the labels differ. Both come with matplotlib.
    fonts("DejaVu Sans", "STIXGeneral")
    many = draw(name, [plots.label(" \u2312"), plots.label("a")])
    fonts("DejaVu Sans")
    assert plots.label(" \u2312") == "␣U+2312"
    assert repr(draw(name, [plots.label(" \u2312"), plots.label("a")])) == repr(many)


@pytest.mark.parametrize("name", PUBLIC)
def test_drawing_twice_gives_the_same_bytes(tmp_path, name):
    draw(name, ["a", "$b$", "c"]).save(tmp_path / "first.png")
    draw(name, ["a", "$b$", "c"]).save(tmp_path / "second.png")
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


@pytest.mark.parametrize("y", [[1.03, 0.9, 0.1], [0.1, 0.9, 1.2], [0.2, 0.3, 0.4]], ids=["falls", "rises", "stays low"])
def test_no_curve_goes_through_the_name_of_a_level(y):
    picture = plots.lines({"curve": ([0, 1, 9], y)}, levels={"a level": 1.0})
    picture.figure.canvas.draw()
    [ax] = picture.axes
    [name] = [text for text in ax.texts if text.get_text() == "a level"]
    path = ax.lines[0].get_path().transformed(ax.lines[0].get_transform())
    assert not path.intersects_bbox(name.get_window_extent(), filled=False)
    assert name.get_ha() == ("right" if y[0] > 1 else "left")


def test_a_notebook_gets_the_picture_and_the_numbers(scores):
    picture = plots.heatmap(scores)
    bundle, metadata = picture._repr_mimebundle_()
    assert bundle["image/png"].startswith(b"\x89PNG")
    assert bundle["text/plain"] == repr(picture)
    assert picture._repr_mimebundle_() == (bundle, metadata)


def test_a_picture_is_told_to_those_who_cannot_see_it(scores):
    assert plots.heatmap(scores)._repr_mimebundle_()[1]["image/png"]["alt"] == "Picture"
    named = plots.heatmap(scores, title="Scores", row_name="queries")
    assert named._repr_mimebundle_()[1]["image/png"]["alt"] == "Picture: Scores; queries"


@pytest.mark.parametrize("name", PUBLIC)
def test_dollars_are_drawn_as_dollars(name):
    # As mathematics "$a$" would be an "a" in italics, without dollars.
    picture = draw(name, ["$a$", "$b$"])
    picture._repr_mimebundle_()
    texts = [text for text in picture.figure.findobj(Text) if "$" in text.get_text()]
    assert texts
    assert [text.get_text() for text in texts if text.get_parse_math()] == []


def brightness(color):
    red, green, blue = to_rgb(color)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_the_colours_of_a_heatmap_grow_brighter_from_end_to_end(scores):
    cmap = plots.heatmap(scores).axes[0].images[0].get_cmap()
    assert np.diff([brightness(cmap(i)[:3]) for i in range(0, 256, 5)]).min() > 0
