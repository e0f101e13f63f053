"""The contracts and what was found, as a project of Great Expectations: suites, data source, checkpoint, its result, and Data Docs.

Its users open the folder with `great_expectations.get_context(project_root_dir=FOLDER)` and run the checkpoint `contracts` again; actions
that they give it stay when the project is written again. The tables lie beside it with the columns that rules over several tables need,
since Great Expectations looks at one table at a time.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.artifacts import digest_of
from components.data.contracts import Contract
from components.data.dataset import Dataset
from components.data.validation import cannot_check, compile_suite, forget_texts, helper_column_name, with_helper_columns
from components.data.validation_report import requirement
from components.errors import ConfigError

if TYPE_CHECKING:
    from great_expectations import ValidationDefinition
    from great_expectations.data_context import FileDataContext

CHECKPOINT = "contracts"
TABLES = "tables"  # folder of the checked tables, beside the project's own folder `gx`
_SOURCE = "tables"
_LONGEST = 80  # letters of a name in a path
_FOREIGN = re.compile(r"[^\w -]")
# Names that files can have and regular expressions take for themselves; the dot among them means any letter.
_PLAIN = re.compile(r"[^/\\^$*+?{}\[\]()|\x00-\x1f]{1,120}")
_SHOWN = 5  # unexpected values that a result names


def write_gx_project(dataset: Dataset, contracts: Sequence[Contract], folder: Path) -> dict[str, Any]:
    """Write or bring up to date the project in `folder`, run its checkpoint, and build its Data Docs.

    Returns the number of suites, how many expectations failed by severity, and the page of the docs. A rule that cannot be checked on
    this data has no expectation; the project's own report says so. Raises ConfigError for a folder that cannot be written or holds
    something else.
    """
    folder = folder.absolute()  # Great Expectations keeps it as given, and would look for the tables beside whoever opens the project
    try:
        (folder / TABLES).mkdir(parents=True, exist_ok=True)
        context = _context(folder)
        found = [
            _definition(context, dataset, contract, table, folder / TABLES)
            for contract in contracts
            for table in dict.fromkeys(rule.table for rule in contract.rules)
        ]
    except OSError as error:
        raise ConfigError(f"--gx-project {folder} cannot be written: {error.strerror or error}. Name a new folder.") from None
    finally:
        forget_texts()
    result = _checkpoint(context, found).run()
    pages = context.build_data_docs()
    page = next((str(address) for address in pages.values()), "").removeprefix("file://")
    severities = Counter(
        str(outcome.expectation_config.meta["severity"])
        for table in result.run_results.values()
        for outcome in table.results
        if not outcome.success
    )
    return {"suites": len(found), "failed": {name: severities[name] for name in ("error", "warning")}, "data_docs": page}


def _context(folder: Path) -> FileDataContext:
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig
    from great_expectations.exceptions import GreatExpectationsError

    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    try:
        context = gx.get_context(mode="file", project_root_dir=folder)
    except (GreatExpectationsError, ValueError) as error:
        said = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"--gx-project {folder} is no project of Great Expectations that can be opened ({said}). Name a new folder."
        ) from None
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    context.variables.save()
    return context


def _definition(context: FileDataContext, dataset: Dataset, contract: Contract, table: str, tables: Path) -> ValidationDefinition:
    """One table against the rules of one contract: the table as a file, its asset, the suite, and what ties both."""
    from great_expectations import ValidationDefinition

    rules = [rule for rule in contract.rules if rule.table == table]
    unchecked = {rule.name for rule in rules if cannot_check(dataset, rule)}
    frame = with_helper_columns(dataset, table, tuple(rule for rule in rules if rule.name not in unchecked))
    name = f"{_in_paths(contract.name)}-{table}"
    frame.to_parquet(tables / f"{name}.parquet", index=False)
    suite = compile_suite(contract, table, without=unchecked)
    by_name = {rule.name: rule for rule in rules}
    for expectation in suite.expectations:
        rule = by_name[expectation.meta["rule"]]
        expectation.notes = [rule.description] if rule.description else None
        if helper_column_name(rule) in frame:  # which its pages would say nothing of but that it has to be empty
            expectation.description = requirement(rule).replace("$", "$$")  # a template to them
    suite.name = f"{_in_paths(contract.name)}-{_in_paths(contract.version)}-{table}".replace(".", "_")  # a dot would make a folder
    suite = context.suites.add_or_update(suite)
    source = context.data_sources.add_or_update_pandas_filesystem(f"{_SOURCE}-{name}", base_directory=tables)
    # Read back as they were checked: pandas' own default type for text is none that its expectations of types know.
    batch = source.add_parquet_asset(name, dtype_backend="numpy_nullable").add_batch_definition_path("all", path=f"{name}.parquet")
    return context.validation_definitions.add_or_update(ValidationDefinition(name=name, data=batch, suite=suite))


def _in_paths(text: str) -> str:
    """A contract's name or version as files are called and found: Great Expectations takes their names for regular expressions."""
    if _PLAIN.fullmatch(text):
        return text
    return f"{_FOREIGN.sub('_', text)[:_LONGEST]}-{digest_of(text)[:8]}"  # two names that differ in such letters alone stay two


def _checkpoint(context: FileDataContext, found: Sequence[ValidationDefinition]) -> Any:
    from great_expectations import Checkpoint
    from great_expectations.checkpoint import UpdateDataDocsAction
    from great_expectations.exceptions import DataContextError

    actions: list[Any] = [UpdateDataDocsAction(name="data docs")]
    with suppress(DataContextError):  # there is none yet
        actions = context.checkpoints.get(CHECKPOINT).actions  # a team adds its own, such as a message to Slack
    checkpoint = Checkpoint(
        name=CHECKPOINT,
        validation_definitions=list(found),
        actions=actions,
        result_format={"result_format": "SUMMARY", "partial_unexpected_count": _SHOWN},
    )
    return context.checkpoints.add_or_update(checkpoint)
