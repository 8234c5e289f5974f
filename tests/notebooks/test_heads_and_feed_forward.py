"""The drawings of notebooks 5 and 6, and the pictures made for them: what was given is what is shown."""

import pytest
import torch
import torch.nn.functional as F
from matplotlib.colors import to_rgb

from llama3_scratch import ModelArgs, diagrams, plots
from llama3_scratch.params import PUBLISHED

SMALL = ModelArgs(576, 30, 9, 49152, n_kv_heads=3)
MODELS = {"SmolLM2": SMALL, "one KV head": ModelArgs(64, 2, 4, 300, n_kv_heads=1), **PUBLISHED}
DRAWINGS = ("grouped_heads", "heads_to_stream", "bypasses", "swiglu")
every_model = pytest.mark.parametrize("params", MODELS.values(), ids=MODELS)


def words(picture):
    return [text.get_text() for text in picture.axes[0].texts]


@every_model
@pytest.mark.parametrize("name", DRAWINGS)
def test_a_drawing_fits_its_board_and_has_a_text_for_the_blind(name, params):
    picture = getattr(diagrams, name)(params)
    picture.figure.canvas.draw()
    assert len(picture.alt) > 80
    assert picture.figure.get_size_inches()[0] <= 9.3
    ax = picture.axes[0]
    board = ax.get_window_extent()
    for text in ax.texts:
        box = text.get_window_extent()
        assert board.x0 - 2 <= box.x0 and box.x1 <= board.x1 + 2, text.get_text()
        assert board.y0 - 2 <= box.y0 and box.y1 <= board.y1 + 2, text.get_text()


@every_model
def test_the_sizes_are_those_of_the_model(params):
    shown = words(diagrams.swiglu(params, tokens=7))
    assert diagrams.dims((params.dim, params.hidden_dim)) in shown
    assert shown.count(diagrams.dims((params.hidden_dim, params.dim))) == 2
    assert shown.count(diagrams.dims((7, params.hidden_dim))) == 3
    shown = words(diagrams.heads_to_stream(params, tokens=7))
    assert shown.count(diagrams.dims((7, params.dim))) == 2


def test_a_head_meets_the_rows_of_wo_that_have_its_colour():
    boxes = diagrams.heads_to_stream(SMALL).axes[0].patches[: 2 * SMALL.n_heads]
    for h in range(SMALL.n_heads):
        ours, its_rows = boxes[2 * h], boxes[2 * h + 1]
        color = to_rgb(plots.COLORS[h // SMALL.group_size])
        assert ours.get_facecolor()[:3] == its_rows.get_facecolor()[:3] == color
        assert ours.get_hatch() == its_rows.get_hatch() == diagrams.HATCHES[h // SMALL.group_size]


def test_the_wrong_arrow_starts_behind_the_norm_and_is_the_only_broken_line():
    broken = [line for line in diagrams.bypasses(SMALL).axes[0].lines if line.is_dashed()]
    assert len(broken) == 1
    x, y = broken[0].get_xdata(), broken[0].get_ydata()
    assert x[0] == x[1] and y[0] < y[1] == y[2]  # down from the norm's height to the stream, and on


def test_signs_are_written_into_strong_cells():
    values = torch.tensor([[4.0, -4.0, 0.5], [-2.0, 2.0, 0.0]])
    picture = plots.heatmap(values, signed=True)
    image = picture.axes[0].images[0]
    assert image.get_clim() == (-4, 4)
    signs = {tuple(map(int, t.get_position())): t.get_text() for t in picture.axes[0].texts}
    assert signs == {(0, 0): "+", (1, 0): "\N{MINUS SIGN}", (0, 1): "\N{MINUS SIGN}", (1, 1): "+"}


def test_a_sheet_names_rows_at_the_left_and_columns_at_the_bottom():
    names = ["a", "b", "c"]
    values = torch.rand(4, 3, 3, generator=torch.Generator().manual_seed(0))
    picture = plots.heatmap_sheet(values, list("wxyz"), rows=names, columns=names, row_name="looks", column_name="at")
    axes = picture.axes[:4]  # three above, one below
    assert [len(ax.get_yticks()) for ax in axes] == [3, 0, 0, 3]
    assert [len(ax.get_xticks()) for ax in axes] == [0, 3, 3, 3]
    assert [ax.get_ylabel() for ax in axes] == ["looks", "", "", "looks"]


def test_curves_are_drawn_over_the_range_of_their_inputs():
    z = torch.linspace(-2, 3, 1000)
    top, bottom = plots.curves_at_work({"silu": F.silu, "half": lambda z: z / 2}, z).axes
    x, y = top.lines[0].get_data()
    assert (x[0], x[-1]) == (-2, 3)
    assert y == pytest.approx(F.silu(torch.tensor(x)).numpy())
    (steps,) = [p for p in bottom.patches if hasattr(p, "get_data")]
    assert steps.get_data().values.sum() == pytest.approx(1)
    band = next(p for p in bottom.patches if not hasattr(p, "get_data"))
    assert (band.get_x(), band.get_width()) == pytest.approx((-1.875, 4.75), abs=0.01)
