"""Holds drift.py against SciPy, alibi-detect and evidently: agreement, false alarms, speed.

    python benchmark.py [--keep folder] [--windows 1000]        (make bench)

SciPy is the course's own. alibi-detect and evidently need other versions of NumPy and much besides, so each is
installed into an environment of its own, which is removed afterwards; with --keep it stays in the folder, and is used
again. All get the same reference and the same windows, and are measured in the same run, one after another, without
loading; ratios are their time by ours. What cannot be installed is named, and the rest is measured.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import drift
import model
import numpy as np
import prepare
from detector import Detector, distances
from features import QUANTITIES
from scipy import stats

from common.bench import peers

ALIBI = """
import sys, json, time, numpy as np
from alibi_detect.cd import KSDrift
data = np.load(sys.argv[1])
reference, windows = data["reference"], data["windows"]
detector = KSDrift(reference, p_val=0.05, correction="bonferroni", alternative="two-sided")
detector.predict(windows[0])
began = time.perf_counter()
found = [detector.predict(window, return_p_val=True, return_distance=True)["data"] for window in windows]
took = time.perf_counter() - began
json.dump({"seconds": took, "distances": [one["distance"].tolist() for one in found],
           "p": [one["p_val"].tolist() for one in found], "alarms": [int(one["is_drift"]) for one in found]},
          open(sys.argv[2], "w"))
"""
EVIDENTLY = """
import sys, json, time, warnings, numpy as np, pandas as pd
warnings.filterwarnings("ignore")
from evidently import DataDefinition, Dataset, Report
from evidently.presets import DataDriftPreset
data = np.load(sys.argv[1])
names = [f"q{i}" for i in range(data["reference"].shape[1])]
definition = DataDefinition(numerical_columns=names)
def dataset(rows):
    return Dataset.from_pandas(pd.DataFrame(rows, columns=names), data_definition=definition)
reference, report = dataset(data["reference"]), Report([DataDriftPreset(num_method="ks", num_threshold=0.05)])
def p_values(window):
    found = {}
    for metric in report.run(dataset(window), reference).dict()["metrics"]:
        text = json.dumps(metric, default=str)
        if "ValueDrift" in text:
            name = next(name for name in names if f'"{name}"' in text or f"column={name}," in text)
            found[name] = float(metric["value"])
    return [found[name] for name in names]
p_values(data["windows"][0])
count = min(len(data["windows"]), int(sys.argv[3]))
began = time.perf_counter()
found = [p_values(window) for window in data["windows"][:count]]
took = time.perf_counter() - began
json.dump({"seconds": took, "p": found, "alarms": [int(min(p) <= 0.05) for p in found]}, open(sys.argv[2], "w"))
"""
PEERS = {
    "alibi-detect": (["alibi-detect==0.13.0", "setuptools<81"], ALIBI),
    "evidently": (["evidently==0.7.23", "pandas<3"], EVIDENTLY),
}


def windows_without_drift(count):
    """Return a reference (m, F) and windows (count, n, F) of the images that the model has not learned from."""
    train, reference, pool, _ = prepare.split()
    trained = model.train(train.images, train.labels)
    rows = trained.answer(np.concatenate([reference.images, pool.images]))[2]
    rng = np.random.default_rng(5)
    rows, n = rows[rng.permutation(len(rows))], prepare.WINDOW
    rest = rows[prepare.REFERENCE :]
    return rows[: prepare.REFERENCE], np.stack([rest[rng.permutation(len(rest))[:n]] for _ in range(count)])


def beside_scipy(repeats=300):
    """Compare distances and p-values with SciPy's on samples with and without ties; print agreement and speed."""
    rng, worst, ours, theirs = np.random.default_rng(0), [0.0, 0.0, 0.0], 0.0, 0.0
    for _ in range(repeats):
        m, n = rng.integers(5, 120, size=2)
        a, b = rng.standard_normal(m), rng.standard_normal(n) + rng.choice([0, 0.5])
        if rng.random() < 0.5:
            a, b = np.round(2 * a), np.round(2 * b)
        began = time.perf_counter()
        gap = drift.ks_statistic(a, b)
        p = drift.ks_exact(gap, m, n)
        middle = time.perf_counter()
        right = stats.ks_2samp(a, b, method="exact")
        ours, theirs = ours + middle - began, theirs + time.perf_counter() - middle
        worst[0] = max(worst[0], abs(gap - right.statistic))
        worst[1] = max(worst[1], abs(p - right.pvalue))
        table = np.stack([np.bincount(rng.integers(0, 6, size), minlength=6) for size in (m, n)])
        table = table[:, table.sum(0) > 0]
        samples = [np.repeat(np.arange(table.shape[1]), row) for row in table]
        chi = stats.chi2_contingency(table, correction=False).statistic
        worst[2] = max(worst[2], abs(drift.class_drift(*samples, table.shape[1]) - chi) / max(chi, 1))
    print(f"SciPy, {repeats} pairs of samples, half of them with ties; largest differences:")
    print(f"  KS distance {worst[0]:.1e}, exact p-value {worst[1]:.1e}, chi-squared {worst[2]:.1e}")
    print(f"  distance and exact p-value: SciPy's time by ours {theirs / ours:.2f}")


def peer(name, folder, data, some):
    """Measure another library on the windows; return what it found, or None where it cannot be had."""
    packages, script = PEERS[name]
    try:
        python = peers(folder / name, *packages, alone=True)
        target = data.with_name(f"{name}.json")
        subprocess.run([python, "-c", script, data, target, str(some)], check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        words = (error.stderr or "the installation failed").strip().splitlines()[-1]
        print(f"{name}: not measured ({words})")
        return None
    return json.loads(target.read_text())


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--keep", type=Path, help="keep the environments in this folder, or use those that are there")
    parser.add_argument("--windows", type=int, default=1000)
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    options = parser.parse_args()
    beside_scipy()
    reference, windows = windows_without_drift(options.windows)
    detector = Detector.fit(reference, windows.shape[1], draws=1000)
    numbers = len(QUANTITIES)
    began = time.perf_counter()
    alarms = [bool((detector.ratios(window) > 1).any()) for window in windows]
    seconds = (time.perf_counter() - began) / len(windows)
    m, n = len(reference), windows.shape[1]
    gaps = np.array([distances(reference, window)[:numbers] for window in windows]) / np.sqrt(m * n / (m + n))
    p = np.array([[drift.ks_asymptotic(gap, m, n) for gap in row] for row in gaps])
    print(f"\n{len(windows)} windows of {n} without drift, one reference of {m}, {numbers} numbers and the class")
    print(f"{'':44}{'false alarms':>14}{'ms a window':>14}{'by ours':>10}")
    print(f"{'ours, limits from the reference':44}{np.mean(alarms):>14.1%}{1000 * seconds:>14.2f}{1:>10.1f}")
    with tempfile.TemporaryDirectory() as made:
        data = Path(made, "windows.npz")
        np.savez(data, reference=reference[:, :numbers], windows=windows[:, :, :numbers])
        for name in options.peers:
            found = peer(name, (options.keep or Path(made)).resolve(), data, 100)
            if found is None:
                continue
            count = len(found["p"])
            theirs = found["seconds"] / count
            line = f"{name}, {count} windows"
            print(f"{line:44}{np.mean(found['alarms']):>14.1%}{1000 * theirs:>14.2f}{theirs / seconds:>10.1f}")
            if "distances" in found:
                print(f"    largest difference of distances: {np.abs(gaps[:count] - found['distances']).max():.1e}")
            if name == "evidently":  # SciPy's exact p-value; alibi-detect asks SciPy for the asymptotic one
                exact = np.array([[drift.ks_exact(gap, m, n) for gap in row] for row in gaps[:20]])
                off = np.abs(exact - np.array(found["p"])[:20]).max()
                print(f"    largest difference of p-values, ours exact, 20 windows: {off:.1e}")
            else:
                off = np.abs(p[:count] - np.array(found["p"])).max()
                print(f"    largest difference of p-values, ours by the series: {off:.1e}")


if __name__ == "__main__":
    main()
