"""Drawings of notebook 17's last part: products with their shapes, costs beside times, sums on a clock, spectra."""

import math

import pytest
from helpers import assert_words_stay_apart
from matplotlib.patches import Arc

from llama3_scratch import diagrams


def words(picture):
    return [text.get_text() for ax in picture.axes for text in ax.texts]


def test_each_of_the_three_products_fits_together():
    picture = diagrams.three_products(5, 3, 4)
    shapes = [word for word in words(picture) if word.startswith("[")]
    assert shapes == ["[5, 3]", "[3, 4]", "[5, 4]", "[5, 4]", "[4, 3]", "[5, 3]", "[4, 5]", "[5, 3]", "[4, 3]"]
    assert words(picture).count("120 operations") == 3  # 2 x 5 x 3 x 4
    assert "together 6 for each weight and token: 360" in words(picture)
    assert_words_stay_apart(picture)


def test_products_of_a_real_layer_stay_apart():
    assert_words_stay_apart(diagrams.three_products(8192, 4096, 14336, "w1"))


def test_a_cost_stands_at_its_operations_and_a_time_at_what_the_machine_does_in_it():
    picture = diagrams.training_costs({"a": 1e12, "b": 2e20}, 1e14, "Costs", "a machine")
    [ax] = picture.axes
    dots = [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines if line.get_marker() == "o"]
    assert dots == [(1e12, 0), (2e20, 1)]
    times = {text.get_text(): text.get_position()[0] for text in ax.texts if text.get_position()[1] < 0}
    assert times == {"a second": 1e14, "a day": 86400e14, "a year": pytest.approx(365.25 * 86400e14, rel=1e-3)}
    assert "a 1.0e+12, 0.01 seconds" in picture.alt
    assert "b 2.0e+20, 23.1 days" in picture.alt  # 2e6 seconds
    assert_words_stay_apart(picture)


@pytest.mark.parametrize("speed", [1, 7, 20])
def test_the_hands_stand_on_a_on_the_sum_and_on_nothing(speed):
    p, a, b = 43, 30, 25
    picture = diagrams.modular_clocks(p, a, b, [speed])
    [ax] = picture.axes
    ends = [(x[1], y[1]) for x, y in (line.get_data() for line in ax.lines[p:])]
    for n, end in zip((0, a, 12), ends, strict=True):  # 30 + 25 = 55 = 43 + 12
        angle = 2 * math.pi * speed * n / p
        assert end == pytest.approx((math.sin(angle), math.cos(angle)))
    assert words(picture) == ["0", "30", "12"]


def test_the_second_arc_goes_on_where_the_first_ended():
    picture = diagrams.modular_clocks(43, 30, 25, [1])
    first, second = (patch for patch in picture.axes[0].patches if isinstance(patch, Arc))
    assert first.theta2 == pytest.approx(90) and first.theta2 - first.theta1 == pytest.approx(360 * 30 / 43)
    assert second.theta2 == pytest.approx(first.theta1) and second.theta2 - second.theta1 == pytest.approx(
        360 * 25 / 43
    )


def test_bars_of_a_spectrum_are_as_high_as_their_shares_and_the_five_largest_are_dark():
    shares = [0.05, 0.3, 0.1, 0.2, 0.15, 0.11, 0.09]
    picture = diagrams.spectra({"even": [1 / 7] * 7, "peaked": shares}, "Spectra")
    even, peaked = picture.axes
    assert [bar.get_height() for bar in peaked.patches] == shares
    assert [bar.get_x() + bar.get_width() / 2 for bar in peaked.patches] == pytest.approx(range(1, 8))
    dark = {bar.get_facecolor() for i, bar in enumerate(peaked.patches) if i + 1 in (2, 3, 4, 5, 6)}
    assert len(dark) == 1 and not dark & {peaked.patches[0].get_facecolor(), peaked.patches[6].get_facecolor()}
    assert even.get_ylim() == peaked.get_ylim()
    assert "peaked: 86% in the five largest, at 2, 3, 4, 5, 6" in picture.alt
    assert_words_stay_apart(picture)
