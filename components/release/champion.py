"""Which release is champion and which was before it: by the promotion records, never by an alias alone.

A promotion pushes a release on a stack, a rollback pops one: `champion` is the top, `previous` the one below, where the next rollback
would go. An alias can be moved by anyone who may write to the registry and leaves no trace of who did it, so an alias that does not match
the records is put back, and serving does not follow it.

An override is shown in red: MLflow's pages strip colours and styles from a description, so the red is a red square.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from components.artifacts import verify
from components.errors import ArtifactError, ModelError, PromotionError, lack_behind
from components.gates.config import PolicyConfig
from components.gates.policy import policy_digest
from components.release.manifest import EVALUATION_FOLDER, load_release
from components.templates import plain
from components.text import whole_number
from components.tracking import labels, registry
from components.tracking import promotion_records as record_store
from components.tracking.promotion_records import FORGED, STRIKE, struck_out

if TYPE_CHECKING:
    from components.evaluation.report import Evaluation


OVERRIDDEN = "overridden"
RED = "\U0001f7e5"


class Override(NamedTuple):
    """Why a release was let through although its gates said `verdict`; `person` is None when nobody was signed in.

    `foreign`: they were decided by a policy that is not the installation's.
    """

    reason: str
    person: str | None
    verdict: str
    foreign: bool = False

    @property
    def what(self) -> str:
        """What was done."""
        return f"released although its gates said {self.verdict}" + (", by a policy that is not the installation's" if self.foreign else "")

    @property
    def who(self) -> str:
        """By whom and why, in one line: a line break would end a red line early."""
        return f"by {self.person or 'unauthenticated'}: {' '.join(self.reason.split())}"

    @property
    def line(self) -> str:
        """One line of markdown, in red as far as MLflow shows it."""
        return f"{RED} **OVERRIDE: {self.what}**, {as_text(self.who)}"


def override_of(records: Sequence[Record], version: int) -> Override | None:
    """The override that release `version` was promoted with, also after a rollback to it; None when it needed none."""
    promoted = [r for r in standing(records) if r["action"] == "promote" and r["to_version"] == version and r.get("override")]
    if not promoted:
        return None
    last = promoted[-1]
    return Override(str(last["override"]), last.get("override_by"), str(last.get("verdict")), bool(last.get("foreign_policy")))


def show_override_in_mlflow(name: str, records: Sequence[Record]) -> None:
    """Put the reason of the newest promotion's override into a tag and above the description of its release; else nothing.

    Only a promotion that has a record is marked. One that was killed before its mark gets it from the next, and so does one whose mark
    somebody has taken out.
    """
    promoted = (int(r["to_version"]) for r in reversed(standing(records)) if r["action"] == "promote")
    model, version = release_model(name), next(promoted, 0)
    override = override_of(records, version)
    release = next((info for info in registry.versions(model) if info.version == version), None)
    if override is None or release is None:
        return
    text = registry.description(model, version)  # the tag alone shows nothing: it may have come along with the copy
    if not text.startswith(override.line[: labels.MAX_DESCRIPTION // 2]):
        registry.set_description(model, version, f"{override.line}\n\n{text}")
    if release.tags.get(labels.PREFIX + OVERRIDDEN) != labels.cut(override.reason, labels.MAX_TAG):
        registry.set_version_tag(model, version, OVERRIDDEN, override.reason)


def as_text(words: str) -> str:
    """Words from outside as markdown that shows them: one line that starts no HTML, link or emphasis, and ends no cell of a table."""
    # An underscore within a word is none of emphasis; an address is a link wherever it stands.
    line = re.sub(r"([\\|`*\[\]~]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(plain(words).split()))
    return re.sub(r"(?i)(?<=:)(?=//)|(?<=\bwww)(?=\.)", r"\\", line).replace("<", "&lt;")


# --- Which release stands where: replayed from the promotion records, which are the truth; aliases only point there.


CHAMPION = "champion"
ACTIONS = ("promote", "rollback", "vouch")
PREVIOUS = "previous"
Record = Mapping[str, Any]
MOMENT = 1.0  # seconds between the record of a change and its aliases, when nothing goes wrong
_UNDER_WAY = "a change was interrupted, or the alias was moved by hand"
_log = logging.getLogger(__name__)


class Aliases(NamedTuple):
    """Versions of the release model that the two aliases point at; None where there is none."""

    champion: int | None
    previous: int | None


class Reconciled(NamedTuple):
    """What had to be done to make the aliases match the records, and a sentence about it (empty when nothing)."""

    kind: Literal["clean", "finished", "put_back"]
    note: str = ""


class Servable(NamedTuple):
    """The version that serving may serve, and an alarm when the alias says otherwise."""

    version: int
    alarm: str | None


def candidate_model(name: str) -> str:
    """Registered model that the pipeline writes candidates to."""
    return f"{name}-candidate"


def release_model(name: str) -> str:
    """Registered model that holds approved releases; serving follows its alias `champion`."""
    return f"{name}-release"


def standing(records: Sequence[Record]) -> list[Record]:
    """The records that decide: neither those that were struck out as forged nor the strikes, nor one that only vouches for such.

    Raises ArtifactError as `struck_out`.
    """
    struck = struck_out(records)
    return [record for record in records if record.get("sequence") not in struck and not _is_silent(record)]


def _is_silent(record: Record) -> bool:
    return record.get("action") == STRIKE or (record.get("action") == "vouch" and record.get("to_version") is None)


def champion_stack(records: Sequence[Record]) -> list[int]:
    """The stack of releases after `records`, the champion last; raises ArtifactError for a rollback to where nothing stood.

    A rollback names the releases that it passed over, because they could not be served any more.

    A record that two processes wrote at the same time counts once. One that no version of this program writes decides nothing, and one that
    was struck out counts no more.
    """
    stack: list[int] = []
    for record in standing(records):
        action, target, passed_over = _step_of(record)
        if stack and stack[-1] == target:
            continue
        if action == "promote":
            stack.append(target)
            continue
        if action == "vouch":
            raise ArtifactError(_impossible(record, f"vouches for release/{target}, which was not champion then"))
        stack = stack[:-1]
        while stack and stack[-1] != target and stack[-1] in passed_over:
            stack = stack[:-1]
        if not stack or stack[-1] != target:
            raise ArtifactError(_impossible(record, f"rolls back to release/{target}, which was not the one before"))
    return stack


def _impossible(record: Record, what: str) -> str:
    return f"Promotion record {record.get('sequence')} {what}. {FORGED.format(record.get('sequence'))}"


def _step_of(record: Record) -> tuple[str, int, set[int]]:
    """Action, target and the releases that were passed over; raises ArtifactError for a record of another form."""
    action, target, skipped = record.get("action"), record.get("to_version"), record.get("skipped") or {}
    numbers = [target, *(() if record.get("from_version") is None else (record["from_version"],))]
    whole = all(type(number) is int and number > 0 for number in numbers)
    passed_over = [whole_number(str(version)) for version in skipped] if isinstance(skipped, Mapping) else [None]
    if action not in ACTIONS or not whole or None in passed_over:
        raise ArtifactError(
            f"Promotion record {record.get('sequence')} is none that the promote flow writes, in this version: its action is "
            f"{as_text(str(action))[:60]}, its target {as_text(str(target))[:60]}. Where others promote with a newer version of this "
            "program, update this one; else somebody wrote into the experiment of the records. "
            f"{FORGED.format(record.get('sequence'))}"
        )
    return str(action), int(target), {version for version in passed_over if version is not None}  # type: ignore[arg-type]


def newest_promoted(records: Sequence[Record]) -> int:
    """The highest number of a release that a record names; 0 for none. Raises ArtifactError as `champion_stack` does."""
    return max((_step_of(record)[1] for record in standing(records)), default=0)


def expected_aliases(records: Sequence[Record]) -> Aliases:
    """Where the aliases belong after `records`."""
    stack = champion_stack(records)
    return Aliases(stack[-1] if stack else None, stack[-2] if len(stack) > 1 else None)


def current_aliases(name: str) -> Aliases:
    """Where the aliases point now."""
    model = release_model(name)
    return Aliases(registry.alias(model, CHAMPION), registry.alias(model, PREVIOUS))


def moved(records: Sequence[Record]) -> Sequence[Record]:
    """`records` up to the newest that moved the champion: who signed the records afterwards moved nothing."""
    end = len(records)
    while end and records[end - 1].get("action") == "vouch":
        end -= 1
    return records[:end]


def was_interrupted(records: Sequence[Record], aliases: Aliases) -> bool:
    """Whether `aliases` is a state between the newest record and the end of its promotion or rollback.

    Both aliases are looked at: one that is moved by hand to the former champion alone is no interruption.
    """
    records = moved(records)
    if not records:
        return False
    after = expected_aliases(records)
    try:
        before = expected_aliases(records[:-1])
    except ArtifactError:  # a forged record stood there, which the newest one strikes out
        return False
    return aliases != after and aliases in (before, Aliases(after.champion, before.previous))


def reconcile(name: str, records: Sequence[Record]) -> Reconciled:
    """Make the aliases point where the records say: finishes an interrupted change, puts back one moved by hand.

    A version that was deleted from the registry gets no alias, and the note says so; a newer one can still be promoted.
    """
    want, have = expected_aliases(records), current_aliases(name)
    record_store.state_head(name, records)
    possible, gone = registered(name, want, records)
    if possible == have:
        return Reconciled("clean", _gone_note(gone[0], possible) if gone else "")
    place_aliases(name, possible, have)
    if was_interrupted(records, have) and not gone:
        return Reconciled("finished", f"Finished an interrupted change: {_text(want)}.")
    note = f"The aliases did not match the promotion records ({_text(have)}) and were put back: {_text(possible)}."
    if gone:
        note = _gone_note(gone[0], possible)
    _log.warning(note)
    return Reconciled("put_back", note)


def settle_aliases(name: str) -> None:
    """Make the aliases follow the records as they are now: another promotion may have come between the record and this."""
    for _ in range(3):
        records = record_store.read_records(name)
        record_store.state_head(name, records)
        (want, _), have = registered(name, expected_aliases(records), records), current_aliases(name)
        if want == have:
            return
        place_aliases(name, want, have)


def place_aliases(name: str, want: Aliases, have: Aliases) -> None:
    """Set or delete both aliases, champion first: this order tells an interruption from a change by hand."""
    model = release_model(name)
    for alias, target, actual in ((CHAMPION, want.champion, have.champion), (PREVIOUS, want.previous, have.previous)):
        if target == actual:
            continue
        if target is None:
            registry.delete_alias(model, alias)
        else:
            registry.set_alias(model, alias, target)


def servable_release(name: str) -> Servable:
    """The release that may be served, and an alarm if the alias `champion` does not match the newest promotion record.

    What was decided last is served, also where its change was interrupted before the aliases followed: aliases that somebody moved back
    by hand look the same, and after a rollback they would lead to the withdrawn release. Raises PromotionError when nothing was ever
    promoted, ArtifactError when the records are damaged.
    """
    records = record_store.read_records(name)
    want, have = expected_aliases(records), current_aliases(name)
    if want.champion is None:
        raise PromotionError(
            f"No release of '{name}' was promoted yet. Approve a candidate (scalingnote approve candidate/N --as NAME) "
            "and promote it (scalingnote promote)."
        )
    if have.champion == want.champion:
        return Servable(want.champion, None)
    cause = _UNDER_WAY if was_interrupted(records, have) else "the alias was moved by hand"
    return Servable(
        want.champion,
        f"The alias 'champion' points at {_place(have.champion)}, the newest promotion record names release/{want.champion}, "
        f"which is served: {cause}. Run 'scalingnote promote' to put the alias right.",
    )


def settled_release(name: str) -> Servable:
    """`servable_release`, asked once more after a moment where a promotion may be under way: its record comes before its aliases."""
    found = servable_release(name)
    if found.alarm and _UNDER_WAY in found.alarm:
        time.sleep(MOMENT)
        found = servable_release(name)
    return found


def servable_version(name: str) -> int:
    """The version of `servable_release`; an alarm is logged as a warning."""
    version, alarm = servable_release(name)
    if alarm:
        _log.warning(alarm)
    return version


def _gone_note(version: int, aliases: Aliases) -> str:
    return (
        f"The promotion records name release/{version}, which was deleted from the registry, or whose tag {labels.DIGEST} was changed. "
        f"The aliases: {_text(aliases)}."
    )


def registered(name: str, want: Aliases, records: Sequence[Record]) -> tuple[Aliases, list[int]]:
    """`want` without the versions that are no longer registered, and those versions.

    A number is given again when the newest version is deleted, so a version of another digest than its record's is another release.
    """
    wanted = [version for version in want if version is not None]
    digests = {int(record["to_version"]): record.get("manifest_digest") for record in standing(records)}
    found = {info.version: info.tags.get(labels.DIGEST) for info in registry.versions(release_model(name))} if wanted else {}
    there = {version for version, digest in found.items() if digest is None or digests.get(version) in (None, digest)}
    keep = [version if version in there else None for version in want]
    return Aliases(*keep), [version for version in wanted if version not in there]


def _place(version: int | None) -> str:
    return "nothing" if version is None else f"release/{version}"


def _text(aliases: Aliases) -> str:
    return f"champion -> {_place(aliases.champion)}, previous -> {_place(aliases.previous)}"


# --- The champion's own evaluation, which a candidate is held against.


class ChampionEvaluation(NamedTuple):
    """The version of the release model that is champion, and the evaluation it was released with.

    Without an evaluation the champion was deleted or damaged, and `lost` says so: its gates stay undecided.
    """

    version: int
    evaluation: Evaluation | None
    lost: str = ""


def load_champion_evaluation(name: str) -> ChampionEvaluation | None:
    """The champion by the promotion records, without its evaluation where it is lost; None before the first promotion."""
    version = expected_aliases(record_store.read_records(name)).champion
    return None if version is None else _baseline(name, version)


def _baseline(name: str, version: int) -> ChampionEvaluation:
    try:
        return ChampionEvaluation(version, baseline_evaluation(name, version))
    except (ArtifactError, ModelError) as error:
        if lack_behind(error):  # of this machine: the champion is where it was
            raise
        return ChampionEvaluation(version, None, f"release/{version} of '{name}' cannot be opened: {error}")


def lost(name: str, version: int) -> str:
    """Why the evaluation of a promoted release cannot be read: it was deleted, or a file of it is damaged; empty when it can."""
    return _baseline(name, version).lost


def champion_to_compare_with(name: str, pins: Mapping[str, str], evaluation: str, policy: PolicyConfig) -> ChampionEvaluation | None:
    """What a release with the artifacts `pins` (role -> digest), its evaluation (digest) and policy is held against: the champion.

    A release that is the champion itself is held against what the champion was compared with, so that building it again decides
    and registers nothing new. A champion that is lost leaves its gates undecided, and builds a candidate all the same.
    """
    champion = load_champion_evaluation(name)
    if champion is None or champion.lost:
        return champion
    manifest = load_release(registry.artifact_folder(release_model(name), champion.version))
    same = {role: pin.digest for role, pin in manifest.pins.items()} == dict(pins)
    if not (same and manifest.evaluation.digest == evaluation and policy_digest(policy) == policy_digest(manifest.config["policy"])):
        return champion
    return None if manifest.baseline_version is None else _baseline(name, manifest.baseline_version)


def baseline_evaluation(name: str, version: int) -> Evaluation:
    """The evaluation of a promoted release; raises ArtifactError unless it is that of the digest in its promotion record."""
    record = record_of(record_store.read_records(name), version)
    if record is None:
        raise ArtifactError(f"{release_model(name)}/{version} was never promoted, so it cannot be a baseline.")
    return verified_evaluation(registry.artifact_folder(release_model(name), version), digest_in(record))


def verified_evaluation(folder: Path, digest: str) -> Evaluation:
    """The evaluation in a release's folder; raises ArtifactError unless release and evaluation are whole and the release is `digest`."""
    from components.evaluation.report import load_evaluation

    verify(folder, digest)
    verify(folder / EVALUATION_FOLDER, load_release(folder).evaluation.digest)
    return load_evaluation(folder / EVALUATION_FOLDER)


def digest_in(record: Record) -> str:
    """The digest of the release that a record names; raises ArtifactError for a record that names none, as no command writes it."""
    digest = record.get("manifest_digest")
    if not isinstance(digest, str) or not digest:
        raise ArtifactError(_impossible(record, "names no digest of the release that it serves, so no command has written it"))
    return digest


def record_of(records: Sequence[Record], version: int) -> Record | None:
    """The newest record that moved the champion to `version`."""
    return next((record for record in reversed(standing(records)) if record.get("to_version") == version), None)
