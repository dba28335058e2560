"""Cases: every one runs, points add up, and a message names the property that is wrong."""

from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import grad
from torch.func import grad as func_grad
from torch.func import jvp

from common.checks import CheckFailed, ModuleAnswer, ObjectAnswer, check, find, kind_of, progress


def failing(function, answer, seed=0):
    """Run `function(answer, case)` as the one case of a check and return its message, "" if it passed."""

    @check("some-slug", points=1)
    def one(answer, case):
        with case("a property", points=1, hint="a hint"):
            function(answer, case)

    return one.run(answer, seed).cases[0].message


@check("double", points=6)
def double(answer, case):
    with case("twice a number", points=1, hint="2 x"):
        case.equal(answer(3), 6)
    with case("twice a tensor", points=3, hint="2 x"):
        x = case.randn(4)
        case.close(answer(x), 2 * x, mistakes={"that is the square": x**2})
    with case("keeps the dtype", points=2, hint="no float()"):
        case.dtype(answer(case.randn(2, dtype=torch.float64)), torch.float64)


def test_a_right_answer_earns_everything_and_prints_always_the_same(capsys):
    double(lambda x: x + x)
    first = capsys.readouterr().out
    double(lambda x: 2 * x)
    assert capsys.readouterr().out == first
    assert first.startswith("double: 6 of 6 points\n  ✓ twice a number (1/1)\n")


def test_every_case_runs_whatever_failed_before():
    def answer(x):
        if isinstance(x, int):
            raise RuntimeError("numbers are beneath me")
        return (2 * x).float()

    report = double.run(answer)
    assert [case.points for case in report.cases] == [0, 3, 0]
    assert report.points == 3
    assert "numbers are beneath me" in report.cases[0].message
    assert "line" in report.cases[0].message
    assert "raise RuntimeError" in report.cases[0].message
    assert "float32" in report.cases[2].message
    assert "float64" in report.cases[2].message


def test_a_known_mistake_is_named():
    report = double.run(lambda x: x**2)
    assert report.cases[1].message == "that is the square"


def test_a_stub_is_still_to_do():
    def answer(x):
        raise NotImplementedError("double")

    report = double.run(answer)
    assert report.todo
    assert report.points == 0
    with pytest.raises(CheckFailed, match="Still to do"):
        double(answer)


def test_the_stub_of_another_answer_is_no_stub():
    def answer(x):
        raise NotImplementedError("triple")

    report = double.run(answer)
    assert not report.todo
    assert "triple is still to do" in report.cases[0].message


def test_an_error_about_sizes_tells_the_sizes_and_the_way_to_it():
    def inner(a, b):
        return a @ b

    def outer(a, b):
        return inner(a, b)

    message = failing(lambda answer, case: answer(torch.zeros(2, 3), torch.zeros(2, 4)), outer)
    assert "(called with a (2, 3), b (2, 4))" in message
    assert message.index("in line") < message.index("of inner") < message.index("called in line")
    assert "of outer: return inner(a, b)" in message


def test_torchs_own_not_implemented_error_is_no_stub():
    def answer(x):
        raise NotImplementedError("\"bitwise_and_cpu\" not implemented for 'Float'")

    report = double.run(answer)
    assert not report.todo
    assert "bitwise_and_cpu" in report.cases[0].message


def test_an_answer_that_is_half_done_keeps_its_points():
    def answer(x):
        if isinstance(x, int):
            return 2 * x
        raise NotImplementedError("double")

    report = double.run(answer)
    assert not report.todo
    assert report.points == 1
    assert "stands in `answer`" in report.cases[1].message
    assert "the same as for: twice a tensor" in report.text()


def test_an_answer_that_exits_fails_and_no_more():
    report = double.run(lambda x: exit(3))
    assert len(report.cases) == 3
    assert report.points == 0


def test_an_interrupt_is_not_swallowed():
    def answer(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        double.run(answer)


def test_points_that_do_not_add_up_are_an_authors_error():
    @check("short", points=2)
    def short(answer, case):
        with case("one", points=1, hint=""):
            pass

    with pytest.raises(ValueError, match="do not add up"):
        short.run(None)


def test_a_check_that_fails_outside_a_case_invents_no_points():
    @check("outside", points=3)
    def outside(answer, case):
        with case("one", points=1, hint=""):
            pass
        answer()
        with case("two", points=2, hint=""):
            pass

    report = outside.run(lambda: 1 / 0)
    assert (report.points, report.out_of) == (1, 3)
    assert "ZeroDivisionError" in report.cases[-1].message


def test_the_seed_alone_decides_the_inputs():
    seen = []

    def look(answer, case):
        seen.append((case.randn(3), torch.rand(3), int(case.randint(0, 1000))))

    for seed in (0, 0, 1):
        failing(look, None, seed)
    assert torch.equal(seen[0][0], seen[1][0])
    assert torch.equal(seen[0][1], seen[1][1])
    assert seen[0][2] == seen[1][2]
    assert not torch.equal(seen[0][0], seen[2][0])


def test_a_case_does_not_disturb_the_global_generator():
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    failing(lambda answer, case: torch.rand(7), None)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(
    ("actual", "words"),
    [
        (None, "return statement missing"),
        ([1.0, 2.0], "a list"),
        (torch.zeros(3, 2), "shape (3, 2), expected (2, 3)"),
        (torch.full((2, 3), torch.nan), "NaN"),
        (torch.full((2, 3), torch.inf), "infinity"),
        (3 * torch.arange(6.0).view(2, 3), "3 times"),
        (-torch.arange(6.0).view(2, 3), "-1 times"),
        (torch.zeros(2, 3), "5 of 6 values are off; the largest difference is at [1, 2]: 0 instead of 5"),
        (torch.arange(6.0).view(2, 3) + torch.tensor([0, 0, 1.0]), "2 of 6 values are off"),
    ],
)
def test_close_says_what_is_wrong(actual, words):
    message = failing(lambda answer, case: case.close(actual, torch.arange(6.0).view(2, 3)), None)
    assert words in message


def test_close_sees_exchanged_axes():
    square = torch.arange(9.0).view(3, 3)
    assert "axes -2 and -1 exchanged" in failing(lambda answer, case: case.close(square.T, square), None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_tolerance_follows_the_dtype(dtype):
    exact = torch.linspace(1, 2, 7, dtype=torch.float64)
    eps = torch.finfo(dtype).eps
    assert not failing(lambda answer, case: case.close(exact.to(dtype), exact.to(dtype) * (1 + eps)), None)
    assert failing(lambda answer, case: case.close(exact.to(dtype), exact.to(dtype) * 1.2), None)


def test_parts_unpacks_or_explains():
    x = torch.zeros(2)
    assert "one tensor, expected a tuple (a, b)" in failing(lambda answer, case: case.parts(x, "a", "b"), None)
    assert "3 parts" in failing(lambda answer, case: case.parts((x, x, x), "a", "b"), None)
    assert "return statement" in failing(lambda answer, case: case.parts(None, "a", "b"), None)
    assert not failing(lambda answer, case: case.parts((x, x), "a", "b"), None)


def test_an_answer_gets_copies_and_a_change_in_place_is_found():
    def answer(x):
        x *= 2
        return x

    def look(answer, case):
        x = case.randn(3)
        before = x.clone()
        answer(x)
        assert torch.equal(x, before)
        case.unchanged(answer, x)

    assert "argument number 1 in place" in failing(look, answer)
    assert not failing(look, lambda x: 2 * x)


def test_gradients_or_the_reason_why_there_are_none():
    def look(answer, case):
        (found,) = answer.gradients(torch.tensor([3.0]), upstream=torch.tensor([2.0]))
        case.close(found, torch.tensor([12.0]))

    assert not failing(look, lambda x: x**2)
    assert "detached" in failing(look, lambda x: x.detach() ** 2)
    assert "detached" in failing(look, lambda x: torch.tensor(float(x) ** 2))


def test_a_module_is_reached_by_values_alone():
    def look(answer, case):
        built = answer(3)
        case.true(isinstance(built, ModuleAnswer), "no module")
        built.load_state_dict({"weight": torch.eye(3), "bias": torch.ones(3)})
        x = case.randn(2, 3)
        case.close(built(x), x + 1)
        parameters = built.parameters()
        parameters["bias"] += 5  # a copy: the module keeps its own
        case.close(built(x), x + 1)
        gradients = built.parameter_gradients(x, upstream=torch.ones(2, 3))
        case.close(gradients["bias"], torch.full((3,), 2.0))

    assert not failing(look, lambda n: nn.Linear(n, n))


def test_find_and_progress(capsys):
    module = ModuleType("checks")
    module.double, module.other = double, check("other", points=4, part="second")(lambda answer, case: None)
    assert list(find(module)) == ["double", "other"]
    double(lambda x: 2 * x)
    capsys.readouterr()
    progress(module)
    out = capsys.readouterr().out
    assert "6 of 6" in out
    assert "6 of 10 points" in out
    assert "Next: other" in out
    progress(module, "second")
    out = capsys.readouterr().out
    assert "double" not in out
    assert "0 of 4 points" in out
    with pytest.raises(ValueError, match="no check of the part 'third'"):
        progress(module, "third")


def test_hidden_tests_are_announced(capsys):
    @check("secretive", points=1, hidden=3)
    def secretive(answer, case):
        with case("one", points=1, hint=""):
            pass

    secretive(None)
    assert "3 more points come from hidden tests" in capsys.readouterr().out


def test_a_tolerance_of_ones_own():
    close = torch.tensor([100.0, 1.0]), torch.tensor([100.5, 1.0])
    assert failing(lambda answer, case: case.close(*close, tolerance=1e-3), None)
    assert not failing(lambda answer, case: case.close(*close, tolerance=1e-2), None)


# An object of a class of the student's.


class Layer:
    def __init__(self, n):
        self.weights = {"w": torch.zeros(n, n), "b": torch.zeros(n)}
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x @ self.weights["w"].T + self.weights["b"]


def test_an_object_is_reached_by_values_alone():
    def look(answer, case):
        built = answer(2)
        case.true(isinstance(built, ObjectAnswer), "no object")
        w, x = case.randn(2, 2), case.randn(3, 2)
        built.fill("weights", {"w": w, "b": torch.ones(2)})
        case.close(built.call("forward", x), x @ w.T + 1)
        read = built.read("weights")
        read["w"] += 5  # a copy
        case.close(built.call("forward", x), x @ w.T + 1)
        case.equal(built.read("calls"), 2)
        built.fill("weights", {"b": torch.ones(1)})

    assert "RuntimeError: b has shape (2,), expected (1,)" in failing(look, Layer)
    assert "no attribute 'weights'" in failing(look, lambda n: ByBackward())
    two = failing(
        lambda answer, case: case.equal([one.kind for one in answer(1)], ["Layer", "Layer"]),
        lambda n: (Layer(n), Layer(n)),
    )
    assert not two


@pytest.mark.parametrize("value", [np.int64(6), np.float32(6), torch.tensor(6), 6.0, True + 5])
def test_numbers_of_any_library_are_plain(value):
    assert not failing(lambda answer, case: case.equal(answer(), 6), lambda: value)


def test_what_is_no_tensor_is_called_by_its_own_name():
    assert "is a ndarray, expected a tensor" in failing(
        lambda answer, case: case.shape(answer(), (2,)), lambda: np.zeros(2)
    )
    assert "is a Layer, expected a tensor" in failing(lambda answer, case: case.shape(answer(), (2,)), lambda: Layer(1))


# Automatic differentiation where a formula is asked for.


def by_grad(x):
    x.requires_grad_()
    return grad((x * x).sum(), x)[0]


def by_backward(x):
    x.requires_grad_()
    (x * x).sum().backward()
    return x.grad


def by_a_caught_backward(x):
    try:
        return by_backward(x)
    except Exception:
        return 2 * x


class ByBackward:
    def forward(self, x):
        return by_backward(x)


USES = {
    "a backward pass": by_grad,
    "torch.Tensor.backward": by_backward,
    "torch.autograd.functional.jacobian": lambda x: torch.autograd.functional.jacobian(lambda x: x * x, x).diagonal(),
    "torch.autograd.grad": lambda x: func_grad(lambda x: (x * x).sum())(x),
    "make_dual": lambda x: jvp(lambda x: x * x, (x,), (torch.ones_like(x),))[1],
    "torch.func.jacrev": lambda x: torch.func.jacrev(lambda x: x * x)(x).diagonal(),
}


@check("derivative", points=1, autograd=False)
def derivative(answer, case):
    with case("2 x", points=1, hint="a hint"):
        x = case.randn(3)
        case.close(answer(x), 2 * x)


@pytest.mark.parametrize(("named", "answer"), [*USES.items(), ("torch.Tensor.backward", by_a_caught_backward)])
def test_autograd_is_found_out_and_named(named, answer):
    (case,) = derivative.run(answer).cases
    assert case.points == 0
    assert "automatic differentiation" in case.message
    assert named in case.message
    assert case.known
    assert "hint" not in derivative.run(answer).text()


def test_formulas_pass_where_autograd_is_forbidden():
    assert derivative.run(lambda x: 2 * x).passed
    assert derivative.run(lambda x: 2 * x.requires_grad_()).passed
    assert derivative.run(torch.func.vmap(lambda x: 2 * x)).passed
    by_backward(torch.ones(2))  # and outside of the check it is there as before


def test_autograd_is_forbidden_to_objects_too():
    @check("object", points=1, autograd=False)
    def one(answer, case):
        with case("2 x", points=1, hint=""):
            x = case.randn(3)
            case.close(answer().call("forward", x), 2 * x)

    assert "automatic differentiation" in one.run(ByBackward).cases[0].message


@check("convolution", points=1)
def convolution(answer, case):
    with case("w · x", points=1, hint="a hint"):
        x, w = case.randn(1, 1, 4), case.randn(1, 1, 1)
        case.close(answer.without("conv1d", "convolution")(x, w), w * x)


def by_module(x, w):
    layer = nn.Conv1d(1, 1, 1, bias=False)
    layer.weight = nn.Parameter(w)
    return layer(x)


@pytest.mark.parametrize("answer", [nn.functional.conv1d, torch.conv1d, by_module])
def test_a_forbidden_operation_is_found_out_by_whatever_name_it_is_called(answer):
    (case,) = convolution.run(answer).cases
    assert "torch's own operation `conv" in case.message
    assert case.known
    assert convolution.run(lambda x, w: x * w).passed


def test_what_is_forbidden_holds_for_modules_and_probes_too():
    def look(answer, case):
        built = answer.without("addmm")(2)
        case.close(built.probe(applied, torch.ones(1, 2)), torch.zeros(1, 2))

    assert "`addmm`" in failing(look, lambda n: nn.Linear(n, n))


def applied(function, x):
    return function(x)


def left_behind(function, x):
    model = nn.Identity()
    result = function(model, x)
    return {"result": result, "x": x, "hooks": len(model._forward_hooks)}


def test_a_probe_hands_in_what_is_no_value_and_brings_values_back():
    def forgetful(model, x):
        model.register_forward_hook(lambda *_: None)
        return model(x.mul_(2)).requires_grad_()

    def look(answer, case):
        x = case.randn(3)
        found = answer.probe(left_behind, x)
        case.close(found["result"], 2 * x)
        case.true(found["result"].requires_grad and found["result"].is_leaf, "the flag crosses, the graph does not")
        case.equal(found["hooks"], 1)
        case.same_inputs([x], [x])
        case.same_inputs([x], [found["x"]])

    assert "argument number 1 in place" in failing(look, forgetful)


def test_a_method_is_an_answer():
    class Adder:
        def add(self, x):
            return x.add_(1)

    def look(answer, case):
        method = answer().method("add")
        case.close(method(torch.ones(2)), torch.full((2,), 2.0))
        case.unchanged(method, torch.ones(2))

    assert "argument number 1 in place" in failing(look, Adder)


VALUES = (
    *(None, True, 2, 0.5, "text", torch.float64, torch.device("cpu"), torch.Size([2, 3]), np.float32(2)),
    *((1, [2.0, {"a": (3,)}]), {1, 2}, {(0, 1): "edge"}),
)


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_values_cross_as_they_are(value):
    back = failing(lambda answer, case: case.true(repr(answer(value)) == repr(value), "another value"), lambda x: x)
    assert not back


def test_what_crosses_is_a_copy():
    array, tensor, kept = np.arange(3), torch.arange(3), torch.zeros(2)

    def answer(array, tensor):
        array += 1
        tensor += 1
        return [kept]

    def look(answer, case):
        (result,) = answer(array, tensor)
        answer(array, tensor)
        result += 1
        case.equal(tensor, torch.arange(3))
        case.true(array.tolist() == [0, 1, 2], "the array has changed")
        case.true(not kept.any(), "the answer's own tensor has changed")

    assert not failing(look, answer)


@pytest.mark.parametrize("stranger", [nn.Identity(), lambda x: x, range(3), np.array([None]), object(), iter([])])
def test_an_author_who_hands_in_what_is_no_value_is_told_so(stranger):
    for given in (stranger, [stranger], {"key": (stranger,)}):
        message = failing(lambda answer, case, given=given: answer(given), lambda x: x)
        assert message.startswith(f"TypeError: a case hands a {type(stranger).__name__} to an answer")
        assert "Answer.probe" in message


def test_what_is_no_value_comes_back_as_an_opaque_object():
    def look(answer, case):
        module, generator = answer()
        case.true(isinstance(module, ModuleAnswer) and isinstance(generator, ObjectAnswer), "not wrapped")
        case.equal(kind_of(generator), "generator")
        case.equal(kind_of(module), "module")
        case.close(generator, torch.ones(1))

    assert "the result is a generator, expected a tensor" in failing(look, lambda: [nn.Identity(), (x for x in [1])])
