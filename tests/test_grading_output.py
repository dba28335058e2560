"""What the grader writes: pages, Gradescope's and JUnit's formats, the class report; flags and similar submissions."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from common.grading import collect, flags, output, report, similar
from common.grading.flags import Code, Rule
from common.grading.pool import AnswerResult, Row

ROOT = Path(__file__).resolve().parents[1]
UNIT = "phase9_made/lab1_made"


def case(name="sums to 1", points=0.0, out_of=1.0, message="", hint="divide", hidden=False, known=False):
    passed = points == out_of
    return {"name": name, "points": points, "out_of": out_of, "passed": passed, "message": message} | {
        "hint": hint,
        "known": known,
        "hidden": hidden,
    }


def row(student="student1", *answers, **more):
    return Row(student, UNIT, ["lab1_made.ipynb"], list(answers), more.pop("remarks", []), **more)


EVIL = "<script>alert(1)</script> & \x00\x1b\ufffe]]>"


@pytest.fixture
def rows():
    softmax = AnswerResult(
        "softmax",
        6,
        3,
        "graded",
        cases=[
            case("is fine", 2, 2),
            case(message="sums to 1.25", out_of=1),
            case("gradient", message="sums to 1.25", out_of=1),
            case("no overflow", 1, 1, hidden=True),
            case("other sizes", message="1.25 SECRET", hint="any size", out_of=1, hidden=True, known=True),
        ],
    )
    again = AnswerResult("softmax", 6, 0, "graded", cases=[case(message="sums to 1.75", out_of=6)])
    broken = AnswerResult("mask", 4, 0, "broken", message=f"does not run: {EVIL}")
    prose = AnswerResult("why", 2, 0, "unchecked", message="Because.", prose=True)
    flag = {
        "slug": "softmax",
        "place": "softmax",
        "line": 2,
        "code": "torch.softmax(FLAGGED)",
        "reason": "from scratch",
    }
    return [
        row("student1", softmax, broken, prose, flags=[flag], remarks=["The check cell was changed"], seconds=1.6),
        row("student2", again, AnswerResult("mask", 4, 4, "graded", cases=[case(points=4, out_of=4)])),
        row(
            f"student3 {EVIL}"[:40],
            AnswerResult("mask", 4, state="todo"),
            AnswerResult("why", 2, 2, "marked", prose=True),
        ),
        Row("student4", "", [], [], ["no notebook"]),
    ]


@pytest.fixture
def written(rows, tmp_path):
    output.write(tmp_path, rows, {"seed": 7})
    return tmp_path


def test_gradescope(rows):
    told = output.gradescope(rows[0])
    assert (told["score"], told["max_score"], told["execution_time"]) == (3, 12, 2)
    assert "The check cell was changed" in told["output"]
    assert sum(test["max_score"] for test in told["tests"]) == 12
    assert sum(test.get("score", 0) for test in told["tests"]) == 3
    first, second, third, *hidden, mask, why = told["tests"]
    assert (first["name"], first["status"], first["visibility"]) == ("softmax: is fine", "passed", "visible")
    assert second["output"] == "sums to 1.25\nHint: divide"
    assert third["output"].startswith("the same as for: sums to 1")
    assert [test["visibility"] for test in hidden] == ["after_published"] * 2
    assert hidden[1]["output"] == "Hint: any size"
    assert (mask["status"], mask["score"]) == ("failed", 0)
    assert "score" not in why
    assert "SECRET" not in json.dumps(told)
    assert "FLAGGED" not in json.dumps(told)


def test_each_student_has_a_gradescope_file_and_each_unit_where_there_are_several(rows, tmp_path):
    output.write(tmp_path, [*rows, Row("student2", "phase9_made/lab2_made", [], [], [])], {"seed": 7})
    names = {path.name for path in (tmp_path / "gradescope").iterdir()}
    assert {"student1.json", "student2-lab1_made.json", "student2-lab2_made.json", "student4.json"} < names
    assert len(names) == 5


def test_junit(written):
    suites = ElementTree.parse(written / "junit.xml").getroot()
    assert [len(suite.findall("testcase")) for suite in suites] == [7, 2, 2, 0]
    first = suites[0]
    assert [first.get(count) for count in ("tests", "failures", "errors", "skipped")] == ["7", "3", "1", "1"]
    assert first.find(".//property[@name='points']").get("value") == "3"
    assert "<script>" in first.find(".//error").text
    text = (written / "junit.xml").read_text()
    assert "SECRET" not in text
    assert "FLAGGED" not in text
    assert not re.search("[\x00-\x08\x1b\ufffe]", text)


def test_a_students_page_tells_of_hidden_cases_only_name_and_hint_and_nothing_of_flags(written):
    page = (written / "feedback" / "student1.html").read_text()
    for part in ("sums to 1.25", "the same as for: sums to 1", "Hint: divide", "other sizes", "Hint: any size"):
        assert part in page
    assert "The check cell was changed" in page
    assert "&lt;script&gt;" in page
    for part in ("SECRET", "FLAGGED", "<script", "imilar", "://"):
        assert part not in page


def test_pages_need_nothing_from_elsewhere(written):
    for page in [*written.glob("feedback/*.html"), written / "class.html"]:
        text = page.read_text()
        assert "<script" not in text
        assert not re.search(r"(src|href)=\"(?!feedback/)", text)
        for part in ("prefers-color-scheme: dark", "@media print", 'name="viewport"', "default-src 'none'"):
            assert part in text


def test_the_class_report(written, rows):
    page = (written / "class.html").read_text()
    for part in (
        "3 submissions, mean",
        "FLAGGED",
        "line 2",
        "<strong>2 students</strong>",
        "sums to 1.25",
        "no notebook",
    ):
        assert part in page
    hardest = report.hardest(rows)
    assert (hardest[0]["name"], hardest[0]["failed"], hardest[0]["tried"]) == ("sums to 1", 2, 2)
    (group,) = report.misconceptions(rows)
    assert (group["slug"], group["students"]) == ("softmax", ["student1", "student2"])
    assert 'href="feedback/student1.html"' in page


def test_messages_that_differ_in_numbers_are_one():
    one = "3 of 40 values are off; the largest difference is at [0, 3]: -2.75e-1 instead of 0.27 (called with q (2, 3))"
    assert report.masked(one) == report.masked(one.replace("40", "96").replace("[0, 3]", "[1]").replace("0.27", "1."))
    assert report.masked("a mask") != report.masked("a task")


def test_everything_is_written_without_any_points(tmp_path):
    output.write(tmp_path, [Row("student1", "", [], [], [])], {"seed": 7})
    output.write(tmp_path, [], {"seed": 7})
    assert "The class" in (tmp_path / "class.html").read_text()


# -- flags -----------------------------------------------------------------------------------------------------

SOFTMAX = {"softmax-rows": Rule(("softmax",))}
SLOPE = {"softmax-rows": Rule((), autograd=False)}


def flagged(source, rules=SOFTMAX, *others):
    """The lines that are flagged in an answer that defines `softmax_rows`."""
    codes = [Code("softmax-rows", source, {("", "softmax_rows"): "softmax-rows"}), *others]
    return [(flag["place"], flag["line"]) for flag in flags.find(codes, rules)]


def within(*lines):
    return "\n".join(["def softmax_rows(x):", *(f"    {line}" for line in lines)])


@pytest.mark.parametrize(
    "line",
    [
        "return torch.softmax(x, -1)",
        "return x.softmax(-1)",
        "return F.log_softmax(x, -1).exp()",
        "return nn.Softmax(-1)(x)",
        "return torch.ops.aten._softmax(x, -1, False)",
        "return torch._C._nn.softmax(x)",
        'return getattr(torch, "softmax")(x, -1)',
        'return torch.__dict__["softmax"](x, -1)',
        'return x.__getattribute__("softmax")(-1)',
        'return getattr(torch, "soft" + "max")(x, -1)',
        'return getattr(torch, "xamtfos"[::-1])(x, -1)',
        'return operator.attrgetter("softmax")(torch)(x, -1)',
        'return eval("torch.soft" "max")(x, -1)',
        "from torch.nn.functional import softmax as s; return s(x, -1)",
        "from torch import softmax; return softmax(x, -1)",
        "return softmax(x, -1)",
        "return scipy.special.softmax(x)",
        'return __import__("torch").special.softmax(x, -1)',
        "self = x; return self.softmax(-1)",
        'return torch.jit.CompilationUnit("...").f(x)',
    ],
)
def test_a_library_function_is_flagged_however_it_is_called(line):
    assert set(flagged(within("y = x", line))) == {("softmax-rows", 3)}


@pytest.mark.parametrize(
    "source",
    [
        "from torch import softmax as s\n" + within("return s(x, -1)"),
        "s = torch.softmax\n" + within("return s(x, -1)"),
        "softmax_rows = torch.softmax",
        "s, t = F.softmax, 3\n" + within("return s(x, -1)"),
        "def help(x): return torch.softmax(x, -1)\n" + within("return help(x)"),
        "class Help:\n    go = staticmethod(torch.softmax)\n" + within("return Help.go(x)"),
    ],
)
def test_what_an_answer_uses_is_read_with_it(source):
    assert flagged(source)


def test_a_helper_in_another_cell_is_read_with_the_answer_that_uses_it():
    mask = Code("mask", "from torch import softmax as s\ndef mask(x): ...", {("", "mask"): "mask"})
    assert flagged(within("return s(x, -1)"), SOFTMAX, mask) == [("mask", 1)]
    assert flagged(within("return x"), SOFTMAX, mask) == []
    other = Code("mask", "def mask(x): return x.softmax(-1)", {("", "mask"): "mask"})
    assert flagged(within("return mask(x)"), SOFTMAX, other) == [("mask", 1)]


@pytest.mark.parametrize(
    "source",
    [
        within(
            '"""A softmax, see torch.softmax."""',
            "# not torch.softmax",
            "e = (x - x.max()).exp()",
            "return e / e.sum()",
        ),
        within("softmax = x.exp()", "softmax = softmax / softmax.sum()", "return softmax"),
        within('raise ValueError("no softmax of this")'),
        "def softmax(x): return x.exp() / x.exp().sum()\n" + within("return softmax(x)"),
        "class softmax_rows:\n    def softmax(self, x): return x\n    def forward(self, x): return self.softmax(x)",
        within("x.requires_grad_()", "return torch.autograd.grad(x.sum(), x)"),
        within("for name in 'ab': setattr(self, name, getattr(self, name + 'c'))"),
        within("model.eval()", "import math, os, sys", "from functools import partial", "return re.compile('a')"),
        "def softmax_rows(x): return x\nchecks.softmax_rows(softmax_rows)",
        "%matplotlib inline\n%%time\n" + within("return x % 3 != 2"),
        within("return (x", "    % 3", "    / 2)"),
        "def softmax_rows(x: return",
    ],
)
def test_what_is_written_by_hand_is_not_flagged(source):
    assert flagged(source) == []


@pytest.mark.parametrize(
    "line",
    [
        "x = x.clone().requires_grad_()",
        "x = torch.zeros(3, requires_grad=True)",
        "return torch.autograd.grad(x.sum(), x)",
        "x.sum().backward()",
        "return x.grad",
        "return torch.func.jacrev(f)(x)",
        "from torch.func import vjp as v",
        "from torch.autograd.functional import jacobian",
        "return torch.ops.aten.threshold_backward(x, x, 0)",
        "return torch.nn.grad.conv2d_input(x)",
        'getattr(x.sum(), "backward")()',
        "with fwAD.dual_level(): return x",
        "import functorch",
    ],
)
def test_every_way_to_automatic_differentiation_is_flagged(line):
    assert flagged(within(line), SLOPE) == [("softmax-rows", 2)]


def test_a_formula_is_not_flagged():
    source = within(
        "grads = self.grads", "x = x.detach()", "self.backward(x)", "return torch.zeros(3, requires_grad=False)"
    )
    assert flagged(source + "\ndef backward(x): ...", SLOPE) == []


@pytest.mark.parametrize(
    "line",
    [
        'expected = sys._getframe(1).f_locals["expected"]',
        "import gc; gc.get_objects()",
        "import ctypes",
        "from inspect import stack",
        "os.fork()",
        "from os import kill",
        "import os as o; o._exit(0)",
        "import subprocess",
        "import socket",
        "import urllib.request",
        "from common.checks import report",
        "import checks",
        "from common import grading",
        "checks.softmax_rows.function = print",
        "print(checks.softmax_rows.function)",
        'sys.modules["checks"]',
        "get_ipython().input_transformers_cleanup.append(f)",
        "import builtins; builtins.print = None",
        "__builtins__",
        "torch.allclose = lambda *a, **k: True",
        "torch.Tensor.__eq__ = f",
        'setattr(torch, "allclose", f)',
        "F.softmax, other = f, 3",
        "class Yes(torch.Tensor): pass",
        "class Yes:\n        def __eq__(self, other): return True",
        'open("solutions.bundle")',
        'torch.load("x")',
        "exec(code)",
        "from unittest import mock",
        "().__class__.__subclasses__()",
        'getattr(sys, "_getframe")',
        "!git show solutions:x",
        "x = !ls",
        "%run other.py",
        "/exec code",
    ],
)
def test_code_that_no_answer_needs_is_flagged(line):
    assert len(set(flagged(within(line), {}))) == 1


def test_given_lines_are_not_flagged_and_a_flag_says_where_it_is():
    given = "import subprocess\n" + within("...")
    code = Code("net.py", given + "\nimport socket", {("", "softmax_rows"): "softmax-rows"}, given)
    assert flags.find([code], SOFTMAX) == [
        {"slug": "", "place": "net.py", "line": 4, "code": "import socket", "reason": flags.NETWORK}
    ]


def test_methods_of_an_answer_file_have_their_own_rules():
    methods = [f"    def {name}(self, x):\n        return x.softmax(-1)" for name in ("forward", "other")]
    source = "\n".join(["class Net:", *methods])
    code = Code("net.py", source, {("Net", "forward"): "net-forward", ("Net", "other"): "net-other"})
    (flag,) = flags.find([code], {"net-forward": Rule(("softmax",)), "net-other": Rule()})
    assert (flag["slug"], flag["place"], flag["line"]) == ("net-forward", "net.py", 3)


def test_what_a_task_asks_for_is_not_flagged_and_only_where_all_who_use_it_may():
    answers = {("", "keep"): "keep", ("", "count"): "count"}
    source = "import tempfile\n\ndef _into(path):\n    return open(path)\n"
    source += "def keep(path):\n    os.replace(_into(path), tempfile.mkdtemp())\n    os.kill(1, 9)\n"
    may = {"keep": Rule(allows=("files",)), "count": Rule()}

    def lines(source, rules):
        return [flag["line"] for flag in flags.find([Code("keep.py", source, answers)], rules)]

    assert lines(source, {}) == [1, 4, 6, 7]
    assert lines(source, may) == [7]
    assert lines(source + "def count(x):\n    return _into(x)", may) == [4, 7]


def test_what_checks_declare_is_read_without_importing_them():
    source = 'A = ("a", "b")\nB = (*A, "c")\n@check("one", points=3, hidden=2, from_scratch=B)\ndef one(): ...\n'
    source += '@check("two", points=1, autograd=False, allows=("files",))\ndef two(): ...\nraise RuntimeError'
    assert flags.rules(source) == {"one": Rule(("a", "b", "c")), "two": Rule((), False, ("files",))}
    assert flags.declared(source)["one"]["hidden"] == 2


def test_the_course_says_what_is_written_from_scratch():
    rules = {slug: rule for base in collect.load_units(ROOT) for slug, rule in base.rules.items()}
    assert {"scaled-dot-product-attention", "conv2d-loops", "batch-norm", "gru-cell", "bce-loss"} <= {
        slug for slug, rule in rules.items() if rule.from_scratch
    }
    assert not rules["mlp-backward"].autograd


# -- similar submissions ---------------------------------------------------------------------------------------

ONE = """
def attention(q, k, v, mask):
    d = q.shape[-1]
    # scores
    scores = q @ k.transpose(-2, -1) / math.sqrt(d)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    largest = scores.amax(dim=-1, keepdim=True)
    weights = torch.exp(scores - largest)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights @ v, weights
"""
RENAMED = re.sub(r"\bd\b", "size", ONE.replace("scores", "s").replace("weights", "attn").replace("# s", "# mine"))
REORDERED = RENAMED.replace("    size = q.shape[-1]\n", "").replace("sqrt(size)", "sqrt( q.shape[-1] )")
OTHER = """
def attention(q, k, v, mask):
    out = []
    for query in q.unbind(-2):
        score = (k * query[..., None, :]).sum(-1) * q.size(-1) ** -0.5
        score = torch.where(mask, score, torch.tensor(-1e9)) if mask is not None else score
        out.append(F.softmax(score, -1))
    weights = torch.stack(out, -2)
    return torch.einsum("...ts,...sd->...td", weights, v), weights
"""
STUB = 'def attention(q, k, v, mask):\n    """Attention."""\n    raise NotImplementedError("attention")'


def alike(*codes, given=STUB):
    rows = [row(f"student{n}", codes={"attention": similar.own(code, given)}) for n, code in enumerate(codes, 1)]
    return {pair["students"]: pair["likeness"] for pair in similar.pairs(rows)}


def test_renamed_and_reordered_copies_are_similar():
    found = alike(ONE, RENAMED, OTHER)
    assert found == {("student1", "student2"): 1}
    assert alike(ONE, REORDERED).keys() == found.keys()


def test_other_answers_stubs_and_short_answers_are_not():
    assert alike(ONE, OTHER) == {}
    assert alike(STUB, STUB) == {}
    assert (
        alike(
            within("return torch.tril(torch.ones(x, x)).bool()"), within("return torch.tril(torch.ones(x, x)).bool()")
        )
        == {}
    )
    assert alike(ONE, ONE, given=ONE) == {}


def test_what_many_have_alike_is_obvious():
    assert len(alike(*[ONE] * 3)) == 3
    assert alike(*[ONE] * 4) == {}
    assert alike(*[ONE] * 4, *[OTHER] * 2).keys() == {("student5", "student6")}


def test_pairs_come_with_code_and_the_whole_class_is_compared():
    codes = [ONE.replace("q.shape", "q.shape" + ".real" * n) for n in range(40)]
    rows = [row(f"student{n}", codes={f"a{m}": code for m in range(3)}) for n, code in enumerate(codes)]
    rows.append(row("copy", codes={"a0": codes[9], "a1": RENAMED + "\n" * 9}))
    found = similar.pairs(rows)
    assert len(found) <= similar.MOST
    assert all(pair["codes"][0] and pair["likeness"] >= similar.LIKENESS for pair in found)


@pytest.mark.parametrize("code", ['"""' * 999, "((((" * 999, "\x00\ud800", "'''\n" * 999, "x = 'a\n'''", "\\\n" * 99])
def test_code_that_is_no_python_is_read_all_the_same(code):
    assert sum(len(one.plain) for one in similar.statements(code)) <= len(code)
    assert similar.own(code, code) == ""
    assert alike(code, code + " ") == {} or len(code) > 100
    assert flagged(code) == [] or "!" in code


def test_similar_submissions_and_their_code_are_in_the_class_report(tmp_path):
    rows = [row(f"student{n}", AnswerResult("attention", 3, 3, "graded"), codes={"attention": ONE}) for n in (1, 2)]
    output.write(tmp_path, rows, {"seed": 7})
    page = (tmp_path / "class.html").read_text()
    assert "Similar submissions" in page
    assert page.count("largest = scores.amax") == 2
    assert "largest" not in (tmp_path / "feedback" / "student1.html").read_text()
