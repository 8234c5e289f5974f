"""Every formula in the notebooks has been read, and those that compute something are right."""

import formulas
import pytest
from cells import NOTEBOOKS, read

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
COMPUTED = {check for check in formulas.FORMULAS.values() if callable(check)}


@pytest.mark.parametrize("check", sorted(COMPUTED, key=lambda check: check.__name__), ids=lambda check: check.__name__)
def test_a_formula_computes_what_others_compute(check):
    check()


@every_notebook
def test_every_formula_is_in_the_table(path):
    found = list(formulas.wrong_formulas(read(path)))
    assert not found, "\n".join(found)


def test_every_formula_of_the_table_is_in_a_notebook():
    found = formulas.unused([read(path) for path in NOTEBOOKS])
    assert not found, "\n".join(found)


@pytest.mark.parametrize("check", [check for check in formulas.FORMULAS.values() if isinstance(check, str)])
def test_a_formula_that_is_not_computed_has_a_reason(check):
    assert len(check) > 10


@pytest.mark.parametrize(
    "formula",
    [r"$\frac{1}{2$", r"$x}^2{$", r"$\begin{aligned} x \end{array}$", r"$\left( x )$", r"$\sqrt{x}}$"],
)
def test_a_lost_brace_is_seen(formula):
    assert formulas.unbalanced(formula)


@pytest.mark.parametrize("formula", list(formulas.FORMULAS))
def test_what_is_in_the_table_balances(formula):
    assert not formulas.unbalanced(formula)


@pytest.mark.parametrize("symbol", ["$x$", r"$\varepsilon$", r"$W_{q,h}$", r"$[\text{seq},\ \text{dim}]$", "$g_i$"])
def test_plain_symbols_need_no_entry(symbol):
    assert formulas.PLAIN.fullmatch(symbol)


@pytest.mark.parametrize("formula", ["$x^2$", "$n + 1$", "$2i$", r"$\sqrt{x}$", "$mn$", r"$e^{-x}$"])
def test_what_computes_does(formula):
    assert not formulas.PLAIN.fullmatch(formula)
