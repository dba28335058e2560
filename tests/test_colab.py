"""The first cell of every notebook, run as Colab runs it: a stand-in for google.colab, git, pip that only notes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from common import colab
from common.course import find_root
from common.notebooks.stamp import first_cell

UNIT = "phase2_transformers/lab1_attention"
pytestmark = pytest.mark.skipif(os.name == "nt" or not shutil.which("git"), reason="needs git and a shell, as on Colab")


class Colab:
    """A machine like Colab's: `content` is its /content; `address` is the course, to be cloned."""

    def __init__(self, folder: Path) -> None:
        self.content = folder / "content"
        self.content.mkdir()
        self.course = self.content / "course"
        self.address = str(folder / "the course.git")
        self.pip_log = folder / "pip.txt"
        self.path = folder / "path"
        for name, text in {
            "google/colab.py": "",
            "pip/__init__.py": "",
            # notes what it is asked to install, and pretends that it did
            "pip/__main__.py": f"""import os, pathlib, re, sys
open({str(self.pip_log)!r}, "a").write(" ".join(sys.argv[1:]) + "\\n")
if os.environ.get("PIP_FAILS"):
    sys.exit("ERROR: no route to host")
for name in re.findall(r"([\\w-]+)<=", " ".join(sys.argv)):
    info = pathlib.Path({str(self.path)!r}, name.replace("-", "_") + "-9.dist-info")
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {{name}}\\nVersion: 9")
""",
        }.items():
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            (self.path / name).write_text(text)
        # Colab has these. The interpreter of the tests is started without its own packages (-S).
        for name in ("torch", "torchvision", "numpy", "transformers", "matplotlib", "tqdm", "seaborn"):
            (self.path / f"{name}-1.dist-info").mkdir()
            (self.path / f"{name}-1.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: 1\n")

    def publish(self, source: Path) -> None:
        """Make the repository that is cloned, with what the cell needs of the course."""
        work = source / "work"
        for name in (
            "common/__init__.py",
            "common/colab.py",
            "common/course.py",
            "common/course.toml",
            "requirements.txt",
        ):
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(find_root() / name, work / name)
        (work / UNIT).mkdir(parents=True)
        (work / UNIT / "checks.py").write_text("HERE = True\n")
        git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
        for command in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "All"]):
            subprocess.run([*git, *command], cwd=work, check=True)
        subprocess.run(["git", "clone", "-q", "--bare", work, self.address], check=True)

    def run(self, repository: str, on_colab: bool = True, times: int = 1, then: str = "", **more: str):
        """Run the cell as a kernel does, `times` over, then the code `then`."""
        cell = first_cell(UNIT, repository, base=str(self.content))
        code = "import sys\n" + ("import google.colab\n" if on_colab else "") + f"{cell}\n" * times + then
        variables = {"PATH": os.environ["PATH"], "PYTHONPATH": str(self.path), "PIP_NO_INDEX": "1", **more}
        return subprocess.run(
            [sys.executable, "-S", "-c", code],
            cwd=self.content,
            env=variables,
            capture_output=True,
            text=True,
        )

    @property
    def asked(self) -> list[list[str]]:
        """What pip was asked to install, call by call."""
        calls = self.pip_log.read_text().splitlines() if self.pip_log.exists() else []
        return [call.split("constraints.txt ")[1].split() for call in calls]


@pytest.fixture
def machine(tmp_path):
    machine = Colab(tmp_path)
    machine.publish(tmp_path)
    return machine


SHOW = "\nimport os, checks, common; print(os.getcwd(), common.__file__, checks.HERE)"


def test_elsewhere_the_cell_does_nothing(machine):
    done = machine.run(machine.address, on_colab=False, then="\nimport os; print(os.getcwd())")
    assert (done.stdout.strip(), done.stderr) == (str(machine.content), "")
    assert list(machine.content.iterdir()) == []


def test_the_course_is_fetched_and_what_is_missing_installed(machine):
    done = machine.run(machine.address, then=SHOW)
    assert done.returncode == 0, done.stderr
    where, package, _ = done.stdout.splitlines()[-1].split()
    assert where == str(machine.course / UNIT)
    assert package == str(machine.course / "common" / "__init__.py")
    (asked,) = machine.asked
    missing = {"tokenizers", "sacrebleu", "onnx", "onnxscript", "onnxruntime"}
    missing |= {"datasets", "scikit-learn", "tensorboard"}
    missing |= {"fastapi", "starlette", "pydantic", "uvicorn", "httptools", "prometheus-client", "sqlalchemy"}
    assert {name.split("<=")[0] for name in asked} == missing


def test_answer_files_are_not_forgotten(machine):
    assert "download" not in machine.run(machine.address).stdout
    then = f"\nimport os; os.makedirs('{machine.course}/homework/hw1_backpropagation')"
    then += "\ncolab.enter('homework/hw1_backpropagation')"
    assert "Edit mlp.py and sgd.py there, and download them" in machine.run(machine.address, then=then).stdout


def test_packages_that_colab_keeps_are_held(machine):
    kept = machine.content / "kept.txt"
    copy = f"\nimport shutil; shutil.copy(sys.argv[sys.argv.index('--constraint') + 1], {str(kept)!r})"
    main = machine.path / "pip" / "__main__.py"
    main.write_text(main.read_text() + copy)
    machine.run(machine.address)
    assert kept.read_text().split() == ["torch==1", "torchvision==1", "numpy==1"]


def test_again_in_the_same_kernel_and_in_a_new_one(machine):
    done = machine.run(machine.address, times=2, then=SHOW)
    assert done.returncode == 0, done.stderr
    (machine.course / UNIT / "mine.txt").touch()
    done = machine.run("/no/such/place", then=SHOW)  # fetches nothing
    assert done.returncode == 0, done.stderr
    assert (machine.course / UNIT / "mine.txt").exists()
    assert len(machine.asked) == 1


def test_half_made_clones_are_made_again(machine):
    (machine.content / "part" / ".git").mkdir(parents=True)
    (machine.course / ".git").mkdir(parents=True)
    done = machine.run(machine.address, then=SHOW)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in machine.content.iterdir()] == ["course"]


def test_without_network(machine):
    done = machine.run("/no/such/place.git")
    assert done.stderr.endswith("Check the network, then run this cell again.\n")
    assert machine.run(machine.address).returncode == 0


def test_without_network_for_pip(machine):
    done = machine.run(machine.address, PIP_FAILS="1")
    assert "ERROR: no route to host\npip could not install tokenizers<=" in done.stderr
    assert done.stderr.endswith("Check the network, then run this cell again.\n")
    assert machine.run(machine.address).returncode == 0


def test_without_an_address(machine):
    done = machine.run("")
    assert f"has no address yet: copy it to {machine.course}, then run this again." in done.stderr
    subprocess.run(["git", "clone", "-q", machine.address, machine.course], check=True)
    assert machine.run("", then=SHOW).returncode == 0


def test_notebook_of_another_version(machine):
    shutil.rmtree(machine.content)
    subprocess.run(["git", "clone", "-q", machine.address, machine.course], check=True)
    shutil.rmtree(machine.course / UNIT)
    assert f"has no folder {UNIT}" in machine.run(machine.address).stderr


def test_only_what_notebooks_need_is_ever_installed():
    requirements = (find_root() / "requirements.txt").read_text()
    wanted = colab.missing(requirements.replace("==", "-not-installed=="))
    names = [name.split("-not-installed<=")[0] for name in wanted]
    assert {"transformers", "datasets", "matplotlib", "tqdm"} < set(names)
    assert not {"jupyterlab", "pytest", "ruff", "nbval"} & set(names)
    assert not {"torch", "torchvision", "numpy"} & {name.split("<=")[0] for name in colab.missing(requirements)}


@pytest.mark.parametrize("repository", ["", "https://github.com/some-owner/deep-learning-course"])
def test_the_cell_is_short_and_clean(repository, tmp_path):
    cell = first_cell("phase2_transformers/lab5_distributed_training", repository)
    assert len(cell.splitlines()) <= 12
    file = tmp_path / "x.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)]), file)
    for command in (["check"], ["format", "--check"]):
        config = ["--config", str(find_root() / "pyproject.toml"), "--no-cache"]
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *config, file], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout
