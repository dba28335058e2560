"""Grading of classifiers that are handed in to the checkpoint project: broken, foreign and hostile ONNX files."""

import json
import subprocess

import onnx
import pytest
from onnx import TensorProto, helper
from test_grading import ROOT, command, hand_in

from common.grading.job import LARGEST_ARTEFACT
from common.notebooks import branch

UNIT = "phase2_transformers/checkpoint_project"
NOTEBOOK = "checkpoint_project.ipynb"
POINTS = 20  # of `classify`, the one answer here that is solved


def with_external_weights(model, folder):
    path = folder / "external.onnx"
    onnx.save_model(
        onnx.load_from_string(model), path, save_as_external_data=True, location="weights", size_threshold=0
    )
    return path.read_bytes()


def hostile(model, nodes):
    """An ONNX file with the metadata of `model` and other nodes."""
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", "length"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "hostile", [tokens], [logits])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    made.metadata_props.extend(onnx.load_from_string(model).metadata_props)
    return made.SerializeToString()


def constant(name, kind, shape, values):
    return helper.make_node("Constant", [], [name], value=helper.make_tensor(name, kind, shape, values))


def hungry():
    """A terabyte of zeros."""
    return [
        constant("shape", TensorProto.INT64, [2], [2**20, 2**18]),
        helper.make_node("ConstantOfShape", ["shape"], ["logits"]),
    ]


def endless():
    """A loop of 2^62 rounds."""
    outputs = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("goes_on", "kept")]
    inputs = [
        helper.make_tensor_value_info("round", TensorProto.INT64, []),
        helper.make_tensor_value_info("before", TensorProto.BOOL, []),
        helper.make_tensor_value_info("held", TensorProto.BOOL, []),
    ]
    steps = [helper.make_node("Identity", ["before"], ["goes_on"]), helper.make_node("Not", ["held"], ["kept"])]
    body = helper.make_graph(steps, "body", inputs, outputs)
    return [
        constant("rounds", TensorProto.INT64, [], [2**62]),
        constant("yes", TensorProto.BOOL, [], [True]),
        helper.make_node("Loop", ["rounds", "yes", "yes"], ["last"], body=body),
        helper.make_node("Cast", ["last"], ["logits"], to=TensorProto.FLOAT),
    ]


def counting():
    """A mean over all tokens, padding among them."""
    return [
        helper.make_node("Cast", ["tokens"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["numbers"], ["mean"], axes=[1], keepdims=1),
        constant("sides", TensorProto.FLOAT, [2], [-1.0, 1.0]),
        helper.make_node("Mul", ["mean", "sides"], ["logits"]),
    ]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifiers")
    solved = branch.make_solutions(ROOT, folder / "solutions") / UNIT
    book = (solved / NOTEBOOK).read_bytes()
    model = (solved / "answers" / "classifier.onnx").read_bytes()
    carried = onnx.load_from_string(model)
    del carried.metadata_props[:]
    files = {
        "right": model,
        "none": None,
        "half": model[: len(model) // 2],
        "pickle": b"\x80\x04cposix\nsystem\n(S'touch owned'\ntR.",
        "external": with_external_weights(model, folder),
        "bare": carried.SerializeToString(),
        "large": model + bytes(LARGEST_ARTEFACT),
        "hungry": hostile(model, hungry()),
        "endless": hostile(model, endless()),
        "counting": hostile(model, counting()),
    }
    submissions = folder / "submissions"
    hand_in(submissions, {f"{who}/{NOTEBOOK}": book for who in files})
    hand_in(submissions, {f"{who}/classifier.onnx": data for who, data in files.items() if data is not None})
    arguments = ("--out", folder / "grades", "--timeout", 40)
    done = subprocess.run(command(submissions, *arguments), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(folder.rglob("owned"))
    found = {}
    for row in json.loads((folder / "grades" / "rows.json").read_text())["rows"]:
        (answer,) = [one for one in row["answers"] if one["slug"] == "classify"]
        said = " ".join(case["message"] for case in answer["cases"])
        found[row["student"]] = answer["points"], said + " ".join(row["remarks"])
    return found


def test_the_reference_earns_all_points(rows):
    assert rows["right"][0] == POINTS, rows["right"][1]


@pytest.mark.parametrize(
    ("who", "message"),
    [
        ("none", "there is no file classifier.onnx"),
        ("half", "no ONNX file, or a damaged one"),
        ("pickle", "no ONNX file, or a damaged one"),
        ("external", "lie in another file"),
        ("bare", "lacks tokenizer and max_length"),
        ("large", "larger than 32 MB"),
        ("hungry", "memory"),
        ("endless", "an endless loop"),
    ],
)
def test_a_bad_classifier_costs_its_points_and_is_named(rows, who, message):
    points, said = rows[who]
    assert points <= 2, said  # for a file that is whole
    assert message in said


def test_a_classifier_that_counts_padding_is_named(rows):
    points, said = rows["counting"]
    assert points < POINTS / 2
    assert "does the model count padding" in said
