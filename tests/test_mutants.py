"""Mutants: which changes are made, and what the report says about them."""

import ast
import textwrap

import pytest

from common.grading import mutants
from common.notebooks import anatomy
from common.notebooks.anatomy import NotebookError


def changes(source, **options):
    """The changed line of each mutant of a function body."""
    text = "def f(x, y):\n" + textwrap.indent(textwrap.dedent(source), "    ")
    return {mutant.now for mutant in mutants.mutate(text, **options)}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("return x < y", {"return x <= y", "return x > y"}),
        ("return x == y", {"return x != y"}),
        ("return x is None", {"return x is not None"}),
        ("return x and y", {"return x or y", "return x", "return y"}),
        ("return not x", {"return x"}),
        ("return x + y", {"return x - y", "return x", "return y"}),
        ("return (x - y) * x", {"return (x + y) * x", "return (x) * x", "return (x - y) / x", "return (x - y)"}),
        ("return x // y", {"return x / y", "return x * y"}),
        ("return x @ y", {"return x * y"}),
        ("return x**2", {"return x*2", "return x**1", "return x**3"}),
        ("x += y", {"x -= y", "x = y", "pass"}),
        ("x = 1", {"x = 0", "x = 2"}),
        ("x = -1", {"x = (-2)", "x = 0", "x = 1"}),
        ("x = 0.5", {"x = 0.0", "x = 1.0"}),
        ("x = 1e-5", {"x = 0.0", "x = 1.0", "x = 0.01"}),
        ("x = True", {"x = False"}),
        ("return x.sum(1)", {"return x.sum(0)", "return x.sum(2)", "return x", "return x.mean(1)"}),
        ("return x.sum(dim=-1, keepdim=True)", {"return x.sum(keepdim=True)", "return x.sum(dim=-1, keepdim=False)"}),
        ("return x.transpose(1, 2)", {"return x", "return x.transpose(0, 2)"}),
        ("return x.T", {"return x"}),
        ("return g(x, y)", {"return g(y, x)", "return x", "return -g(x, y)"}),
        ("return torch.exp(x)", {"return x", "return torch.log(x)"}),
        ("return x[1:y]", {"return x[:y]", "return x[1:]", "return x[1:y + 1]", "return x[2:y]"}),
        ("return x[y]", {"return x[y - 1]"}),
        ("return x, y", {"return y, x", "pass"}),
        ("return x if y else 1", {"return (x if not y else 1)", "return x", "return 1"}),
        ("if x:\n    y()", {"if not x:", "if False:", "if True:"}),
        ("while x:\n    y()", {"while not x:", "while False:"}),
        ("for i in range(x):\n    y()", {"for i in range(x - 1):", "break"}),
        ("for i in x:\n    continue", {"break"}),
        ("with g():\n    y()", {"if True:"}),
        ("return einsum('bij,bjk->bik', x, y)", {"return einsum('bij,bjk->kib', x, y)"}),
        ("return x['a']", {"return x['a_']"}),
    ],
)
def test_a_change(source, expected):
    made = changes(source)
    assert expected <= made, made


@pytest.mark.parametrize(
    "source",
    [
        '"""A docstring."""',
        "x: int",
        "import torch",
        "zip(x, y, strict=True)[x.y]",
        "...",
        "pass",
    ],
)
def test_nothing_to_change(source):
    assert changes(source) <= {"pass", "x[x.y]", "(y)[x.y]", "zip(y, x, strict=True)[x.y]", "x[x.y - 1]"}


def test_what_no_check_can_see_is_left_alone():
    source = '''
        """Docstring with 1 and 2."""
        k: int = x
        if y:
            raise ValueError("no " + "1")
        return y.max(x, y)
    '''
    made = changes(source)
    assert not any("Docstring" in one or "ValueError" in one or "max(y, x)" in one for one in made)
    assert "return x.sum((0, 2))" not in changes("return x.sum((2, 0))")


def test_each_mutant_is_one_change_of_a_python_that_stays_formatted():
    source = "def f(x):\n    # one\n    y = (x +\n         1)  # two\n\n    return y * 2  # three\n"
    made = mutants.mutate(source)
    assert len({ast.dump(ast.parse(mutant.source)) for mutant in made} - {ast.dump(ast.parse(source))}) == len(made)
    for mutant in made:
        assert "# one" in mutant.source
        assert "# three" in mutant.source
        lines = zip(source.splitlines(), mutant.source.splitlines(), strict=False)
        assert any(was != now for was, now in lines)
        assert mutant.was.strip("…") in " ".join(source.split())
    assert [mutant.line for mutant in made] == sorted(mutant.line for mutant in made)


def test_the_same_mutants_every_time_and_no_more_than_asked_for():
    source = "def f(x):\n    return x + 1, x - 2, x * 3, x / 4\n"
    assert mutants.mutate(source, 5) == mutants.mutate(source, 5)
    assert len(mutants.mutate(source, 5)) == 5
    assert set(mutants.mutate(source, 5)) < set(mutants.mutate(source))
    assert mutants.mutate(source, lines={1}) == []


def test_a_title_shows_the_change_and_a_little_around_it():
    line = f"x = [{'a, ' * 40} 1 + y {', b' * 40}]"
    made = mutants.mutate(line)
    (shown,) = [mutant.title for mutant in made if "1 - y" in mutant.now]
    assert shown.startswith("line 1: …")
    assert shown.endswith("…")
    assert len(shown) < 220


def test_a_source_that_is_no_python():
    with pytest.raises(NotebookError, match="no mutants can be made"):
        mutants.mutate("%matplotlib inline\n")


FILE = """OUTSIDE = 1

# TODO circle  (2 points, ~5 min)
class Circle:
    def area(self):
        return 3 * self.r

    # TODO circle-scaled  (3 points, ~5 min)
    def scaled(self, factor):
        return factor * self.area()

    def half(self):
        return self.area() / 2


# TODO twice  (1 points, ~5 min)
def twice(x):
    return 2 * x
"""


def test_only_the_lines_of_a_todo_are_changed():
    circle, scaled, twice = anatomy.answers_in_file(FILE, "shapes.py")
    assert {snippet.title.split(":")[0] for snippet in mutants.of(circle, FILE)} == {"line 6", "line 13"}
    assert {snippet.title.split(":")[0] for snippet in mutants.of(scaled, FILE)} == {"line 10"}
    found = mutants.of(twice, FILE)
    assert {snippet.title.split(":")[0] for snippet in found} == {"line 18"}
    assert all(snippet.whole and snippet.source.startswith("OUTSIDE = 1") for snippet in found)
