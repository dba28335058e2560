"""Scrapes a service as Prometheus does, and draws the panels of the Grafana dashboard from what it kept."""

import json
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from features import WATCHED
from metrics import histogram_quantile, increase
from prometheus_client.parser import text_string_to_metric_families

from common import plots
from common.serving import free_port, started


@dataclass
class Scrapes:
    """What was read from /metrics, one time after another."""

    times: list = field(default_factory=list)
    samples: list = field(default_factory=list)  # for each time {(name, labels): value}

    def scrape(self, url, time):
        """Read /metrics once; `time` says when it was, in hours of the simulated day."""
        with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        found = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
        self.times.append(time)
        self.samples.append(found)

    def series(self, name, **labels):
        """Return the values of one metric over time; NaN where it was not there yet."""
        key = (name, tuple(sorted(labels.items())))
        return [sample.get(key, np.nan) for sample in self.samples]

    def labelled(self, name, label):
        """Return the values that a label of a metric has had."""
        found = {dict(labels)[label] for sample in self.samples for (one, labels) in sample if one == name}
        return sorted(found, key=lambda value: (float(value) if value.replace(".", "").isdigit() else 1e9, value))

    def growth(self, name, back=4, **labels):
        """Return for each time by how much a counter has grown since `back` scrapes before, by your `increase`."""
        values = self.series(name, **labels)
        return [increase(values[max(0, end - back) : end + 1]) for end in range(len(values))]

    def buckets(self, name):
        """Return the bounds of a histogram's buckets and what they counted, at the last time."""
        labels = sorted(self.labelled(f"{name}_bucket", "le"), key=float)
        return [float(label) for label in labels], [self.series(f"{name}_bucket", le=label)[-1] for label in labels]

    def quantile(self, q, name, back=4):
        """Return for each time a quantile of what a histogram has counted lately, by your `histogram_quantile`."""
        bounds = sorted(self.labelled(f"{name}_bucket", "le"), key=float)
        counts = [self.growth(f"{name}_bucket", back, le=bound) for bound in bounds]
        numbers = [float(bound) for bound in bounds]
        return [histogram_quantile(q, numbers, list(column)) for column in zip(*counts, strict=True)]


def draw(scrapes, events, accuracy=None):
    """Draw the day: traffic, latency, confidence, classes, drift by quantity, and the alarm.

    Args:
        scrapes: a `Scrapes`, four an hour.
        events: (begin, end, name, strength) of what really happened; shaded.
        accuracy: {hour: share of right answers}, which in production nobody would know.
    """
    hours = scrapes.times
    figure, axes = plt.subplots(6, 1, figsize=(10, 13.5), sharex=True, height_ratios=[1, 1, 1, 1, 2.2, 1])
    traffic, latency, confidence, classes, drift, alarm = axes
    for status in scrapes.labelled("model_requests_total", "status"):
        grown = scrapes.growth("model_requests_total", status=status)
        if status == "200" or any(grown):
            traffic.plot(hours, grown, label=f"status {status}")
    traffic.set(ylabel="requests\nin an hour")
    traffic.legend(loc="upper right", ncols=3)
    for q in (0.5, 0.99):
        latency.plot(hours, 1000 * np.array(scrapes.quantile(q, "model_latency_seconds")), label=f"{q:.0%}")
        confidence.plot(
            hours, scrapes.quantile(1 - q if q > 0.5 else q, "model_confidence"), label=f"{min(q, 1 - q):.0%}"
        )
    latency.set(ylabel="latency\nin ms", ylim=(0, None))
    latency.legend(loc="upper right", ncols=2)
    confidence.set(ylabel="confidence\n(percentiles)", ylim=(0, 1.02))
    confidence.legend(loc="lower right", ncols=2)
    digits = scrapes.labelled("model_predictions_total", "digit")
    grown = np.array([scrapes.growth("model_predictions_total", digit=digit) for digit in digits])
    shares = grown / np.maximum(grown.sum(axis=0), 1)
    classes.stackplot(hours, shares, colors=plt.cm.tab10.colors)
    classes.set(ylabel="shares of the\nclasses 0 to 9", ylim=(0, 1))
    ratios = np.array([scrapes.series("model_drift_ratio", quantity=name) for name in WATCHED])
    edges = np.append(hours, hours[-1] + hours[1] - hours[0]) - (hours[1] - hours[0])
    shown = drift.pcolormesh(edges, np.arange(len(WATCHED) + 1), ratios, cmap="RdBu_r", vmin=0, vmax=2)
    drift.set_yticks(np.arange(len(WATCHED)) + 0.5, WATCHED)
    drift.invert_yaxis()
    drift.grid(False)
    figure.colorbar(shown, ax=drift, label="distance by its limit", pad=0.01)
    alarm.fill_between(hours, scrapes.series("model_drift_alarm"), step="pre", color=plots.COLOURS[1], label="alarm")
    if accuracy:
        alarm.plot(list(accuracy), list(accuracy.values()), color="black", linewidth=1, label="accuracy (unknown)")
    alarm.set(ylabel="alarm", ylim=(0, 1.05), xlabel="hour of the day", xlim=(0, 24), xticks=range(0, 25, 2))
    alarm.legend(loc="lower left", ncols=2)
    for begin, end, name, _ in events:
        for ax in (traffic, latency, confidence, alarm):
            ax.axvspan(begin, end, color="black", alpha=0.08, linewidth=0)
        drift.axvline(begin, color="black", linewidth=1, linestyle=":")
        drift.axvline(end, color="black", linewidth=1, linestyle=":")
        traffic.text((begin + end) / 2, 1.02, name, transform=traffic.get_xaxis_transform(), ha="center", fontsize=9)
    return figure


# -- the real Prometheus --------------------------------------------------------------------------------------


def prometheus(url, folder, port=None, hurried=True):
    """Start Prometheus, which asks the service at `url`; for a `with` block.

    The unit's prometheus.yml is taken, with this address in it.

    Args:
        url: of the service.
        folder: where it keeps what it reads.
        port: its own; a free one when left out.
        hurried: whether it reads and judges every second instead of as prometheus.yml says.
    """
    here, port = Path(__file__).resolve().parent, port or free_port()
    text = (here / "prometheus.yml").read_text(encoding="utf-8")
    text = text.replace("localhost:8000", url.removeprefix("http://")).replace("alerts.yml", str(here / "alerts.yml"))
    if hurried:
        text = text.replace("scrape_interval: 5s", "scrape_interval: 1s").replace("interval: 15s", "interval: 1s")
    config = Path(folder, "prometheus.yml")
    config.write_text(text, encoding="utf-8")
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder}/tsdb"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    return started(command, url=f"http://127.0.0.1:{port}", ready="/-/ready", log=Path(folder, "prometheus.log"))


def ask_prometheus(url, query):
    """Return what a query in PromQL gives: a list of (labels, value)."""
    words = urllib.parse.urlencode({"query": query})
    with urllib.request.urlopen(f"{url}/api/v1/query?{words}", timeout=5) as answer:
        found = json.load(answer)["data"]["result"]
    return [({k: v for k, v in one["metric"].items() if k != "__name__"}, float(one["value"][1])) for one in found]


def wait_for(url, query, value, timeout=15.0):
    """Wait until a query gives at least this value.

    Raises:
        TimeoutError: it did not in time.
    """
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if any(one >= value for _, one in ask_prometheus(url, query)):
            return
        time.sleep(0.2)
    raise TimeoutError(f"{query} did not reach {value} within {timeout:g} s")
