"""runtime, data, training, bench and plots."""

import contextlib
import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from common import bench, data, plots, runtime, training
from common.data import MissingData, images, text

needs_mirror = pytest.mark.skipif("COURSE_DATA" not in os.environ, reason="COURSE_DATA names no mirror of the data")


def test_import_common_is_free():
    code = "import sys; before = len(sys.modules); import common; print(len(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 3


# -- runtime ------------------------------------------------------------------------------------------------


def test_start_seeds_and_tells(capsys, monkeypatch):
    monkeypatch.delenv("COURSE_SCALE", raising=False)
    runtime.start(seed=3)
    first = torch.rand(2)
    runtime.start(seed=3)
    assert torch.equal(torch.rand(2), first)
    assert "scale: quick" in capsys.readouterr().out


def test_scale(monkeypatch):
    monkeypatch.delenv("COURSE_SCALE", raising=False)
    assert runtime.pick(quick=1, full=2) == 1
    monkeypatch.setenv("COURSE_SCALE", "full")
    assert runtime.pick(quick=1, full=2) == 2
    monkeypatch.setenv("COURSE_SCALE", "large")
    with pytest.raises(ValueError, match="'quick' or 'full'"):
        runtime.scale()


@pytest.mark.parametrize(
    ("chosen", "capabilities", "expected"),
    [
        ("cpu", {"avx2": True, "avx512_bf16": False}, torch.float32),
        ("cpu", {"avx512_bf16": True}, torch.bfloat16),
        ("cpu", {"bf16": True}, torch.bfloat16),
        ("mps", {"bf16": True}, torch.float32),
    ],
)
def test_bfloat16_only_where_it_is_fast(monkeypatch, chosen, capabilities, expected):
    monkeypatch.setattr(runtime, "device", lambda: torch.device(chosen))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert runtime.autocast_dtype() == expected


def test_record_prints_and_appends(monkeypatch, tmp_path, capsys):
    runtime.record("accuracy", "97 %")
    assert capsys.readouterr().out == "accuracy: 97 %\n"
    monkeypatch.setenv("COURSE_RESULTS", str(tmp_path / "lines"))
    runtime.record("accuracy", "97 %")
    runtime.record("time", "3 s")
    lines = (tmp_path / "lines").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [["accuracy", "97 %"], ["time", "3 s"]]


# -- data ---------------------------------------------------------------------------------------------------

CONTENT = b"some data"
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.delenv("COURSE_DATA", raising=False)
    monkeypatch.setattr(data, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def fetch(url):
    return data.fetch("set/file.txt", url=url, sha256=SHA)


def test_fetch_downloads_once_and_checks(cache, tmp_path):
    source = tmp_path / "source.txt"
    source.write_bytes(CONTENT)
    assert fetch(source.as_uri()).read_bytes() == CONTENT
    source.unlink()
    assert fetch(source.as_uri()).read_bytes() == CONTENT


def test_a_wrong_or_absent_download_leaves_nothing_behind(cache, tmp_path):
    source = tmp_path / "source.txt"
    with pytest.raises(MissingData, match="COURSE_DATA"):
        fetch(source.as_uri())
    source.write_bytes(b"half of the da")
    with pytest.raises(MissingData, match="could not be downloaded"):
        fetch(source.as_uri())
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_a_damaged_file_is_found(cache):
    path = cache / "set" / "file.txt"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT[:4])
    with pytest.raises(MissingData, match="Delete it and run this again"):
        fetch("file:///nowhere")


@pytest.mark.parametrize("here", ["elsewhere", "course/unit"])
def test_a_relative_mirror_counts_from_here_or_from_the_top(monkeypatch, tmp_path, here):
    for folder in (here, "mirror", "course"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(data, "CACHE", tmp_path / "course" / "data")
    monkeypatch.chdir(tmp_path / here)
    monkeypatch.setenv("COURSE_DATA", "../mirror")
    assert data.mirror() == tmp_path / "mirror"


def test_a_mirror_is_never_left(cache, monkeypatch, tmp_path):
    source = tmp_path / "source.txt"
    source.write_bytes(CONTENT)
    mirror = tmp_path / "mirror"
    monkeypatch.setenv("COURSE_DATA", str(mirror))
    with pytest.raises(MissingData, match="no such folder"):
        fetch(source.as_uri())
    mirror.mkdir()
    with pytest.raises(MissingData, match="is missing"):
        fetch(source.as_uri())
    (mirror / "set").mkdir()
    (mirror / "set" / "file.txt").write_bytes(CONTENT)
    assert fetch(source.as_uri()) == mirror / "set" / "file.txt"


def test_python_manual_is_english_prose():
    prose = text.python_manual()
    assert len(prose) > 100_000
    words = re.findall(r"[a-z]+", prose.lower())
    assert words.count("the") > 0.03 * len(words)


def test_imdb_in_a_mirror(tmp_path, monkeypatch):
    rows = [{"text": "Fine<br />film", "label": 1}, {"text": "Naïve", "label": 0}]
    content = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    (tmp_path / "imdb").mkdir()
    (tmp_path / "imdb" / "test.jsonl.gz").write_bytes(content)
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    with pytest.raises(MissingData, match="damaged"):
        text.imdb("test")
    monkeypatch.setitem(text._IMDB, "test", hashlib.sha256(content).hexdigest())
    assert text.imdb("test") == (["Fine<br />film", "Naïve"], [1, 0])
    with pytest.raises(MissingData, match="is missing"):
        text.imdb("train")


def test_imdb_from_the_hub(monkeypatch):
    import datasets

    def load_dataset(name, split):
        if split == "train":
            raise ConnectionError("no network\nat all")
        return datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})

    monkeypatch.delenv("COURSE_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert text.imdb("test") == (["a", "b"], [0, 1])
    with pytest.raises(MissingData, match=r"\(no network\)"):
        text.imdb("train")


def test_multi30k_in_a_mirror(tmp_path, monkeypatch):
    (tmp_path / "multi30k").mkdir()
    for language, lines in (("de", "Ein Hund.\nZwei Männer.\n"), ("en", "A dog.\nTwo men.\n")):
        content = gzip.compress(lines.encode())
        (tmp_path / "multi30k" / f"val.{language}.gz").write_bytes(content)
        monkeypatch.setitem(text._MULTI30K, f"val.{language}", hashlib.sha256(content).hexdigest())
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    assert text.multi30k("val") == (["Ein Hund.", "Zwei Männer."], ["A dog.", "Two men."])


@needs_mirror
def test_labelled_reviews_and_translations_of_the_mirror():
    reviews, labels = text.imdb("test")
    assert (len(reviews), sum(labels)) == (25_000, 12_500)
    german, english = text.multi30k("train")
    assert (len(german), len(english)) == (29_000, 29_000)


@needs_mirror
def test_tiny_shakespeare():
    assert len(text.tiny_shakespeare()) == 1_115_394


def test_digits_are_divided_without_overlap():
    known, known_labels, new, new_labels = images.digits(held_out=100, seed=1)
    assert known.shape == (1697, 64)
    assert new.shape == (100, 64)
    assert len(known_labels) == 1697
    assert set(new_labels.tolist()) == set(range(10))
    assert 0 <= known.min() < known.max() == 1
    again = images.digits(held_out=100, seed=1)
    assert torch.equal(again[2], new)


# -- training -----------------------------------------------------------------------------------------------


def squared_error(model, batch):
    x, y = batch
    return ((model(x) - y) ** 2).mean()


def line(count):
    x = torch.randn(64, 1, generator=torch.Generator().manual_seed(0))
    return [(x, 3 * x + 1)] * count


def test_fit_learns_and_leaves_the_model_in_evaluation_mode():
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    losses = training.fit(model, line(200), squared_error, lr=0.1, steps=200, warmup=10)
    assert len(losses) == 200
    assert losses[-1] < 1e-3 < losses[0]
    assert not model.training


def test_fit_follows_adamw_with_the_schedule():
    torch.manual_seed(0)
    ours = nn.Linear(1, 1)
    theirs = nn.Linear(1, 1)
    theirs.load_state_dict(ours.state_dict())
    training.fit(ours, line(8), squared_error, lr=0.1, steps=8, warmup=4, clip=1e9)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=0.1, weight_decay=0.0)
    rates = [0.025, 0.05, 0.075, 0.1] + [0.01 + 0.045 * (1 + c) for c in (1, 2**-0.5, 0, -(2**-0.5))]
    for rate, batch in zip(rates, line(8), strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        squared_error(theirs, batch).backward()
        optimizer.step()
    assert torch.allclose(ours.weight, theirs.weight, atol=1e-6)


def test_fit_stops_at_a_loss_that_is_not_finite_and_at_the_end_of_the_data():
    with pytest.raises(FloatingPointError, match="smaller lr"):
        training.fit(nn.Linear(1, 1), line(2), lambda model, batch: torch.tensor(torch.nan), lr=0.1, steps=2)
    with pytest.raises(ValueError, match="after 3 of 5 steps"):
        training.fit(nn.Linear(1, 1), line(3), squared_error, lr=0.1, steps=5)


def test_fit_averages_the_gradients_of_accumulated_batches():
    whole, parts = nn.Linear(1, 1), nn.Linear(1, 1)
    parts.load_state_dict(whole.state_dict())
    ((x, y),) = line(1)
    training.fit(whole, [(x, y)] * 5, squared_error, lr=0.1, steps=5)
    halves = [(x[:32], y[:32]), (x[32:], y[32:])] * 5
    losses = training.fit(parts, halves, squared_error, lr=0.1, steps=5, accumulate=2)
    assert len(losses) == 5
    assert torch.allclose(whole.weight, parts.weight, atol=1e-6)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_fit_computes_in_low_precision_and_keeps_the_weights_in_float32(precision):
    model, seen = nn.Linear(1, 1), set()

    def loss_of(model, batch):
        seen.add(model(batch[0]).dtype)
        return squared_error(model, batch)

    losses = training.fit(model, line(100), loss_of, lr=0.1, steps=100, precision=precision)
    assert seen == {precision}
    assert model.weight.dtype == torch.float32
    assert losses[-1] < 0.02 * losses[0]


def noisy_training(file, steps=20, stop_after=None, **more):
    """A training whose batches and dropout are random."""

    class Killed(Exception):
        pass

    def batches():
        generator = torch.Generator().manual_seed(1)
        for number in range(steps):
            if number == stop_after:
                raise Killed
            x = torch.randn(8, 3, generator=generator)
            yield x, x.sum(1, keepdim=True)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    with contextlib.suppress(Killed):
        training.fit(model, batches(), squared_error, lr=0.1, steps=steps, checkpoint=file, checkpoint_every=4, **more)
    return torch.cat([value.detach().flatten() for value in model.parameters()])


def test_fit_resumes_to_the_very_same_weights(tmp_path):
    whole = noisy_training(None)
    noisy_training(tmp_path / "run.pt", stop_after=11)
    assert (tmp_path / "run.pt").exists()
    assert torch.equal(noisy_training(tmp_path / "run.pt"), whole)
    assert torch.equal(noisy_training(tmp_path / "run.pt"), whole)  # already at the end
    assert [path.name for path in tmp_path.iterdir()] == ["run.pt"]


def test_fit_refuses_a_damaged_checkpoint_and_one_of_another_training(tmp_path):
    file = tmp_path / "run.pt"
    noisy_training(file)
    with pytest.raises(ValueError, match="Delete it"):
        training.fit(nn.Linear(1, 1), line(2), squared_error, lr=0.1, steps=2, checkpoint=file)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="Delete it"):
        noisy_training(file)


def test_fit_measures_in_evaluation_mode_and_writes_for_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = nn.Linear(1, 1)

    def measure():
        assert not model.training
        assert not model.weight.sum().requires_grad
        return {"validation/bias": model.bias.item()}

    training.fit(model, line(5), squared_error, lr=0.1, steps=5, measure=measure, measure_every=2, log=tmp_path)
    curves = EventAccumulator(str(tmp_path))
    curves.Reload()
    assert [event.step for event in curves.Scalars("validation/bias")] == [2, 4, 5]
    assert [event.step for event in curves.Scalars("train/loss")] == [1, 2, 3, 4, 5]
    assert curves.Scalars("train/lr")[0].value == pytest.approx(0.1)


# -- bench --------------------------------------------------------------------------------------------------


def test_peak_bytes_counts_what_is_held_together():
    def keeps_one():
        a = torch.empty(1000, 1000)
        del a
        return torch.empty(1000, 1000)

    def keeps_two():
        return torch.empty(1000, 1000), torch.empty(1000, 1000)

    assert bench.peak_bytes(keeps_one) == pytest.approx(4e6, rel=0.01)
    assert bench.peak_bytes(keeps_two) == pytest.approx(8e6, rel=0.01)


def test_median_seconds_leaves_out_the_first_call():
    calls = []
    assert bench.median_seconds(lambda: calls.append(1), repeats=3) >= 0
    assert len(calls) == 4


# -- plots --------------------------------------------------------------------------------------------------


@pytest.fixture
def pyplot():
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    plots.style()
    yield plt
    plt.close("all")


def test_attention_maps_show_the_weights(pyplot):
    weights = torch.rand(2, 3, 3).softmax(-1)
    plots.head_maps(weights, ["a", "b", "c"], columns=2, titles=["one", "two"])
    left, right = pyplot.gcf().axes
    assert (left.get_title(), right.get_title()) == ("one", "two")
    assert torch.allclose(torch.tensor(left.images[0].get_array()), weights[0].double())
    assert [label.get_text() for label in left.get_yticklabels()] == ["a", "b", "c"]


def test_curves_and_bars(pyplot, tmp_path: Path):
    _, (left, right) = pyplot.subplots(1, 2)
    plots.curves({"a": [3.0, 2.0, 1.0], "b": [1.0, 1.0, 1.0]}, xlabel="step", ylabel="loss", smooth=2, ax=left)
    plots.bars({"x": 1.0, "y": 2.0}, xlabel="bits", ax=right)
    assert left.get_xlabel() == "step"
    assert list(left.lines[1].get_ydata()) == [2.5, 1.5]
    assert right.get_xlabel() == "bits"
    pyplot.savefig(tmp_path / "figure.png")
