"""The project as a wheel, installed outside of the checkout: nothing that it needs is left behind."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path

import pytest

from tests.flows.cli_world import SMALL, environment, free_port, write_collection

ROOT = Path(__file__).resolve().parents[2]
NOT_PACKED = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
pytestmark = [pytest.mark.server, pytest.mark.slow]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the project, so that the checkout stays as it is."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "project", ignore=NOT_PACKED)
    build = ("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(folder / "project"))
    _pip(*build)
    shutil.rmtree(folder / "project")
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def program(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`scalingnote` of an environment of its own, which has the packages of this one and of our project the wheel alone."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=600)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    # A folder that a .pth file names is searched, but its own .pth files, with which a checkout is installed, are not followed.
    (packages / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")), encoding="utf-8")
    _pip("--python", str(folder / "bin" / "python"), "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", str(wheel))
    return folder / "bin" / "scalingnote"


def test_wheel_holds_what_is_needed_and_nothing_under_the_names_of_others(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"components", "flows"}
    shipped = {f"data_contracts/{name}.yaml" for name in ("documents", "judgements", "queries")}
    shipped |= {"requirements.lock", "mlflow/permissions.yaml", "mlflow/basic_auth.ini"}
    assert {name.removeprefix("components/_shipped/") for name in names if "/_shipped/" in name} == shipped
    assert {f"flows/presets/{file.name}" for file in (ROOT / "flows" / "presets").glob("*.yaml")} <= names


def test_installed_wheel_validates_retrains_and_signs_in(program: Path, tmp_path: Path, mlflow_template: Path) -> None:
    place = tmp_path / "elsewhere"
    place.mkdir()
    data = write_collection(tmp_path / "clinic")
    variables = {name: value for name, value in environment(tmp_path / "home", mlflow_template).items() if name != "PYTHONPATH"}

    def run(*arguments: str) -> str:
        done = subprocess.run([str(program), *arguments], cwd=place, env=variables, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    code = "import components, flows; print(components.__file__, flows.__file__)"
    found = subprocess.run(
        [str(program.with_name("python")), "-c", code], cwd=place, env=variables, capture_output=True, text=True, check=True
    )
    assert str(ROOT) not in found.stdout
    assert "keeps its contracts" in run("validate", "--preset", "smoke", "--data", str(data))
    assert "candidate/1" in run("retrain", *SMALL, "--data", str(data))
    assert '"lock_digest"' in run("trace", "candidate/1", "--json")
    _signs_in(program, place, variables)
    assert not list(place.iterdir())


def _signs_in(program: Path, place: Path, variables: dict[str, str]) -> None:
    """`ui --auth` starts, makes accounts by the rules that came with the wheel, and ends at SIGTERM."""
    port = free_port()
    command = [str(program), "ui", "--auth", "--mlflow-port", str(port), "--prefect-port", str(free_port())]
    with subprocess.Popen(command, cwd=place, env=variables, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert f"http://127.0.0.1:{port}" in server.stdout.readline()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{port}/health", timeout=600) as response:
            assert response.status == 200
        made = subprocess.run([str(program), "bootstrap"], cwd=place, env=variables, capture_output=True, text=True, timeout=600)
        server.send_signal(signal.SIGTERM)
        assert server.wait(600) == 0
    assert made.returncode == 0 and "promoter" in made.stdout, made.stdout + made.stderr


def _pip(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
