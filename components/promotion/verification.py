"""Checks of a candidate or release: every byte, digest, space, decision and signature that it stands on, as a list of findings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from components.artifacts import Artifact, digest_of, open_artifact, read_json, verify
from components.errors import ArtifactError, ModelError, ResourceError, SpaceMismatch, lack_behind
from components.evaluation.champion_comparison import ComparisonSummary, load_comparison, load_values
from components.gates.champion import HELD_BY_BOTH, NON_INFERIOR
from components.gates.config import PolicyConfig
from components.gates.decide import VALUES, GateDecision, GateInputs, decide, require_policy, require_same_inputs, verdict_of
from components.gates.decision import load_facts
from components.gates.measures import LEFT_OUT_SINCE, STUDENT_SINCE
from components.gates.policy import foreign_policy, policy_digest, recorded_policy
from components.gates.soundness import REMOVED
from components.index.search import merge_fault_of
from components.promotion.verified_stores import FolderStore, RegistryStore, Store
from components.release.champion import (
    CHAMPION,
    RED,
    Record,
    baseline_evaluation,
    digest_in,
    expected_aliases,
    newest_promoted,
    settled_release,
    standing,
)
from components.release.manifest import (
    COMPARISON_FOLDER,
    EVALUATION_FOLDER,
    RELEASE_FILE,
    VALIDATION_FOLDER,
    Pin,
    ReleaseManifest,
    evaluation_pin,
    load_release,
    load_release_of,
    require_report,
)
from components.release.open import resolve
from components.release.reviewers import require_not_own
from components.signing.keys import TrustedKey, trusted_keys
from components.signing.statements import check_audit, check_records, check_release
from components.text import written
from components.tracking.packaging import check_package
from components.tracking.server.permissions import POLICY_VARIABLE, sources
from components.tracking.store import TrackingError, require_answer

if TYPE_CHECKING:
    from components.evaluation.report import Evaluation

T = TypeVar("T")
Baselines = Callable[[int], "Evaluation"]


@dataclass(frozen=True)
class Check:
    """One finding: what was checked, whether it holds, and the digest or the difference."""

    name: str
    ok: bool
    detail: str


@dataclass
class _Report:
    """`own`: the checks are of the release itself, for which all that they need has to be there."""

    checks: list[Check] = field(default_factory=list)
    own: bool = False

    def run(self, name: str, check: Callable[[], T], detail: Callable[[T], str] = str) -> T | None:
        """Run one check and keep its outcome; None when it failed."""
        try:
            value = check()
            self.checks.append(Check(name, True, detail(value)))
            return value
        except Exception as error:  # whatever a damaged artifact makes a reader raise is a finding, not a crash
            if lack := lack_behind(error):
                raise ResourceError(
                    f"The check '{name}' could not be made on this machine, which says nothing of the release: {lack}. Run it again where "
                    "there is more room, or with higher limits (`ulimit -a`)."
                ) from error
            if isinstance(error, TrackingError):  # a server in trouble says nothing of the release either
                if self.own:
                    raise
                require_answer()
            missing = f"The field {error} is missing." if isinstance(error, KeyError) else ""
            if isinstance(error, TypeError | AttributeError | IndexError):
                missing = f"What stands there has another form than any that a command writes ({error})."
            self.checks.append(Check(name, False, missing or str(error) or type(error).__name__))
            return None


def verify_release(name: str, ref: str) -> list[Check]:
    """Check what `ref` (champion, previous, candidate/N, release/N) names, and the signatures and the audit log that it rests on.

    Findings are returned, never raised; PromotionError only when `ref` names nothing, ConfigError for trusted keys that are none,
    TrackingError for a server that is gone or in trouble, ResourceError for what this machine lacks: they say nothing of the release.
    """
    try:
        alarm = settled_release(name).alarm if ref == CHAMPION else None
        model, version = resolve(name, ref)
    except ArtifactError as error:  # damaged records cannot tell what is champion, and that is the finding
        return [Check("promotion record", False, str(error))]
    alias = [Check("alias", alarm is None, alarm or "points where the newest promotion record says")] if ref == CHAMPION else []
    return alias + _all_checks(RegistryStore(name, model, version))


def verify_folder(name: str, root: Path, ref: str | None = None) -> list[Check]:
    """`verify_release` from files alone (see `FolderStore`): no server, no database, no alias.

    Without a `ref` it is the champion by the records there, or the only release where there are none.
    """
    return _all_checks(FolderStore(name, root, ref))


def check_version(name: str, model: str, version: int, lost: str = "") -> list[Check]:
    """All checks of one registered version itself. After a failed one, those that build on it are left out.

    `lost`: why the champion that it was compared with cannot be opened; the gates about it then are not decided again, all others are.
    """
    return _own_checks(RegistryStore(name, model, version), lost)


def _all_checks(store: Store) -> list[Check]:
    report = _Report(_own_checks(store))
    keys = trusted_keys()
    report.run("signed records", lambda: check_records(store.records(), keys))
    report.run("audit log", lambda: _audited(store))
    report.run("policy", lambda: _installed_policy(store))
    return report.checks


def _audited(store: Store) -> str:
    """The audit log is whole and proves what the records rest on it for; and who approved this release is not who made it."""
    records, entries, record = store.records(), store.trail(), store.record()
    found = check_audit(store.name, records, entries)
    if entries is not None and record is not None:
        manifest = load_release(store.copies()[0])
        for about in standing(records):
            if about.get("to_version") == record["to_version"]:
                require_not_own(about, entries, manifest)
    return found


def _installed_policy(store: Store) -> str:
    """It was decided by a policy that this installation allows, or let through with a reason."""
    if not (installed := sources(ask_server=not isinstance(store, FolderStore))):
        return f"the candidate's own decided: this installation names none ({POLICY_VARIABLE})"
    record = store.record() or {}
    foreign = foreign_policy(load_release(store.copies()[0]).config.get("policy", {}), bool(record), installed)
    if foreign is None:
        return "one of this installation's"
    promoted = [r for r in standing(store.records()) if r["action"] == "promote" and r["to_version"] == record.get("to_version")]
    if promoted and (why := promoted[-1].get("override")):
        return f"{RED} let through by {promoted[-1].get('override_by') or promoted[-1].get('approved_by')}: {why}. {foreign}"
    raise ArtifactError(f"{foreign} Keep the policies of earlier releases too: {POLICY_VARIABLE} may name a folder that holds them all.")


def _own_checks(store: Store, lost: str = "") -> list[Check]:
    report, keys = _Report(own=True), trusted_keys()
    report.run("promotion record", lambda: _recorded(store))
    artifacts = report.run("files", lambda: _files(store), lambda found: f"digest {found[0].digest[:12]}")
    if artifacts is None:
        return report.checks
    folder = artifacts[0].path
    report.run("signature", lambda: _signature([artifact.path for artifact in artifacts], keys))
    manifest = report.run("manifest", lambda: load_release_of(store.name, folder), lambda found: f"space {found.space_id[:12]}")
    if manifest is not None:
        _check_contents(report, store, manifest, folder)
        report.run("decision", lambda: _others_decided(store, manifest, folder, lost) if lost else _decision(store, manifest, folder))
    return report.checks


def _check_contents(report: _Report, store: Store, manifest: ReleaseManifest, folder: Path) -> None:
    for role, pin in manifest.pins.items():
        report.run(role.replace("_", " "), partial(_pinned, store, role, pin, manifest))
    report.run("claims", lambda: _claims(store, manifest, folder))
    report.run("evaluation", lambda: _evaluation(folder, manifest))
    report.run("validation", lambda: _validation(folder, manifest))
    report.run("evidence", lambda: _evidence(folder, manifest))
    report.run("packages", lambda: _packages(store, manifest))


def _validation(folder: Path, manifest: ReleaseManifest) -> str:
    """The validation is of the release's own data and contracts, and found as many broken rules as the gates were told."""
    from components.data.validation import load_report

    digest, report, facts = verify(folder / VALIDATION_FOLDER).digest, load_report(folder / VALIDATION_FOLDER), load_facts(folder)
    if report.dataset_digest != manifest.dataset.digest:
        raise ArtifactError(f"It is of the data {report.dataset_digest[:12]}, the release names {manifest.dataset.digest[:12]}.")
    if {contract.name: contract.version for contract in report.contracts} != manifest.dataset.contracts:
        raise ArtifactError("It checked other data contracts than the release names.")
    found = len(report.errors), len(report.warnings)
    told = (None, None) if facts is None else (facts.contract_errors, facts.contract_warnings)
    if any(stated is not None and stated != count for stated, count in zip(told, found, strict=True)):
        raise ArtifactError(f"It found {found[0]} errors and {found[1]} warnings, the gates were told {told[0]} and {told[1]}.")
    return f"digest {digest[:12]}, {found[0]} errors and {found[1]} warnings"


def _evidence(folder: Path, manifest: ReleaseManifest) -> str:
    """The reviewer's report is there, and the comparison with the champion is the one that the release was written with."""
    from components.evaluation.summarize import differences_apart

    require_report(folder, manifest)
    written_with = open_artifact(folder).parents.get(COMPARISON_FOLDER)
    if written_with is None:
        return "no comparison: there was no champion, or it could not be asked"
    comparison = verify(folder / COMPARISON_FOLDER, written_with)
    _require_own_parts(comparison, manifest, "comparison")
    summary = load_comparison(comparison.path)
    if summary is not None and (apart := differences_apart(summary.metrics, load_values(comparison.path))):
        raise ArtifactError(f"The comparison with the champion: {apart[0]}")
    return f"comparison digest {comparison.digest[:12]}"


def _recorded(store: Store) -> str:
    """The record chain holds, and names this version by the digest its files have now."""
    records, record = store.records(), store.record()
    if record is None:
        return f"{len(records)} records, none of them about this version"
    found = open_artifact(store.copies()[0])
    if found.digest != digest_in(record):
        raise ArtifactError(
            f"Record {record['sequence']} names the digest {record['manifest_digest'][:12]}, the files have {found.digest[:12]}."
        )
    return f"record {record['sequence']} of {len(records)}, claimed approval by {record['approved_by']}"


def _claims(store: Store, manifest: ReleaseManifest, folder: Path) -> str:
    """What the records say of this release is what its manifest and the registry say: candidate, digests, decision, verdict, override."""
    record = store.record()
    if record is None:
        return "no record makes any"
    about = [found for found in standing(store.records()) if found.get("to_version") == record["to_version"]]
    promoted = next((found for found in about if found["action"] == "promote"), None)
    if promoted is None:
        raise ArtifactError(f"Record {record['sequence']} leads to release/{record['to_version']}, which no record ever promoted.")
    for found in about:
        for what, value in {"candidate_version": store.origin(), "manifest_digest": record["manifest_digest"]}.items():
            if value is not None and what in found and found[what] != value:
                raise ArtifactError(f"Record {found['sequence']} names the {what} {str(found[what])[:12]}, true is {str(value)[:12]}.")
        if "evidence_digest" in found and found["evidence_digest"] != found["manifest_digest"]:
            raise ArtifactError(f"Record {found['sequence']} names evidence of another digest than the release that holds it.")
    for found in about:
        moved = _require_true_place(found, store.records())
        if found["action"] == "promote":
            _require_true_decision(found, manifest, folder)
        if found["action"] == "promote" and moved:
            _require_compared(found, store, manifest, folder)
    return f"{len(about)} records say of release/{record['to_version']} what it says itself"


def _require_true_decision(record: Record, manifest: ReleaseManifest, folder: Path) -> None:
    """A record of a promotion claims the decision in the manifest, or one more, and an override exactly where one was needed."""
    where, again = f"Record {record['sequence']}", record.get("decisions") or []
    own = {digest_of(manifest.decision.model_dump(mode="json")), digest_of(read_json(folder / RELEASE_FILE)["decision"])}
    if "decision_digest" in record and record["decision_digest"] not in own:
        raise ArtifactError(f"{where} names the decision {str(record['decision_digest'])[:12]}, which is not that of the manifest.")
    for decided in again:
        if digest_of(decided["decision"]) != decided["digest"]:
            raise ArtifactError(f"{where} holds a decision that does not fit its digest.")
    if again and (again[0]["digest"] not in own or again[-1]["against"] != record.get("from_version")):
        raise ArtifactError(f"{where} holds decisions that are not about this release and the champion that it replaced.")
    last = GateDecision.model_validate(again[-1]["decision"]) if again else manifest.decision
    for what in ("verdict", "first_release"):
        if what in record and record[what] != getattr(last, what):
            raise ArtifactError(f"{where} says {what} {record[what]}, the decision that it rests on {getattr(last, what)}.")
    if (last.verdict != "pass" or record.get("foreign_policy")) and not written(record.get("override")):
        raise ArtifactError(f"{where} promotes a release whose gates said {last.verdict}, and names no reason for it (override).")


def _require_true_place(record: Record, records: Sequence[Record]) -> bool:
    """A record moves the champion from where it stood, and promotes no release that was passed over or rolled back from.

    Returns whether it moved anything: one that names the champion of its moment repeats what another says.
    """
    before, number, target = list(records[: record["sequence"] - 1]), record["sequence"], record["to_version"]
    champion = expected_aliases(before).champion
    if champion == target:
        return False
    if "from_version" in record and record["from_version"] != champion:
        was = "nothing" if champion is None else f"release/{champion}"
        raise ArtifactError(f"Record {number} says that it replaced release/{record['from_version']}, champion was {was}.")
    if record["action"] == "promote" and target <= newest_promoted(before):
        raise ArtifactError(
            f"Record {number} promotes release/{target}, which was rolled back from or passed over before. No command does that: what is "
            "to serve again is approved again, and gets a number of its own."
        )
    return True


def _require_compared(record: Record, store: Store, manifest: ReleaseManifest, folder: Path) -> None:
    """A candidate was held against the champion that it replaced; where that is a second decision, it is made again as far as can be.

    Which documents both hold stands in no record, so what that has changed, as a lower power, is not held against the decision.
    """
    where, again = f"Record {record['sequence']}", record.get("decisions") or []
    if not again:
        if manifest.baseline_version != record.get("from_version") and not _is_of_before_comparisons(record, store.records()):
            raise ArtifactError(
                f"{where} replaced release/{record.get('from_version')}, and its release was compared with release/"
                f"{manifest.baseline_version} alone."
            )
        return
    stated, found = GateDecision.model_validate(again[-1]["decision"]), again[-1].get("comparison")
    comparison = None if found is None else ComparisonSummary.model_validate(found)
    if PolicyConfig.model_fields.keys() <= manifest.config["policy"].keys():  # else the version that decided late may have had more fields
        require_policy(stated, policy_digest(manifest.config["policy"]))
    made, lost = _made_again(store, manifest, folder, (again[-1]["against"], stated, comparison))
    before, now, shared = _statuses(stated), _statuses(made), "shared_documents" in stated.inputs
    # Records of before do not hold what was timed for them, and late decisions of before asked nothing of the documents that both hold.
    untimed = comparison is None and (not stated.inputs or "comparison" in stated.inputs)
    unasked = {"champion_p95", "champion_qps", REMOVED} if untimed else set()
    unasked |= {f"{NON_INFERIOR}[{HELD_BY_BOTH}]"} if stated.method == 1 and not shared else set()
    for name in sorted({*before, *now} - unasked):
        about_both = name.startswith(NON_INFERIOR)
        unknown = (lost and name.startswith("champion_")) or (shared and about_both and (name, before.get(name)) != (NON_INFERIOR, "pass"))
        worse = now.get(name) == "fail" if shared and about_both else now.get(name) != before.get(name)
        if worse and not unknown:
            raise ArtifactError(
                f"{where} says of its comparison with release/{again[-1]['against']} that {name} is '{before.get(name)}', decided again it "
                f"is '{now.get(name)}'."
            )
    if stated.verdict != verdict_of(stated.gates):
        raise ArtifactError(f"{where} says {stated.verdict} of its comparison, whose gates say {verdict_of(stated.gates)}.")


def _is_of_before_comparisons(record: Record, records: Sequence[Record]) -> bool:
    """Whether a version wrote it that only warned of another champion: its records, and those before them, have no field for decisions."""
    return not any("decisions" in found for found in records[: record["sequence"]] if found.get("action") == "promote")


def _made_again(
    store: Store, manifest: ReleaseManifest, folder: Path, recorded: tuple[int | None, GateDecision, ComparisonSummary | None]
) -> tuple[GateDecision, bool]:
    """The decision of a late approval, and whether the champion that it was about has been lost since."""
    from components.evaluation.report import load_evaluation

    champion, stated, comparison = recorded
    before = champion is not None and bool(stated.inputs) and "baseline" not in stated.inputs
    gone = "it could not be opened when it was compared." if before else ""
    baseline, lost = None, False
    try:
        baseline = None if champion is None or gone else store.baseline(champion)
    except (ArtifactError, ModelError) as error:
        if lack_behind(error):
            raise
        gone, lost = str(error), True
    report, facts = load_evaluation(folder / EVALUATION_FOLDER), load_facts(folder)
    evidence = GateInputs(report, baseline, comparison, facts, champion=champion, lost=gone)
    return decide(evidence, recorded_policy(manifest.config), stated.method), lost


def _files(store: Store) -> list[Artifact]:
    expected = store.digest()
    return [verify(folder, expected) for folder in store.copies()]


def _signature(folders: Sequence[Path], keys: Mapping[str, TrustedKey]) -> str:
    first, *_ = [check_release(folder, keys) for folder in folders]
    return "unsigned: no signing key was configured" if first is None else str(first)


def _pinned(store: Store, role: str, pin: Pin, manifest: ReleaseManifest) -> str:
    for folder in store.parts(pin):
        artifact = verify(folder, pin.digest)
        if artifact.space_id != manifest.space_id:
            raise SpaceMismatch(
                f"{pin.model}/{pin.version} belongs to the space {artifact.space_id[:12]}, the release to {manifest.space_id[:12]}."
            )
        if artifact.kind == "encoder":
            _contract(role, folder, manifest.space_id)
        if artifact.kind == "index" and (fault := merge_fault_of(artifact)):
            raise ArtifactError(fault)
    return f"{pin.model}/{pin.version}, digest {pin.digest[:12]}"


def _packages(store: Store, manifest: ReleaseManifest) -> str:
    """The code with which MLflow loads the release and its parts, which lies around the artifacts, is what was registered."""
    places = [(store.copies(), store.package(None))]
    places += [(store.parts(pin), store.package(pin)) for _, pin in manifest.pins.items()]
    held = sum(check_package(folders, expected) for folders, expected in places)
    return f"{held} of {len(places)} as registered" + ("" if held == len(places) else "; for the others no list of files is here")


def _contract(role: str, folder: Path, space_id: str) -> None:
    """The encoder's own contract names the release's space; the document tower's contract is what the name is made of."""
    from components.towers.contract import load_contract, space_id_of

    contract, stated = load_contract(folder)
    actual = space_id_of(contract) if role == "document_tower" else stated
    if not stated == actual == space_id:
        raise SpaceMismatch(f"The encoding contract of the {role} gives the space {actual[:12]}, the release has {space_id[:12]}.")


def _evaluation(folder: Path, manifest: ReleaseManifest) -> str:
    """The report is the one that was decided on, it measured what this release pins, and its figures are those of its values."""
    from components.evaluation.report import load_evaluation
    from components.evaluation.summarize import figures_apart

    report = verify(folder / EVALUATION_FOLDER, manifest.evaluation.digest)
    _require_own_parts(report, manifest, "evaluation")
    measured = load_evaluation(folder / EVALUATION_FOLDER)
    if evaluation_pin(measured.summary, report.digest) != manifest.evaluation:
        raise ArtifactError("The manifest states other figures, queries or judgements than the evaluation that it names.")
    method, units = manifest.decision.method, measured.summary.units
    least = LEFT_OUT_SINCE if units is not None and units.spread == "left_out" else 1
    least = STUDENT_SINCE if measured.summary.ends == "student" else least
    if method < least:
        raise ArtifactError(
            f"The decision says that it was made by the method {method}, and its evaluation was written by a later version, which decides "
            f"by the method {least} or a later one: one of both was changed. Build the candidate again."
        )
    if apart := figures_apart(measured):
        raise ArtifactError(f"{apart[0]} What a reviewer was shown is not what was measured.")
    return f"digest {report.digest[:12]}, {manifest.evaluation.queries} queries"


def _require_own_parts(measured: Artifact, manifest: ReleaseManifest, what: str) -> None:
    for role in ("query_encoder", "index"):
        pin: Pin = getattr(manifest.pins, role)
        if pin.digest not in measured.parents.values():
            raise ArtifactError(f"The {what} did not measure the {role} that the release pins ({pin.model}/{pin.version}).")


def _decision(store: Store, manifest: ReleaseManifest, folder: Path) -> str:
    """The gates, decided again from the report, the policy and the same champion, end as the manifest says."""
    again = recompute_decision(store.name, manifest, folder, store.baseline)
    stated = manifest.decision
    if _outcome(again) != _outcome(stated):
        difference = _differences(again, stated)
        raise ArtifactError(f"The manifest says '{stated.verdict}', the gates decided again say '{again.verdict}'. {difference}")
    return f"{stated.verdict}, the same when decided again"


def _others_decided(store: Store, manifest: ReleaseManifest, folder: Path, lost: str) -> str:
    """The gates that are not about the champion, decided again, end as the manifest says."""
    again = decide_on(store.name, manifest, folder, lost=lost)
    require_policy(manifest.decision, policy_digest(manifest.config["policy"]))
    before, now = _statuses(manifest.decision), _statuses(again)
    wrong = sorted(name for name in {*before, *now} if not name.startswith("champion_") and before.get(name) != now.get(name))
    if wrong:
        raise ArtifactError(f"{wrong[0]} is '{before.get(wrong[0])}' in the manifest, decided again '{now.get(wrong[0])}'.")
    return f"{manifest.decision.verdict}; the gates against the champion cannot be decided again: {lost}"


def recompute_decision(name: str, manifest: ReleaseManifest, folder: Path, baseline_of: Baselines | None = None) -> GateDecision:
    """`decide_on` what the release was decided on: raises ArtifactError when its decision names other inputs or another policy."""
    again = decide_on(name, manifest, folder, baseline_of)
    require_same_inputs(manifest.decision, again, policy_digest(manifest.config["policy"]))
    return again


def decide_on(name: str, manifest: ReleaseManifest, folder: Path, baseline_of: Baselines | None = None, lost: str = "") -> GateDecision:
    """Decide by the manifest's policy from what lies in `folder`; raises ArtifactError when policy or baseline are not there.

    `baseline_of` gives the evaluation of an earlier champion by its version; without it the registry does. It is not asked when it is
    `lost`, nor where it was when the manifest was written.
    """
    from components.evaluation.report import load_evaluation

    policy, find = recorded_policy(manifest.config), baseline_of or partial(baseline_evaluation, name)
    version, stated = manifest.baseline_version, manifest.decision.inputs
    if version is not None and stated and "baseline" not in stated:
        lost = lost or f"release/{version} could not be opened when the candidate was built."
    baseline = None if version is None or lost else find(version)
    report, compared = load_evaluation(folder / EVALUATION_FOLDER), folder / COMPARISON_FOLDER
    # Decisions of older versions were made without these values, though they lay there.
    values = load_values(compared) if VALUES in manifest.decision.inputs else None
    evidence = GateInputs(report, baseline, load_comparison(compared), load_facts(folder), values, version, lost)
    return decide(evidence, policy, manifest.decision.method)


def _outcome(decision: GateDecision) -> tuple[str, bool, dict[str, str]]:
    return decision.verdict, decision.first_release, _statuses(decision)


def _statuses(decision: GateDecision) -> dict[str, str]:
    """Gates that are off are left out: a gate that an older version did not have is the same as one that is off."""
    return {gate.name: gate.status for gate in decision.gates if gate.status != "off"}


def _differences(again: GateDecision, stated: GateDecision) -> str:
    before = {gate.name: gate.status for gate in stated.gates}
    changed = [gate for gate in again.gates if before.get(gate.name) != gate.status]
    return " ".join(f"{gate.name}: {before.get(gate.name)} became {gate.status}." for gate in changed)
