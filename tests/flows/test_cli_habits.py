"""What people expect of any command-line program: its version, a module that runs, completion, a schema for editors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from tests.flows.cli_world import assert_refused, scalingnote

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "flows.cli", *words], cwd=ROOT, capture_output=True, text=True, timeout=600)


def test_the_module_says_its_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"scalingnote {version('scalingnote')} (Python 3.")


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_commands_and_their_choices() -> None:
    script = run("completion", "bash").stdout
    asked = script + "\nfor words in 'retr' 'completion '; do\n"
    asked += 'COMP_LINE="scalingnote $words"; read -ra COMP_WORDS <<< "scalingnote $words"\n'
    asked += '[[ "$words" == *" " ]] && COMP_WORDS+=(""); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()\n'
    asked += '_shtab_scalingnote; echo "${COMPREPLY[@]}"; done\n'
    done = subprocess.run(["bash", "--norc"], input=asked, capture_output=True, text=True, timeout=600)
    first, second = done.stdout.splitlines()[-2:]
    assert "retrain" in first.split()
    assert {"bash", "zsh", "tcsh"} <= set(second.split())


def test_another_shell_is_refused_with_those_that_there_are() -> None:
    done = run("completion", "dash")
    assert done.returncode == 2
    assert "'bash', 'zsh', 'tcsh'" in done.stderr


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("statsu",), "statsu"),
        ((), "COMMAND"),
        (("search",), "QUERY"),
        (("search", "stone", "-k", "none"), "none"),
        (("status", "--colour"), "--colour"),
        (("keys", "list", "--colour"), "--colour"),
        (("completion", "dash"), "dash"),
        # Of a script whose variable is unset: they would mean the release's own data, the default retriever, or the current folder.
        (("refresh-index", "--data", ""), "--data: expected a value, found an empty one"),
        (("refresh-query-tower", "--data="), "--data: expected a value"),
        (("rollback", "--as", "Ada", "--reason", "slow", "--name", " "), "--name: expected a value"),
        (("search", "stone", "--release", ""), "--release: expected a value"),
        (("trace", "d1", "--release", ""), "--release: expected a value"),
        (("export", "--to", ""), "--to: expected a value"),
        (("study", "worth", "--cells", ""), "--cells: expected a value"),
        (("webhook", "--port", "8080", "--host", ""), "--host: expected a value"),
    ],
)
def test_wrong_arguments_are_json_where_that_was_asked_for(words: tuple[str, ...], named: str) -> None:
    outcome = scalingnote(*words, "--json")
    found = json.loads(outcome.out)
    assert (outcome.status, found["exit_status"]) == (2, 2)
    assert named.lower() in found["error"].lower() and "usage: scalingnote" in outcome.err
    plain = scalingnote(*words)
    assert (plain.status, plain.out) == (2, "") and named.lower() in plain.err.lower()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("keys", "new", "champion"), "keys new does nothing with 'champion'"),
        (("keys", "list", "--to", "file.pem"), "keys list does nothing with 'file.pem'"),
        (("keys", "sign", "--to", "file.pem"), "keys sign does nothing with 'file.pem'"),
        (("keys", "rotate", "release/1"), "keys rotate does nothing with 'release/1'"),
        (("keys", "new", "--name", "shop"), "keys new does nothing with 'shop'"),
        (("keys", "certificate", "previous"), "keys certificate does nothing with 'previous'"),
        (("export", "--qdrant", ":memory:"), "--qdrant :memory: is a store that ends with this command"),
        (("export", "--to", "folder", "--collection", "mine"), "--collection mine names what --qdrant makes"),
        (("export", "--signed", "folder", "--collection", "mine"), "--collection mine names what --qdrant makes"),
        (
            ("trace", "index/1", "--release", "candidate/1"),
            "'index/1' is none. Leave it out, or write document:index/1 where a document has that id",
        ),
        (("trace", "champion", "--release", "champion"), "'champion' is none"),
        (("trace", "answer:0123456789abcdef", "--release", "champion"), "or write document:answer:0123456789abcdef where"),
    ],
)
def test_what_a_command_would_do_nothing_with_is_refused(words: tuple[str, ...], named: str, home: Path) -> None:
    assert_refused(scalingnote(*words), 2, named)
    assert not (home / "keys").exists()


def test_a_current_folder_that_was_removed_is_what_the_refusal_speaks_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(gone)
    gone.rmdir()
    outcome = scalingnote("search", "stone")  # it was told that its release could not be loaded
    assert outcome.status == 2 and "The current folder was removed" in outcome.err


def test_the_schema_accepts_the_presets_and_refuses_a_slip() -> None:
    from jsonschema import Draft202012Validator

    schema = json.loads(run("config", "schema").stdout)
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    presets = sorted((ROOT / "flows" / "presets").glob("*.yaml"))
    assert len(presets) > 4
    for preset in presets:
        assert list(validator.iter_errors(yaml.safe_load(preset.read_text(encoding="utf-8")) or {})) == [], preset.name
    (slip,) = validator.iter_errors({"towers": {"stepps": 3}})
    assert "stepps" in slip.message


def test_a_level_of_the_log_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path))
    monkeypatch.setenv("SCALINGNOTE_LOG_LEVEL", "info")
    seen: list[str] = []
    monkeypatch.setattr("flows.cli.operate.status", lambda _options: seen.append(os.environ["SCALINGNOTE_LOG_LEVEL"]))
    assert scalingnote("status", "--log-level", "warning").status == 0 and seen == ["warning"]
    assert_refused(scalingnote("status", "--log-level", "loud"), 2, "debug", "warning")
