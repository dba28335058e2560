"""The project `monitoring` as it runs: its service, its journal under kill -9, its metrics, rules and dashboard.

The service runs with the reference answers: the unit of the branch `solutions`, or the folder MONITORING_UNIT.
PostgreSQL and Prometheus are really run where they are installed; otherwise these tests are skipped and say so.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from common.course import find_root
from common.serving import free_port, started

for _name in ("fastapi", "uvicorn", "sqlalchemy", "prometheus_client"):
    pytest.importorskip(_name)

yaml = pytest.importorskip("yaml")

ROOT = find_root()
NEEDED = "is not installed here: this was NOT tested. "


@pytest.fixture(scope="session")
def unit(tmp_path_factory):
    """The solved unit, with a model and a reference."""
    target = tmp_path_factory.mktemp("solved")
    if folder := os.environ.get("MONITORING_UNIT"):
        unit = target / "monitoring"
        shutil.copytree(folder, unit)
    else:
        from common.notebooks import branch

        unit = branch.preview(ROOT, target / "solutions") / "projects" / "monitoring"
    subprocess.run([sys.executable, "prepare.py"], cwd=unit, check=True, env=environment())
    return unit


def environment(**more):
    """The environment of a process of the unit: `common` is this course's."""
    return os.environ | {"PYTHONPATH": os.environ.get("PYTHONPATH", str(ROOT)), "OMP_NUM_THREADS": "1"} | more


def service(unit, journal):
    """Start the service; `journal` is a file or the URL of a database."""
    port = free_port()
    url = str(journal) if "://" in str(journal) else f"sqlite:///{journal}"
    command = [sys.executable, "-m", "uvicorn", "--factory", "service:create", "--port", str(port)]
    return started(command, url=f"http://127.0.0.1:{port}", cwd=unit, env=environment(JOURNAL_URL=url))


def ask(url, images, timeout=10):
    """Ask for the digits of images; return the answer."""
    body = json.dumps({"images": np.asarray(images).tolist()}).encode()
    request = urllib.request.Request(f"{url}/predict", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return json.load(answer)


def status_of(url, body):
    """Return the status and the text with which a body is answered."""
    request = urllib.request.Request(f"{url}/predict", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def exposed(url):
    """Return {name with labels: value} of /metrics."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {key: float(value) for key, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def requests_in(path):
    """Return how many rows the journal has for each request."""
    with contextlib.closing(sqlite3.connect(path)) as journal:
        return dict(journal.execute("SELECT request, count(*) FROM predictions GROUP BY request"))


IMAGES = np.random.default_rng(0).random((7, 8, 8)).round(3)


# -- the journal ----------------------------------------------------------------------------------------------


def test_an_answer_survives_kill_9(unit, tmp_path):
    journal, answered, running = tmp_path / "journal.db", [], True

    def client(url):
        with contextlib.suppress(OSError):
            while running:
                answered.append(ask(url, IMAGES[:3])["request"])

    with service(unit, journal) as server:
        clients = [threading.Thread(target=client, args=(server.url,)) for _ in range(4)]
        for one in clients:
            one.start()
        deadline = time.monotonic() + 20
        while len(answered) < 60 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(server.pid, signal.SIGKILL)
        running = False
        for one in clients:
            one.join(timeout=15)
    assert len(answered) >= 60
    kept = requests_in(journal)
    assert set(answered) <= set(kept), "an answer was sent that the journal does not know"
    assert set(kept.values()) == {3}, "a request is in the journal in part"
    assert len(kept) - len(answered) <= 4  # written down, but killed before the answer: one a client at most


def test_the_window_goes_on_after_a_restart(unit, tmp_path):
    journal = tmp_path / "journal.db"
    images = np.resize(IMAGES, (30, 8, 8))
    with service(unit, journal) as server:
        ask(server.url, images)
        assert 'model_drift_ratio{quantity="class"}' not in exposed(server.url)
        os.kill(server.pid, signal.SIGKILL)
    with service(unit, journal) as server:
        assert exposed(server.url)["model_journal_rows"] == 30
        ask(server.url, images)  # 60 images: a window of 50 is full
        metrics = exposed(server.url)
        assert metrics["model_journal_rows"] == 60
        assert metrics['model_drift_windows_total{drifted="yes"}'] == 1  # noise is no digit
        assert metrics['model_drift_ratio{quantity="edges"}'] > 1


def test_what_cannot_be_written_down_is_not_answered(unit, tmp_path):
    journal = tmp_path / "journal.db"
    with service(unit, journal) as server:
        ask(server.url, IMAGES)
        with contextlib.closing(sqlite3.connect(journal, isolation_level=None)) as other:
            other.execute("CREATE TRIGGER refusing BEFORE INSERT ON predictions BEGIN SELECT RAISE(ABORT, 'full'); END")
            status, text = status_of(server.url, json.dumps({"images": IMAGES.tolist()}).encode())
            assert status == 500
            assert "written down" in text
            other.execute("DROP TRIGGER refusing")
        ask(server.url, IMAGES)
        metrics = exposed(server.url)
        assert metrics['model_requests_total{status="500"}'] == 1
        assert metrics["model_journal_rows"] == sum(requests_in(journal).values()) == 2 * len(IMAGES)


@pytest.fixture
def postgres(tmp_path):
    """A PostgreSQL server of our own."""
    found = [shutil.which("initdb"), *map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb"))]
    found = [Path(one) for one in found if one]
    if not found:
        pytest.skip(f"PostgreSQL {NEEDED}Debian, Ubuntu: apt install postgresql")
    programs, data, port = found[-1].parent, tmp_path / "data", free_port()
    account = {}
    if os.geteuid() == 0:  # it refuses to run as root
        import pwd

        try:
            user = pwd.getpwnam("nobody")
        except KeyError:
            pytest.skip(f"PostgreSQL does not run as root, and there is no account `nobody`: this was {NEEDED}")
        account = {"user": user.pw_uid, "group": user.pw_gid}
        data.mkdir()
        os.chown(data, user.pw_uid, user.pw_gid)
        for parent in (*tmp_path.parents, tmp_path):
            if parent.stat().st_uid == 0 and parent.is_relative_to(tmp_path.parents[2]):
                parent.chmod(0o755)
    made = subprocess.run(
        [programs / "initdb", "-D", data, "-U", "course", "--auth=trust", "-E", "UTF8", "--no-sync"],
        capture_output=True, text=True, **account,
    )  # fmt: skip
    if made.returncode:
        pytest.skip(f"initdb fails here, PostgreSQL was NOT tested: {made.stderr[-300:]}")
    command = [str(programs / "postgres"), "-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", "", "-F"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **account)
    try:
        import sqlalchemy

        url = f"postgresql+psycopg://course@127.0.0.1:{port}/postgres"
        engine = sqlalchemy.create_engine(url)
        for _ in range(150):
            with contextlib.suppress(sqlalchemy.exc.OperationalError), engine.connect():
                break
            time.sleep(0.1)
        engine.dispose()
        yield url
    finally:
        server.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(15)
        server.kill()


def test_postgresql_by_one_line(unit, postgres):
    pytest.importorskip("psycopg")
    with service(unit, postgres) as server:
        answered = [ask(server.url, IMAGES)["request"] for _ in range(10)]
        os.kill(server.pid, signal.SIGKILL)
    import sqlalchemy

    engine = sqlalchemy.create_engine(postgres)
    with engine.connect() as connection:
        rows = connection.execute(sqlalchemy.text("SELECT request, count(*) FROM predictions GROUP BY request"))
        kept = dict(tuple(row) for row in rows)
    engine.dispose()
    assert kept == dict.fromkeys(answered, len(IMAGES))
    with service(unit, postgres) as server:
        assert exposed(server.url)["model_journal_rows"] == 70


# -- requests -------------------------------------------------------------------------------------------------


def test_malformed_requests_are_refused_with_words(unit, tmp_path):
    image = IMAGES[0].tolist()
    bodies = {
        "no JSON": b"{",
        "no images": b'{"images": []}',
        "NaN": json.dumps({"images": [[[float("nan")] * 8] * 8]}).encode(),
        "infinity": json.dumps({"images": [[[float("inf")] * 8] * 8]}).encode(),
        "too bright": json.dumps({"images": [[[1.5] * 8] * 8]}).encode(),
        "wrong shape": json.dumps({"images": [image[:7]]}).encode(),
        "too many": json.dumps({"images": [image] * 257}).encode(),
        "text": b'{"images": [[["a"]]]}',
    }
    with service(unit, tmp_path / "journal.db") as server:
        for what, body in bodies.items():
            status, text = status_of(server.url, body)
            assert status == 422, (what, text)
            assert "detail" in text
        assert exposed(server.url)["model_journal_rows"] == 0
        assert exposed(server.url)['model_requests_total{status="422"}'] == len(bodies)


def test_requests_at_the_same_time_are_counted_and_kept(unit, tmp_path):
    journal, count = tmp_path / "journal.db", 25
    with service(unit, journal) as server:
        clients = [
            threading.Thread(target=lambda: [ask(server.url, IMAGES[:2]) for _ in range(count)]) for _ in range(4)
        ]
        for one in clients:
            one.start()
        for one in clients:
            one.join(timeout=60)
        metrics = exposed(server.url)
    assert metrics['model_requests_total{status="200"}'] == 4 * count
    assert metrics["model_latency_seconds_count"] == 4 * count
    digits = [value for key, value in metrics.items() if key.startswith("model_predictions_total")]
    assert sum(digits) == metrics["model_journal_rows"] == metrics["model_confidence_count"] == 8 * count
    windows = sum(value for key, value in metrics.items() if key.startswith("model_drift_windows_total"))
    assert windows == 8 * count // 50
    assert set(requests_in(journal).values()) == {2}


# -- dashboard, rules, Prometheus -----------------------------------------------------------------------------


def names_in(expression):
    """Return the metrics that an expression in PromQL names, with the values of labels left out."""
    return set(re.findall(r"\b(?:model_\w+|up)\b", re.sub(r"\{[^}]*\}", "", expression)))


def labels_in(expression):
    """Return the labels that an expression names."""
    inside = [key for part in re.findall(r"\{([^}]*)\}", expression) for key in re.findall(r"(\w+)\s*[=!]", part)]
    lists = re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", expression)
    return {*inside, *(name.strip() for one in lists for name in one.split(",") if name.strip())}


def test_dashboard_and_rules_name_metrics_that_exist(unit, tmp_path):
    with service(unit, tmp_path / "journal.db") as server:
        ask(server.url, np.resize(IMAGES, (50, 8, 8)))
        shown = exposed(server.url)
    names = {key.partition("{")[0] for key in shown} | {"up"}
    labels = {label for key in shown for label in re.findall(r'(\w+)="', key)} | {"job"}
    board = json.loads((unit / "grafana/dashboards/digits.json").read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    expressions += [one["expr"] for one in board["annotations"]["list"]]
    rules = yaml.safe_load((unit / "alerts.yml").read_text())
    expressions += [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    assert len(expressions) > 15
    for expression in expressions:
        assert names_in(expression), expression
        assert names_in(expression) <= names, f"{expression} names a metric that the service does not expose"
        assert labels_in(expression) <= labels, f"{expression} names a label that no metric has"
    for line in expressions:  # a legend may only use labels that are left
        assert line.count("(") == line.count(")")
    for panel in board["panels"]:
        for target in panel["targets"]:
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= labels
            assert target["datasource"]["uid"] == panel["datasource"]["uid"] == "prometheus"


def test_provisioned_files_belong_together(unit):
    sources = yaml.safe_load((unit / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert [source["uid"] for source in sources] == ["prometheus"]
    (provider,) = yaml.safe_load((unit / "grafana/provisioning/dashboards/dashboards.yml").read_text())["providers"]
    assert provider["options"]["path"] == "$MONITORING_DASHBOARDS"
    compose = yaml.safe_load((unit / "compose.yaml").read_text())["services"]
    assert compose["grafana"]["environment"]["MONITORING_DASHBOARDS"] == "/etc/grafana/dashboards"
    for one in compose.values():
        for volume in one.get("volumes", []):
            source = volume.split(":")[0]
            assert not source.startswith(".") or (unit / source).exists(), source
    dockerfile = (unit / "Dockerfile").read_text()
    copied = " ".join(re.findall(r"^COPY (.*) \./$", dockerfile, flags=re.M)).split()
    allowed = re.findall(r"^!(.*)$", (ROOT / "projects/monitoring/.dockerignore").read_text(), flags=re.M)
    assert sorted(copied) == sorted(allowed)
    assert all((unit / name).is_file() for name in copied)


@pytest.fixture
def promtool():
    if shutil.which("promtool") is None:
        pytest.skip(f"promtool {NEEDED}Debian, Ubuntu: apt install prometheus")
    return "promtool"


def test_promtool_accepts_the_rules_and_they_do_what_they_say(unit, promtool):
    for arguments in (["check", "config", "prometheus.yml"], ["test", "rules", "alerts_test.yml"]):
        ran = subprocess.run([promtool, *arguments], cwd=unit, capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, ran.stdout + ran.stderr
    rules = yaml.safe_load((unit / "alerts.yml").read_text())
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    tested = yaml.safe_load((unit / "alerts_test.yml").read_text())["tests"]
    fired = {t["alertname"] for one in tested for t in one["alert_rule_test"] if t.get("exp_alerts")}
    assert fired == alerts, "a rule is never seen to fire in alerts_test.yml"


def test_promtool_accepts_the_metrics(unit, tmp_path, promtool):
    with service(unit, tmp_path / "journal.db") as server:
        ask(server.url, np.resize(IMAGES, (60, 8, 8)))
        with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as answer:
            text = answer.read()
    ran = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, timeout=60)
    assert ran.returncode == 0, ran.stdout.decode() + ran.stderr.decode()


def test_prometheus_really_scrapes_and_the_alert_fires(unit, tmp_path):
    if shutil.which("prometheus") is None:
        pytest.skip(f"Prometheus {NEEDED}Debian, Ubuntu: apt install prometheus")
    script = f"""
import json, sys
sys.path.insert(0, {str(unit)!r})
import numpy as np, dashboard, day, prepare, world
url, folder = sys.argv[1:]
_, _, pool, stranger = prepare.split()
rng = np.random.default_rng(0)
with dashboard.prometheus(url, folder) as server:
    for _ in range(3):
        day.send(url, world.arrivals(pool, stranger, "broken", 0.5, prepare.WINDOW, rng))
    dashboard.wait_for(server.url, "sum(model_predictions_total)", 150, timeout=30)
    dashboard.wait_for(server.url, 'ALERTS{{alertname="DriftPersists", alertstate="firing"}}', 1, timeout=30)
    scrapes = dashboard.Scrapes()
    scrapes.scrape(url, 0)
    bounds = sorted(scrapes.labelled("model_confidence_bucket", "le"), key=float)
    counts = [scrapes.series("model_confidence_bucket", le=bound)[0] for bound in bounds]
    pairs = []
    for q in (0.05, 0.1, 0.5, 0.9, 0.99):
        asked = f"histogram_quantile({{q}}, sum by (le) (model_confidence_bucket))"
        ((_, theirs),) = dashboard.ask_prometheus(server.url, asked)
        pairs.append([dashboard.histogram_quantile(q, list(map(float, bounds)), counts), theirs])
    ((_, up),) = dashboard.ask_prometheus(server.url, "up")
    print(json.dumps([up, pairs]))
"""
    with service(unit, tmp_path / "journal.db") as server:
        command = [sys.executable, "-c", script, server.url, str(tmp_path)]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment())
    assert ran.returncode == 0, ran.stderr
    up, pairs = json.loads(ran.stdout.splitlines()[-1])
    assert up == 1
    assert np.allclose(*zip(*pairs, strict=True), rtol=1e-9), "histogram_quantile differs from Prometheus's own"


# -- statistics, at length ------------------------------------------------------------------------------------


def test_false_alarms_are_five_per_cent(unit):
    """1,000 windows of data of a known kind, correlated and tied, with fresh references."""
    script = """
import numpy as np, json
from detector import Detector
rng, hits = np.random.default_rng(11), []
def rows(count):
    common, own = rng.standard_normal((count, 1)), rng.standard_normal((count, 5))
    numbers = 0.8 * common + 0.6 * own
    numbers[:, 0] = np.round(numbers[:, 0])  # ties
    return np.column_stack([numbers, rng.integers(0, 4, count)])
for number in range(100):
    detector = Detector.fit(rows(600), 40, draws=200, seed=number)
    hits += [bool((detector.ratios(rows(40)) > 1).any()) for _ in range(10)]
print(json.dumps(float(np.mean(hits))))
"""
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=unit, capture_output=True, text=True, timeout=300, env=environment()
    )
    assert ran.returncode == 0, ran.stderr
    assert 0.04 <= json.loads(ran.stdout) <= 0.06


def test_nothing_is_left_behind(unit, tmp_path):
    with service(unit, tmp_path / "journal.db") as server:
        pid = server.pid
        ask(server.url, IMAGES)
    with pytest.raises(ProcessLookupError):
        os.killpg(pid, 0)
    with contextlib.closing(sqlite3.connect(tmp_path / "journal.db")) as journal:
        assert journal.execute("PRAGMA integrity_check").fetchone() == ("ok",)
