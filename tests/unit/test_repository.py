"""Rules of the repository that no other check sees: what lies where, and which room may import what."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sysconfig
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TOP_LEVEL = {
    *(".ci", ".github", ".gitignore", ".pre-commit-config.yaml"),
    *("LICENSE", "Makefile", "README.md", "pyproject.toml", "requirements.lock", "prefect.yaml"),
    *("components", "data_contracts", "docker", "flows", "mlflow", "tests"),
}
LONGEST_FUNCTION, LONGEST_MODULE = 60, 600  # lines
MOST_MODULES, MOST_IN_A_FOLDER = 200, 20  # a reader finds one by its name, and holds a folder in mind


@pytest.mark.parametrize("name", ["mlflow", "docker"])
def test_installed_package_is_not_shadowed_by_our_folder(name: str) -> None:
    module = __import__(name)
    assert module.__file__ is not None, f"{name} is our folder, not the installed package"
    assert Path(module.__file__).is_relative_to(sysconfig.get_path("purelib"))


@pytest.mark.parametrize("name", ["mlflow", "docker"])
def test_folders_named_like_packages_hold_no_python(name: str) -> None:
    assert list((ROOT / name).rglob("*.py")) == []


def test_top_level_holds_only_the_allowed_entries() -> None:
    assert {path.split("/")[0] for path in _tracked()} <= TOP_LEVEL


def test_every_package_is_listed_and_our_folders_are_packed_within_ours_alone() -> None:
    tool = _pyproject()["tool"]["setuptools"]
    ours = {file.parent.relative_to(ROOT) for top in ("components", "flows") for file in (ROOT / top).rglob("*.py")}
    shipped = {"components._shipped", *(name for name in tool["package-dir"] if name.startswith("components._shipped."))}
    assert sorted(tool["packages"]) == sorted({".".join(folder.parts) for folder in ours} | shipped)
    assert tool["package-dir"].keys() == shipped
    # Else the file lists of the whole folder would go into the package that stands for it.
    assert tool["include-package-data"] is False


def test_make_takes_the_versions_of_python_that_the_packages_take() -> None:
    bounds = _pyproject()["project"]["requires-python"]
    low, high = (tuple(int(part) for part in version.split(".")) for version in re.findall(r"[\d.]+", bounds))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"{low} <= sys.version_info < {high}" in makefile
    assert f"needs Python {low[0]}.{low[1]} to {high[0]}.{high[1] - 1}" in makefile


def test_every_direct_dependency_is_pinned() -> None:
    project = _pyproject()["project"]
    wanted = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    names = {_normal(re.split(r"[\[<>=;]", line)[0]) for line in wanted} - {"scalingnote"}
    assert names - _pins().keys() == set()


def test_lock_holds_plain_pins_without_hosts_or_paths() -> None:
    for line in _lock_lines():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+( ; python_version [<>=]+ '3\.1[1-4]')?", line), line


def test_installed_versions_are_those_of_the_lock() -> None:
    installed = {name: importlib.metadata.version(name).split("+")[0] for name in ("torch", "mlflow", "prefect", "transformers", "fastapi")}
    assert installed == {name: _pins()[name] for name in installed}


def test_components_do_not_import_prefect_and_only_tracking_imports_mlflow() -> None:
    for file, module in _imports("components"):
        assert module.split(".")[0] != "prefect", f"{file} imports prefect"
        if module.split(".")[0] == "mlflow":
            assert file.is_relative_to(ROOT / "components" / "tracking"), f"{file} imports mlflow"


def test_flows_do_not_import_mlflow() -> None:
    for file, module in _imports("flows"):
        assert module.split(".")[0] != "mlflow", f"{file} imports mlflow"


def test_imports_go_downwards_only_by_the_list_that_the_linter_reads() -> None:
    layers = [layer.removeprefix("components.") for layer in _layers()]
    # Scripts that MLflow runs when a registered model is loaded; no room imports them.
    loaded_by_mlflow = ROOT / "components" / "tracking" / "pyfunc"
    for file, module in (*_imports("components"), *_imports("flows")):
        if file.is_relative_to(loaded_by_mlflow):
            continue
        above, below = _layer(".".join(file.relative_to(ROOT).with_suffix("").parts), layers), _layer(module, layers)
        if above is not None and below is not None:
            assert above <= below, f"{file} ({layers[above]}) imports {module}, which stands above it"


def test_no_module_imports_itself_by_way_of_others() -> None:
    modules = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in _modules()}
    graph = {
        name: {
            target
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            for target in _targets(node, modules)
            if target != name and not name.startswith(f"{target}.")  # a module's own package comes first anyway
        }
        for name, file in modules.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these modules import one another: {' -> '.join(error.args[1])}")
    assert len(graph) > 100 and sum(map(len, graph.values())) > 1000


def test_modules_are_few_and_no_folder_is_crowded() -> None:
    modules = [file for file in _modules() if file.name != "__init__.py"]
    folders = Counter(file.parent.relative_to(ROOT).as_posix() for file in modules)
    assert len(modules) <= MOST_MODULES, f"{len(modules)} modules: read what stands beside yours; is it always read together with it?"
    assert {name: count for name, count in folders.items() if count > MOST_IN_A_FOLDER} == {}


def test_heavy_libraries_are_not_imported_at_the_top_of_flows() -> None:
    heavy = {"torch", "transformers", "sentence_transformers", "great_expectations", "faiss", "pandas", "numpy", "peft", "mlflow"}
    for file in sorted((ROOT / "flows").rglob("*.py")):
        top = {name.split(".")[0] for node in ast.parse(file.read_text(encoding="utf-8")).body for name in _names(node)}
        assert top & heavy == set(), f"{file} imports {top & heavy} at its top"


def test_tracked_text_names_no_machine_path() -> None:
    for name in _tracked():
        if Path(name).suffix in {".py", ".md", ".toml", ".yaml", ".lock", ".env", ".sh"} and name != "tests/unit/test_repository.py":
            text = (ROOT / name).read_text(encoding="utf-8")
            assert not re.search(r"(?<![\w.])/(home|Users|root|work|tmp)/\w", text), f"{name} names a path of one machine"


def test_compose_services_and_secrets() -> None:
    text = (ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8")
    compose = yaml.safe_load(text)
    assert set(compose["services"]) == {"postgres", "mlflow", "prefect", "deploy", "worker", "promote", "promotion-worker"}
    secrets = re.findall(r"\$\{(\w*PASSWORD\w*)([^}]*)\}", text)
    # Required, or empty: an empty one of sign-in is refused by the server when sign-in is on.
    assert secrets and all(rest.startswith(":?") or rest == ":-" for _, rest in secrets), "a password must have no default"
    command = " ".join(compose["services"]["mlflow"]["command"])
    assert "${MLFLOW_APP_NAME:+--app-name}" in command and "audit:/audit" in compose["services"]["mlflow"]["volumes"]
    for service in compose["services"].values():
        assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", []))
        assert set(service.get("depends_on", {})) <= set(compose["services"])


def test_who_trains_in_compose_can_neither_promote_nor_reach_the_orchestrator_without_a_password() -> None:
    services = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))["services"]
    server = services["prefect"]
    assert "${PREFECT_API_PASSWORD:?" in server["environment"]["PREFECT_SERVER_API_AUTH_STRING"]
    assert server["environment"]["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"].endswith("lease_storage.filesystem")
    assert "prefect:/state" in server["volumes"]  # where the leases lie
    trainer, promoters = services["worker"], [services["promote"], services["promotion-worker"]]
    assert "PROMOTER" not in str(trainer) and "promoter" not in str(trainer["volumes"])
    for service in promoters:
        assert "TRAINER" not in str(service) and "state:/state" not in [str(volume) for volume in service["volumes"]]
        assert "MLFLOW_PROMOTER_USERNAME" in service["environment"]["MLFLOW_TRACKING_USERNAME"]
    for service in (trainer, services["deploy"], *promoters):
        assert "${PREFECT_API_PASSWORD:?" in service["environment"]["PREFECT_API_AUTH_STRING"]
    pools = {entry["name"]: entry["work_pool"]["name"] for entry in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]}
    assert {name for name, pool in pools.items() if pool == "scalingnote-promote"} == {"promote"}
    assert services["promotion-worker"]["command"][4] == "scalingnote-promote" and trainer["command"][4] == "scalingnote"


def test_named_volumes_of_compose_are_declared() -> None:
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))
    used = {volume.split(":")[0] for service in compose["services"].values() for volume in service.get("volumes", [])}
    assert {name for name in used if re.fullmatch(r"\w+", name)} == set(compose["volumes"])


def test_image_installs_with_the_lock_and_runs_as_a_plain_user() -> None:
    text = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    installs = re.findall(r"pip install .*", text)
    assert installs and all("-c requirements.lock" in line for line in installs)
    assert re.findall(r"^USER (\w+)", text, re.MULTILINE)[-1] != "root"


def test_continuous_integration_runs_the_test_command() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert script.read_text(encoding="utf-8").splitlines()[-2:] == ["make check", "exec make test"]


def test_the_workflow_runs_it_on_each_supported_python_and_pre_commit_what_make_check_does() -> None:
    (job,) = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"].values()
    low, high = (int(version) for version in re.findall(r"3\.(\d+)", _pyproject()["project"]["requires-python"]))
    assert job["strategy"]["matrix"]["python"] == [f"3.{minor}" for minor in range(low, high)]
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert repository["repo"] == "local" and [hook["entry"] for hook in repository["hooks"]] == ["make check"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = makefile.partition("\ncheck: ")[2].partition("\n\n")[0]
    for part in ("ruff format --check", "ruff check", "mypy", "lint-imports", "test_repository.py", "test_documents.py"):
        assert part in recipe, f"make check leaves out {part}"


def test_no_function_and_no_module_is_longer_than_a_reader_can_hold() -> None:
    for top in ("components", "flows"):
        for file in sorted((ROOT / top).rglob("*.py")):
            text = file.read_text(encoding="utf-8")
            assert text.count("\n") <= LONGEST_MODULE, f"{file} has {text.count(chr(10))} lines"
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    lines = (node.end_lineno or node.lineno) - node.lineno + 1
                    assert lines <= LONGEST_FUNCTION, f"{file}: {node.name} has {lines} lines"


def test_make_without_a_target_explains_each_target() -> None:
    told = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=600).stdout
    for target in ("demo", "test", "check", "lint", "ui", "clean"):
        assert f"make {target} " in told


def test_make_clean_refuses_a_folder_that_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    command = ["make", "-s", "clean", f"SCALINGNOTE_HOME={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode != 0 and "does not look like" in done.stderr
    assert (tmp_path / "letter.txt").read_text() == "mine"


@pytest.mark.parametrize("how", ["plain", "with blanks", "link", "tilde"])
def test_make_clean_removes_the_state_wherever_it_lies(how: str, tmp_path: Path) -> None:
    """Behind a link it stayed, and so it did where the shell had left a tilde alone."""
    shutil.copyfile(ROOT / "Makefile", tmp_path / "Makefile")
    state, given = tmp_path / "disk" / "a home", str(tmp_path / "disk" / "a home")
    (state / "mlflow" / "artifacts").mkdir(parents=True)
    (state / "work").mkdir()
    if how == "plain":
        state = state.rename(tmp_path / ".scalingnote")
        given = ""
    if how == "link":
        (tmp_path / "link").symlink_to(state)
        given = str(tmp_path / "link")
    if how == "tilde":
        given = "~/a home"
    command = ["make", "-s", "clean", *([f"SCALINGNOTE_HOME={given}"] if given else [])]
    environment = {**os.environ, "HOME": str(tmp_path / "disk")}
    environment.pop("SCALINGNOTE_HOME", None)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    assert not state.exists() and not (tmp_path / "link").is_symlink() and (tmp_path / "disk").exists()


def test_make_sets_up_anew_in_a_folder_that_was_copied_or_moved(tmp_path: Path) -> None:
    """The environment there runs the code of the old place."""
    first = tmp_path / "a folder"
    (first / ".venv").mkdir(parents=True)
    shutil.copyfile(ROOT / "Makefile", first / "Makefile")
    (first / ".venv" / "pyvenv.cfg").write_text(f"home = /usr/bin\ncommand = /usr/bin/python3 -m venv --clear {first}/.venv\n")
    for second, name in enumerate(("requirements.lock", "pyproject.toml", ".venv/.created", ".venv/.base")):
        (first / name).touch()
        os.utime(first / name, (second, second))
    command = ["make", "-n", ".venv/.base"]
    told = subprocess.run(command, cwd=first, capture_output=True, text=True, check=True, timeout=600).stdout
    assert "-m venv" not in told and "up to date" in told
    second_folder = first.rename(tmp_path / "another folder")
    told = subprocess.run(command, cwd=second_folder, capture_output=True, text=True, check=True, timeout=600).stdout
    assert "-m venv --clear .venv" in told and "install" in told


def _tracked() -> list[str]:
    """Files that git knows or would take; in an unpacked archive without git there is nothing to look at."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=600)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def _pyproject() -> dict[str, dict]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _lock_lines() -> list[str]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _pins() -> dict[str, str]:
    return {_normal(name): rest.split(" ;")[0] for name, rest in (line.split("==", 1) for line in _lock_lines())}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower().strip()


def _modules() -> list[Path]:
    return [file for folder in ("components", "flows") for file in sorted((ROOT / folder).rglob("*.py"))]


def _targets(node: ast.AST, modules: Mapping[str, Path]) -> Iterator[str]:
    """Those of `modules` that an import statement names."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in modules)
    elif isinstance(node, ast.ImportFrom) and node.module in modules:
        yield from (f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in modules else node.module for a in node.names)


def _imports(folder: str) -> Iterator[tuple[Path, str]]:
    for file in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            yield from ((file, name) for name in _names(node))


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module and node.level == 0 else []


def _layers() -> list[str]:
    """The rooms from the top to the ground, without the ground floor."""
    (contract,) = _pyproject()["tool"]["importlinter"]["contracts"]
    *rooms, ground = contract["layers"]
    here = {f"components.{path.parent.name}" for path in (ROOT / "components").glob("*/__init__.py")}
    assert set(rooms) == here | {"flows"}, "pyproject.toml lists other rooms than there are"
    assert set(ground.split(" : ")) == {f"components.{path.stem}" for path in (ROOT / "components").glob("[a-z]*.py")}
    return rooms


def _layer(module: str, layers: list[str]) -> int | None:
    """Height of a module among the layers, counted from the top; None for the ground floor and foreign modules."""
    parts = module.split(".")
    name = parts[0] if parts[0] == "flows" else parts[1] if parts[0] == "components" and len(parts) > 1 else ""
    return layers.index(name) if name in layers else None
