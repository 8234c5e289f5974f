"""Drawings of notebook 11: what changed in the family, which angles a pair meets, what fits where."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import assert_words_stay_apart
from matplotlib.patches import Wedge

from llama3_scratch import diagrams, functional
from llama3_scratch.params import PUBLISHED

OLD = PUBLISHED["Llama 3 8B"]
NEW = replace(OLD, use_scaled_rope=True, context_len=None)
DATES = {"Llama 3": "April 2024", "Llama 3.1": "July 2024", "Llama 3.2": "September 2024"}
TIED = {"Llama 3.2 1B"}


def words(picture):
    return [text.get_text() for ax in picture.axes for text in ax.texts]


def marked(picture):
    """The words in white, which stand on dark fields."""
    return [text.get_text() for ax in picture.axes for text in ax.texts if text.get_color() == "white"]


def family(**models):
    return {"Llama 3 8B": OLD, **models}


def test_only_what_changed_is_marked():
    models = family(**{"Llama 3.1 8B": NEW})
    picture = diagrams.family_table(models, {"Llama 3.1 8B": "Llama 3 8B"}, TIED, DATES)
    assert marked(picture) == ["8 times slower", "131,072"]
    assert "Llama 3.1 8B: slow pairs 8 times slower, context 131,072 changed" in picture.alt


def test_nothing_is_marked_where_nothing_changed_or_nothing_is_compared():
    models = family(**{"Llama 3.1 8B": OLD, "Llama 3.2 3B": PUBLISHED["Llama 3.2 3B"]})
    assert marked(diagrams.family_table(models, {"Llama 3.1 8B": "Llama 3 8B"}, TIED, DATES)) == []


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("dim", 8192, ["8,192", "28,672"]),  # the hidden size follows it
        ("n_layers", 33, ["33"]),
        ("n_kv_heads", 4, ["4"]),
        ("vocab_size", 128_000, ["128,000"]),
        ("rope_theta", 10_000.0, ["10,000"]),
        ("context_len", 4096, ["4,096"]),
    ],
)
def test_every_number_is_compared(field, value, shown):
    models = family(**{"Llama 3.1 8B": replace(OLD, **{field: value})})
    assert marked(diagrams.family_table(models, {"Llama 3.1 8B": "Llama 3 8B"}, TIED, DATES)) == shown


def test_a_tied_model_says_so():
    models = family(**{"Llama 3.2 1B": OLD})
    assert marked(diagrams.family_table(models, {"Llama 3.2 1B": "Llama 3 8B"}, TIED, DATES)) == ["yes"]


def test_words_of_the_whole_family_do_not_cover_each_other():
    names = ("3 8B", "3 70B", "3.1 8B", "3.1 70B", "3.1 405B", "3.2 1B", "3.2 3B", "3.3 70B")
    models = {f"Llama {name}": PUBLISHED["Llama 3.1 405B"] for name in names}
    dates = DATES | {"Llama 3.3": "December 2024"}
    assert_words_stay_apart(diagrams.family_table(models, dict.fromkeys(models, "Llama 3 8B"), TIED, dates))


def angles(ax):
    """Where each filled or hatched part begins and ends, in turns."""
    parts = [patch for patch in ax.patches if isinstance(patch, Wedge)]
    return [(part.theta1 / 360, part.theta2 / 360, part.get_hatch()) for part in parts]


def test_a_clock_face_shows_what_was_seen_and_what_is_new():
    turn = 2 * np.pi / 100  # one round in 100 tokens
    speeds = torch.tensor([3.0, 0.5, 0.02]) * turn
    fast, middle, slow = diagrams.clock_faces({"before": speeds}, 100, 400, [0, 1, 2]).axes
    assert angles(fast) == [(0, 1, None)]  # been everywhere
    (seen, new) = angles(middle)
    assert seen[:2] == pytest.approx((0, 0.5), abs=1e-5) and not seen[2]
    assert new[:2] == pytest.approx((0.5, 1), abs=1e-5) and new[2]
    assert angles(slow)[1][:2] == pytest.approx((0.02, 0.08), abs=1e-5)


def test_slower_clocks_are_held_against_what_was_seen_at_the_old_speed():
    freqs = 1 / OLD.rope_theta ** (torch.arange(0, OLD.head_dim, 2) / OLD.head_dim)
    scaled = functional.apply_scaling(freqs, 8)
    picture = diagrams.clock_faces({"before": freqs, "after": scaled}, OLD.context_len, NEW.context_len, [40, 50])
    before, after = angles(picture.axes[1]), angles(picture.axes[3])
    assert before[0] == after[0]  # what it has seen does not change
    assert after[1][1] == pytest.approx(2 * after[0][1], rel=1e-3)  # sixteen times as long, eight times slower
    assert "pair 50, after" in picture.alt


def test_what_is_needed_and_what_machines_have_can_be_read_off():
    needs = {"small": {"16 bits": 2.5, "4 bits": 0.8}, "large": {"16 bits": 812.0, "4 bits": 254.0}}
    picture = diagrams.will_it_fit(needs, {"a laptop": 17.2})
    marks = [line for line in picture.axes[0].lines if line.get_marker() not in ("None", "")]
    assert [list(line.get_xdata()) for line in marks] == [[2.5, 812.0], [0.8, 254.0]]
    assert {"2.5", "812", "0.8", "254", "a laptop\n17 GB"} <= {*words(picture)}
    assert "small 2.5 GB 16 bits" in picture.alt
