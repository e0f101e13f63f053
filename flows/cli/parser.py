"""The commands and their arguments. The functions behind them import what they need when they run."""

from __future__ import annotations

import argparse
import platform
import re
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from components import settings
from components.errors import ConfigError
from flows.cli.audit import add_arguments as add_trace_arguments
from flows.studies.registry import list_studies

Command = Callable[[argparse.Namespace], int | None]
EPILOG = "State of a local installation lies in .scalingnote/ (SCALINGNOTE_HOME moves it). `scalingnote COMMAND --help` says more."


class Group(NamedTuple):
    """Commands that one of the people who work here uses, and an example."""

    title: str
    commands: tuple[str, ...]
    example: str


GROUPS = (
    Group(
        "build and run (MLOps engineer)",
        (
            *("demo", "retrain", "plan", "validate", "models", "adopt", "refresh-index", "refresh-query-tower", "study", "config"),
            *("promote", "webhook", "rollback", "ui", "bootstrap", "prune-work", "completion"),
        ),
        "scalingnote plan --data DIR --budget 1h",
    ),
    Group(
        "judge (reviewer)",
        ("status", "approve", "search", "run", "export"),
        'scalingnote approve candidate/1 --as "Ada Lovelace"',
    ),
    Group(
        "prove (auditor)",
        ("history", "trace", "verify", "replay", "keys", "prune-answers"),
        "scalingnote trace champion --format html -o trace.html",
    ),
)


class _Command(argparse.ArgumentParser):
    """A command, whose wrong arguments are an error like any other: argparse would leave at once, and say nothing in JSON."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        raise ConfigError(message)


class _Parser(_Command):
    """The top of the command line, whose help groups the commands by the people who use them."""

    def format_help(self) -> str:
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        # What argparse itself lists below COMMAND; it has no public name for it.
        subcommands = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        commands = {entry.dest: entry for action in subcommands for entry in action._choices_actions}
        for group in GROUPS:
            formatter.start_section(group.title)
            formatter.add_arguments([commands[name] for name in group.commands])
            formatter.add_text(f"e.g. {group.example}")
            formatter.end_section()
        formatter.start_section("options")
        formatter.add_arguments([action for action in self._actions if action.option_strings])
        formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = _Parser(
        prog="scalingnote",
        description="A production line for dense retrievers: LLM towers, a distilled query encoder, gated releases.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version of scalingnote and of Python, and end")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Command)
    _add_building(commands)
    _add_refreshing(commands)
    _add_promotion(commands)
    _add_use(commands)
    _add_inspection(commands)
    _add_configuration(commands)
    _add_proof(commands)
    return parser


def _add_building(commands: Any) -> None:
    demo = _command(commands, "demo", "build:demo", "run the whole job on the built-in data and show what comes next")
    demo.add_argument("--full", action="store_true", help="all 46,881 entries of ICD-10-CM instead of 4,577")
    demo.add_argument(
        "--adopt", action="store_true", help="without an LLM: adopt MiniLM's vectors as an existing index, and make a query encoder for it"
    )
    _training_options(demo, preset=None)
    retrain = _command(
        commands, "retrain", "build:retrain", "build a candidate: validate, train, distil, index, evaluate, decide, register"
    )
    _training_options(retrain, preset=None)
    _again_option(retrain)
    retrain.add_argument(
        "--budget", type=_given, metavar="TIME", help="time for the whole run, such as 30m or 1h30m: settings are planned for it"
    )
    adopt = _command(commands, "adopt", "build:adopt", "take over vectors that exist as the document side; refresh-query-tower goes on")
    adopt.add_argument(
        "--vectors",
        type=_given,
        metavar="DIR",
        help="folder with documents.parquet (_id, vector), documents.npy and documents.ids.txt, or documents.faiss; queries.* likewise",
    )
    stores = adopt.add_mutually_exclusive_group()
    stores.add_argument(
        "--qdrant", type=_given, metavar="PATH|URL", help="vectors of documents from a collection of Qdrant (key in QDRANT_API_KEY)"
    )
    stores.add_argument("--milvus", type=_given, metavar="PATH|URL", help="or of Milvus (token in MILVUS_TOKEN)")
    stores.add_argument(
        "--pgvector", type=_given, metavar="URL", help="or from a table of PostgreSQL; the password in PGPASSWORD or ~/.pgpass"
    )
    adopt.add_argument("--collection", type=_given, metavar="NAME", help="that collection, or the table as table or schema.table")
    adopt.add_argument("--id-field", type=_given, metavar="FIELD", help="field with the data's ids (default: doc_id or the key)")
    adopt.add_argument("--vector-field", type=_given, metavar="FIELD", help="field with the vectors, where there are several")
    _training_options(adopt, preset="adopt")
    plan = _command(commands, "plan", "prepare:plan", "settings for your data and this machine, with what every step will take")
    _training_options(plan, preset=None)
    plan.add_argument("--budget", type=_given, metavar="TIME", help="time for the whole run, such as 90s, 30m, 1h30m or 2d")
    plan.add_argument("--write", type=_path, metavar="FILE", help="new YAML file for the settings, which retrain --config takes")
    plan.add_argument("--card", type=_given, metavar="SIZE", help='memory of a GPU that is planned for and not here, such as "24 GB"')
    plan.add_argument("--again", action="store_true", help="measure again, also where the same was planned before")
    for parser in (demo, retrain, adopt, plan):
        _policy_option(parser)
    validate = _command(commands, "validate", "build:validate", "hold data against its contracts, without training")
    _training_options(validate, preset=None)
    validate.add_argument(
        "--gx-project", type=_path, metavar="DIR", help="also write a project of Great Expectations there: suites, checkpoint, Data Docs"
    )
    models = _command(commands, "models", "prepare:models", "fetch, list or verify the base models that a configuration names")
    models.add_argument("action", choices=("pull", "list", "verify"), help="fetch from the hub; list the cache; hash the files again")
    models.add_argument("models", nargs="*", metavar="NAME[@REVISION]", help="models (default: those of the configuration; for list: all)")
    _training_options(models, preset=None)
    study = _command(commands, "study", "build:study", "run an experiment on the data: a table with intervals and a plot")
    study.formatter_class = argparse.RawDescriptionHelpFormatter
    study.epilog = f"studies:\n{list_studies()}\n\nA killed study continues when it is run again; a finished one only reads."
    study.add_argument("study", metavar="STUDY", help="one of the studies below")
    study.add_argument("--cells", type=_given, metavar="A,B", help="only these rows of the study, and what they are compared with")
    _training_options(study, preset="demo")


def _add_refreshing(commands: Any) -> None:
    index = _command(
        commands,
        "refresh-index",
        "build:refresh_index",
        "bring a release up to date with its documents: only those that changed are encoded",
    )
    index.add_argument(
        "--data", type=_given, required=True, metavar="DIR", help="folder with the documents as they are now, queries and judgements"
    )
    query = _command(
        commands,
        "refresh-query-tower",
        "build:refresh_query_tower",
        "teach a new query encoder for the index of a release: no document is encoded",
    )
    query.add_argument(
        "--data", type=_given, metavar="DIR", help="folder with the release's documents (default: the one it was built from)"
    )
    query.add_argument(
        "--new-teacher",
        action="store_true",
        help="train another teacher first, by the section towers, and lead its queries into the index's space: a sample of the documents "
        "is encoded for that, and the index stays",
    )
    for parser, example in ((index, "policy.margin=0.02"), (query, "distillation.epochs=4")):
        _release_option(parser, ", or adopted: the vectors that adopt took over last" if parser is query else "")
        _policy_option(parser)
        _again_option(parser)
        parser.add_argument("--preset", type=_given, metavar="NAME", help="take what the refresh may change from this preset, gates apart")
        parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help=f"one setting, such as {example}; repeatable")


def _policy_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--policy", type=_path, metavar="FILE", help="the gates as YAML with a version of its own, instead of the preset's")


def _add_promotion(commands: Any) -> None:
    approve = _command(commands, "approve", "review:approve", "approve a candidate as a named person (what Promote does in the MLflow UI)")
    approve.add_argument("candidate", help="candidate/N, N, or latest")
    approve.add_argument("--as", dest="person", metavar="NAME", help="who approves (default: who is signed in to the server)")
    approve.add_argument("--override", metavar="REASON", help="approve although gates did not pass; the reason is kept for ever")
    promote = _command(commands, "promote", "review:promote", "make the newest approved release the champion, after verifying it again")
    promote.add_argument("--watch", type=_seconds, metavar="SECONDS", help="go on until Ctrl-C and look this often, from 1")
    promote.add_argument(
        "--without-champion", metavar="REASON", help="where the champion was deleted or damaged: promote without comparing with it"
    )
    hook = _command(commands, "webhook", "review:webhook", "promote --watch, woken at once by a signed webhook of MLflow")
    hook.add_argument("--port", type=_port, required=True, metavar="PORT", help="port to receive on")
    hook.add_argument("--host", type=_given, default="127.0.0.1", help="address to receive on (default 127.0.0.1)")
    hook.add_argument("--watch", type=_seconds, default=60.0, metavar="SECONDS", help="look this often by itself (default 60)")
    hook.add_argument("--emit", action="store_true", help="promote nothing here: tell Prefect, whose deployment promote does it")
    rollback = _command(commands, "rollback", "review:rollback", "go back to the release that the champion replaced")
    rollback.add_argument("--as", dest="person", required=True, metavar="NAME", help="who rolls back")
    rollback.add_argument("--reason", required=True, metavar="TEXT", help="why; kept in the promotion record")
    rollback.add_argument("--override", metavar="REASON", help="go back to a release that a reviewer has rejected since")
    rollback.add_argument("--past-lost", action="store_true", help="pass over releases that were deleted or damaged")
    history = _command(commands, "history", "review:history", "who promoted what, when and why; overrides stand out")
    history.add_argument(
        "--anchor", type=_path, metavar="FILE", help="an auditor's own file: compare the newest record kept there, then keep today's"
    )
    history.add_argument(
        "--strike", type=_positive, metavar="N", help="record N was forged: it and all after it count no more, signed by a trusted key"
    )
    history.add_argument("--as", dest="person", metavar="NAME", help="with --strike: who says so")
    history.add_argument("--reason", metavar="TEXT", help="with --strike: why; kept in a record of its own")


def _add_use(commands: Any) -> None:
    search = _command(commands, "search", "search:search", "find documents with a release")
    search.add_argument("query", help="what to look for")
    search.add_argument("-k", type=_positive, default=10, help="number of documents (default 10)")
    _release_option(search)
    run = _command(commands, "run", "search:run", "answer a file of queries and write a TREC run file")
    run.add_argument(
        "--queries", type=_path, required=True, metavar="FILE", help="JSON lines (_id, text), gz accepted; - for standard input"
    )
    run.add_argument("--output", type=_path, required=True, metavar="FILE", help="TREC run file to write; - for standard output")
    run.add_argument("-k", type=_positive, default=100, help="documents per query (default 100)")
    run.add_argument(
        "--identical-ids",
        choices=("same_text", "always", "never"),
        help="leave out the document that has the query's id: if it reads the same, always (as BEIR does), or never (default: as the "
        "release was evaluated)",
    )
    _release_option(run)
    answers = _command(commands, "prune-answers", "search:answers", "remove answers from the log that are older than the retention")
    answers.add_argument("--days", type=_positive, default=183, help="keep the answers of so many days (default 183)")
    answers.add_argument("--gap", action="store_true", help="the clock is right: for so long nothing was answered")
    export = _command(
        commands, "export", "search:export", "write a release's vectors as Parquet or into Qdrant, its encoders as a package, or all signed"
    )
    export.add_argument("--to", type=_path, metavar="FOLDER", help="new or empty folder for the Parquet shards")
    export.add_argument(
        "--qdrant", type=_given, metavar="PATH|URL", help="Qdrant server, or folder of an embedded store; needs the extra 'qdrant'"
    )
    export.add_argument(
        "--router", type=_path, metavar="FOLDER", help="new or empty folder for the encoders as one Router of sentence-transformers"
    )
    export.add_argument(
        "--part",
        choices=("pair", "student", "query-tower", "document-tower"),
        help="which encoders --router writes: student and document tower (pair, the default), or one encoder that refuses the other side",
    )
    export.add_argument(
        "--signed",
        type=_path,
        metavar="FOLDER",
        help="new or empty folder for the release and its parts, signed so that `model_signing verify certificate` accepts them",
    )
    export.add_argument("--collection", type=_given, metavar="NAME", help="collection to make there (default: the retriever's name)")
    _release_option(export)


def _add_inspection(commands: Any) -> None:
    status = _command(commands, "status", "operate:status", "which release serves, which ones wait, and whether all is in order")
    status.add_argument(
        "--why", nargs="?", const="", metavar="STEP", help="instead: when and why a step was made last, such as train_towers; no STEP: all"
    )
    add_trace_arguments(
        _command(commands, "trace", "audit:trace", "a release, model, document or answer back to data, code, configuration and approval"),
        _path,
        _given,
    )
    ui = _command(commands, "ui", "operate:ui", "start the MLflow and Prefect servers on this machine until Ctrl-C")
    ui.add_argument("--mlflow-port", type=_port, default=5000, metavar="PORT", help="default 5000")
    ui.add_argument("--prefect-port", type=_port, default=4200, metavar="PORT", help="default 4200")
    ui.add_argument("--auth", action="store_true", help="MLflow asks who you are, holds people to their roles, and keeps an audit log")
    prepare = _command(commands, "bootstrap", "operate:bootstrap", "make users, roles, models and experiments on a server with sign-in")
    prepare.add_argument("--users", type=_path, metavar="FILE", help="YAML file of users and their roles (default: one user for each role)")
    prepare.add_argument(
        "--server", type=_given, metavar="URL", help="default: the running `scalingnote ui --auth`, else MLFLOW_TRACKING_URI"
    )

    work = _command(commands, "prune-work", "operate:prune_work", "remove results of steps and downloads that nothing has used for a while")
    work.add_argument("--days", type=_positive, default=30, help="keep what was used in so many days (default 30)")
    work.add_argument("--dry-run", action="store_true", help="say what would be removed, and remove nothing")


def _add_configuration(commands: Any) -> None:
    config = commands.add_parser("config", help="show all settings with meaning, bounds and origin, or compare two configurations")
    actions = config.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = _command(actions, "show", "prepare:show_config", "every setting: its value, where that comes from, meaning and bounds")
    _training_options(show, preset=None)
    _policy_option(show)
    show.add_argument("--changed", action="store_true", help="only what differs from the defaults")
    show.add_argument("--write", type=_path, metavar="FILE", help="write all values to a YAML file for --config, each with its meaning")
    _command(actions, "schema", "prepare:show_schema", "the JSON schema of a configuration file, for editors that check and complete")
    diff = _command(actions, "diff", "prepare:diff_configs", "where two configurations differ; the exit status is 0 either way")
    diff.epilog = (
        "A and B: the id of a flow's run in MLflow, champion, previous, candidate/N, release/N, the name of a preset, or a YAML file."
    )
    for place in ("a", "b"):
        diff.add_argument(place, metavar=place.upper(), help="run id, champion, previous, candidate/N, release/N, preset or YAML file")

    completion = _command(commands, "completion", "prepare:show_completion", "a script that completes commands and options in your shell")
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"), help='such as: eval "$(scalingnote completion bash)"')


def _add_proof(commands: Any) -> None:
    verify = _command(
        commands, "verify", "audit:verify", "hash a release again and check digests, signatures, decision, records, audit log"
    )
    verify.add_argument("ref", nargs="?", type=_given, help="champion (default), previous, candidate/N or release/N")
    verify.add_argument("--folder", type=_path, metavar="DIR", help="verify from the files below DIR alone, such as a copy of the store")
    keys = _command(commands, "keys", "audit:keys", "make the key that signs releases and records, list keys, sign a release")
    keys.add_argument(
        "action",
        choices=("new", "list", "sign", "rotate", "certificate"),
        help="make a key pair, list the keys, sign a registered release, change to a new key, or write the certificate for third parties",
    )
    keys.add_argument("ref", nargs="?", type=_given, help="for sign: champion (default), previous, candidate/N or release/N")
    keys.add_argument(
        "--to", type=_path, metavar="FILE", help="for new and certificate: where that is written (default: below keys/ at home)"
    )
    replay = _command(commands, "replay", "audit:replay", "evaluate a release again from its record and compare every value")
    replay.add_argument("ref", nargs="?", type=_given, default="champion", help="champion (default), previous, candidate/N or release/N")
    replay.add_argument("--build", action="store_true", help="also build it again from its data and compare the parts' digests")
    replay.add_argument("--data", type=_given, metavar="DIR", help="the data, when it does not lie any more where the release found it")


def _training_options(parser: argparse.ArgumentParser, preset: str | None) -> None:
    parser.add_argument(
        "--preset",
        type=_given,
        default=preset,
        metavar="NAME",
        help="smoke, demo, pages, gpu, cluster, adopt, endpoint, or an embedding model: qwen3-embedding, embeddinggemma, harrier"
        + (f" (default {preset})" if preset else ""),
    )
    parser.add_argument("--config", type=_path, metavar="FILE", help="YAML file laid over the preset")
    parser.add_argument(
        "--data",
        type=_given,
        metavar="DIR",
        help="folder in BEIR layout or with Parquet tables, ir_datasets:NAME, hub:OWNER/NAME, or icd10cm",
    )
    parser.add_argument("--max-documents", type=_whole, metavar="N", help="use a subset of N documents, judged ones first")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="one setting, such as towers.steps=200; repeatable"
    )


def _again_option(parser: argparse.ArgumentParser) -> None:
    about = "make this step anew although it is finished, such as evaluate; repeatable"
    parser.add_argument("--again", action="append", default=[], metavar="STEP", help=about)


def _command(commands: Any, name: str, target: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("--name", type=_given, help="name of the retriever (default: retriever)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--verbose", action="store_true", help="show the libraries' own messages, and tracebacks")
    parser.add_argument(
        "--log-level",
        choices=settings.LOG_LEVELS,
        help="what a run tells in terminal, page and logs/runs.log: this and worse (info)",
    )
    module, function = target.split(":")
    parser.set_defaults(run=partial(_run, module, function))
    return parser


def _release_option(parser: argparse.ArgumentParser, more: str = "") -> None:
    about = f"champion (default), previous, candidate/N or release/N{more}"
    parser.add_argument("--release", type=_given, default="champion", metavar="REF", help=about)


class _Version(argparse.Action):
    """Looks the version up when it is asked for: reading the installed packages takes time that no other command should wait for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"scalingnote {version('scalingnote')} (Python {platform.python_version()})")
        parser.exit()


def _run(module: str, function: str, options: argparse.Namespace) -> int | None:
    """Import the command when it is asked for, so that no other command waits for what it imports."""
    try:
        command: Command = getattr(import_module(f"flows.cli.{module}"), function)
        return command(options)
    except ValueError:
        # Of a setting that Prefect reads as soon as it is imported, by the command itself perhaps: then it is not there as a whole.
        if "prefect" in sys.modules and "prefect.main" not in sys.modules:
            from flows.servers import require_usable_settings

            require_usable_settings()
        raise


def _given(text: str) -> str:
    """A value that is not empty: a script whose variable is unset means anything but the default, or the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a value, found an empty one; is a variable unset? Leave the option out for the default")
    return text


def _path(text: str) -> Path:
    """A path with `~` in it, which the shell leaves alone behind `--to=`; a folder of that name would be made here otherwise."""
    _given(text)
    found = settings.expanded(text)
    if str(found).startswith("~"):
        raise argparse.ArgumentTypeError(f"there is no such user as in '{text}', or no home folder of theirs; './{text}' is one here")
    return found


def _whole(text: str) -> int:
    """A whole number in plain digits; `int` alone takes those of any script, `1_000`, and `010`, which YAML reads as 8."""
    if not re.fullmatch(r"-?(0|[1-9][0-9]{0,17})", text):
        raise argparse.ArgumentTypeError(f"expected a whole number, not '{text}'")
    return int(text)


def _within(text: str, least: int, most: int, what: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,17}", text) or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"expected {what} from {least} to {most}, not '{text}'")
    return int(text)


def _positive(text: str) -> int:
    return _within(text, 1, 10_000, "a whole number")


def _seconds(text: str) -> float:
    return float(_within(text, 1, 86_400, "whole seconds"))


def _port(text: str) -> int:
    return _within(text, 1, 65535, "a port")
