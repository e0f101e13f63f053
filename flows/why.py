"""Why a step was made again: the parts of each result's key, kept beside its folder, and what differs between two of them, in words.

The record lies outside the sealed folder, since who asked for a result and when must not change its digest. An input that differs is
followed to the step that made it, so that the reason is a setting or a file of code and not a digest.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components import settings
from components.artifacts import MANIFEST, read_versioned, write_json
from components.errors import ArtifactError, ConfigError
from flows.config import did_you_mean

if TYPE_CHECKING:
    from components.artifacts import Artifact

SCHEMA_VERSION = 1
SUFFIX = ".key.json"
DATA = "snapshot_data"
# Steps of the flows in their order, with what each does; those of studies are known once they have run.
STEPS = {
    "snapshot_data": "Read the source and keep it as tables.",
    "validate_data": "Hold the tables against the data contracts; red where one is broken.",
    "generate_queries": "Let a decoder write queries for documents.",
    "train_companion": "Train the small encoder beside the towers, where towers.companion names one.",
    "train_towers": "Stage 1: train query and document tower, or take a teacher that is trained already.",
    "join_companion": "Put it beside the towers: one vector of both.",
    "encode_corpus": "Encode all documents with the document tower, in shards.",
    "build_index": "Build the search index over the documents' vectors.",
    "map_query_tower": "Lead a new teacher's queries into the space of an index that stays.",
    "encode_teacher_queries": "Compute the teacher's query vectors, which the student learns from.",
    "distil_query_tower": "Stage 2: align the small query encoder to the teacher and refine it on the index.",
    "evaluate": "Measure BM25, the untrained encoder, the teacher and the student on judged queries.",
    "encode_changes": "Encode the documents that were added or changed since the release.",
    "refresh_index": "Carry the release's index over, without what was removed and with what was encoded.",
    "compare_with_champion": "Ask candidate and champion the same queries.",
    "write_candidate": "Pin the parts, the decision of the gates and the evidence as one candidate.",
}
# Settings that are no one's choice: earlier steps gave them.
GIVEN = ("pins", "decision", "baseline", "baseline_version", "uncompared", "timings")
MOVED = ("towers.companion",)  # until 2026-11-30 a part of train_towers
SHOWN_AT_START = 3  # reasons in the line that a step begins with
VALUE_LENGTH = 60  # characters of a setting's value
_DIGEST = re.compile(r"[0-9a-f]{40,64}")


@dataclass(frozen=True)
class Reason:
    """One difference: `kind` is setting, input, code, library, version, files or asked; `subject` is its name; None stands for none.

    `step` is the earlier step that was made again for it, empty for a reason of the step itself.
    """

    kind: str
    subject: str
    before: Any = None
    after: Any = None
    step: str = ""

    @property
    def words(self) -> str:
        """The reason as a part of a sentence."""
        if self.kind == "asked":
            return "it was asked for again"
        if self.kind == "files":
            return f"its files were changed or removed ({self.subject})"
        if self.kind == "input":
            return f"its input {self.subject} {self._course('changed')}"
        if self.kind == "code":
            return f"{self.subject} {self._course('changed')}"
        if self.subject == "source_digest":
            return "the content of data.source changed"
        return f"{self.subject} {self._course(f'changed from {_shown(self.before)} to {_shown(self.after)}')}"

    def _course(self, changed: str) -> str:
        if self.before is None and self.kind != "setting":
            return "is new"
        return "is no longer used" if self.after is None and self.kind != "setting" else changed


def keep_use(folder: Path, inputs: Mapping[str, Artifact], retriever: str, flow_run: str) -> None:
    """Note that a finished result was taken for `retriever`: what its next result is compared with.

    Of its inputs, the same as ever, those steps are noted that gave them now: they may have been made again and come out alike.
    """
    with suppress(ArtifactError, OSError):  # without a readable record there is nothing to note it in, and no reason to fail
        record = _read(_place(folder))
        record["parts"]["inputs"] = {role: made_by(artifact) for role, artifact in inputs.items()}
        write_json(_place(folder), record | {"uses": record["uses"] | _use(retriever, flow_run, _now())})


def keep_begin(folder: Path, parts: Mapping[str, Any], retriever: str, flow_run: str, damage: str, asked: bool = False) -> list[Reason]:
    """Keep the parts of the key of a result that is about to be made, and return why: empty where nothing is known to compare with.

    `damage` says what is wrong with the finished result that was there, if one was; `asked`: somebody wants it again in any case.
    """
    place, own, now = _place(folder), {}, _now()
    with suppress(ArtifactError):
        own = _read(place)
    if own.get("finished_at") and not damage:
        damage = "the result is not there any more"
    parts = json.loads(json.dumps(parts, default=str))  # as it will be read again: a tuple would differ from its own list
    earlier = _last_used(folder, retriever)
    if asked:
        reasons = [Reason("asked", folder.parent.name)]
    else:
        reasons = [Reason("files", damage)] if damage else _differences(parts, earlier["parts"]) if earlier else []
    begun = {"at": now, "retriever": retriever, "flow_run": flow_run, "reasons": [vars(reason) for reason in reasons]}
    uses = own.get("uses", {}) | _use(retriever, flow_run, now)
    record = {"schema_version": SCHEMA_VERSION, "parts": parts, "begun": begun, "uses": uses}
    with suppress(OSError):
        write_json(place, record)
    return reasons


def keep_end(folder: Path) -> None:
    """Note that the result was finished: one that is missing later was removed."""
    with suppress(ArtifactError, OSError):
        write_json(_place(folder), _read(_place(folder)) | {"finished_at": _now()})


def at_start(step: str, reasons: Sequence[Reason]) -> str:
    """The reasons in a few words, for the line that a step begins with."""
    told = _told(reasons)
    shown = "; ".join(reason.words for reason in told[:SHOWN_AT_START])
    more = len(told) - SHOWN_AT_START
    return f"{shown}; and {more} more (scalingnote status --why {step})" if more > 0 else shown


def named_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A step's settings by the names that a configuration gives them: steps -> towers.steps. A name that fits no section stays."""
    # The policy is no part of a step's settings but in its section, and shares names with others.
    flat, sections = dict(_flat(config)), {name: fields for name, fields in _sections().items() if name != "policy"}
    fits = {section: len(fields & flat.keys()) for section, fields in sections.items()}
    most = max(fits.values(), default=0)
    best = [section for section, count in fits.items() if count == most and most]
    return {_named(key, sections, best[0] if len(best) == 1 else ""): value for key, value in flat.items()}


def made_by(artifact: Artifact) -> dict[str, str]:
    """The digest of an input, with step and key of the working folder that it lies in, if it lies in one."""
    with suppress(ValueError):
        inside = artifact.path.resolve().relative_to(settings.work_folder()).parts
        if len(inside) > 1:
            return {"digest": artifact.digest, "step": inside[0], "key": inside[1]}
    return {"digest": artifact.digest}


def why(retriever: str, step: str = "") -> dict[str, Any]:
    """When and why the steps of `retriever` were made last, or only `step`; raises ConfigError for a step that there is not.

    `steps`: for each its name, state (made, begun, removed, found or never), time, key, run of the flow, reasons, and a sentence.
    `other_retrievers`: for whom else steps have run. `unreadable`: the records that cannot be read.
    """
    known = [*STEPS, *sorted(set(_recorded_steps()) - set(STEPS))]
    if step and step not in known:
        raise ConfigError(f"Unknown step '{step}'{did_you_mean(step, known) or '.'} Steps: {', '.join(known)}.")
    found = [_account(retriever, name) for name in ([step] if step else known)]
    unreadable = [path for account in found for path in account.pop("unreadable")]
    others = sorted({name for each in known for record in _records(each)[0] for name in record["uses"]} - {retriever})
    steps = [account for account in found if step or account["state"] != "never"]
    return {"name": retriever, "steps": steps, "unreadable": unreadable, "other_retrievers": others}


def render_why(answer: Mapping[str, Any]) -> str:
    """The answer as text, one step a line."""
    lines = [account["text"] for account in answer["steps"]] or [f"No step has run for the retriever '{answer['name']}' yet."]
    if answer["other_retrievers"] and all(account["state"] == "never" for account in answer["steps"]):
        lines.append(f"Steps have run for: {', '.join(answer['other_retrievers'])} (--name).")
    lines += [f"{path} cannot be read and was left out." for path in answer["unreadable"]]
    return "\n".join(lines)


def _account(retriever: str, step: str) -> dict[str, Any]:
    """What the records say about one step."""
    records, unreadable = _records(step)
    own = [record for record in records if record["begun"]["retriever"] == retriever]
    used = [record for record in records if retriever in record["uses"]]
    account: dict[str, Any] = {"step": step, "state": "never", **dict.fromkeys(("at", "key", "flow_run")), "reasons": []}
    account["unreadable"] = unreadable
    if not used:
        return account | {"text": f"{step} has not run for the retriever '{retriever}' yet."}
    last = max(used, key=lambda record: _order(record["uses"][retriever]["at"]))
    if not own:
        about = {"state": "found", "at": last["uses"][retriever]["at"], "key": last["key"]}
        text = f"{step} was found finished on {_day(about['at'])}; it was made on {_day(last['begun']['at'])}{_for(last)}."
        return account | about | {"text": text}
    newest = max(own, key=lambda record: _order(record["begun"]["at"]))
    begun, finished = newest["begun"], newest["finished"]
    reasons = [Reason(**reason) for reason in begun["reasons"]]
    state = "made" if finished else "removed" if newest.get("finished_at") else "begun"
    about = {"state": state, "at": begun["at"], "key": newest["key"], "flow_run": begun["flow_run"]}
    about["reasons"] = [{**vars(reason), "text": reason.words} for reason in reasons]
    text = _sentence(step, begun["at"], reasons, state)
    if finished and last["uses"][retriever]["at"] > begun["at"]:
        which = "" if last is newest else f" a result of {_day(last['begun']['at'])},"
        text += f" The last run took{which or ' it'} from the cache, on {_day(last['uses'][retriever]['at'])}."
    return account | about | {"text": text}


def _sentence(step: str, at: str, reasons: Sequence[Reason], state: str) -> str:
    because = f" because {'; '.join(reason.words for reason in _told(reasons))}" if reasons else ""
    if state == "removed":
        return f"{step} was made on {_day(at)}{because}; its result is not there any more, so the next run makes it again."
    if state == "begun":
        return f"{step} was begun on {_day(at)}{because}, and is not finished: the next run goes on with it."
    if not reasons:
        return f"{step} was made on {_day(at)}; there was no earlier result to compare with."
    return f"{step} was made again on {_day(at)}{because}."


def _for(record: Mapping[str, Any]) -> str:
    return f" for '{record['begun']['retriever']}'" if record["begun"]["retriever"] else ""


def _differences(new: Mapping[str, Any], old: Mapping[str, Any], step: str = "", seen: frozenset[str] = frozenset()) -> list[Reason]:
    """What differs between the parts of two keys of one step: its own first, then what changed its inputs."""
    found = [
        Reason(kind, subject, before.get(subject), after.get(subject), step)
        for kind, before, after in (
            ("version", old["version"], new["version"]),
            ("setting", *_sections_whole(old["settings"], new["settings"])),
            ("code", old["code"], new["code"]),
            ("library", old["libraries"], new["libraries"]),
        )
        for subject in [*after, *sorted(before.keys() - after.keys())]
        if after.get(subject) != before.get(subject)
    ]
    for role in [*new["inputs"], *sorted(old["inputs"].keys() - new["inputs"].keys())]:
        before, after = old["inputs"].get(role), new["inputs"].get(role)
        if before is not None and after is not None:
            if before["digest"] == after["digest"]:
                continue
            if deeper := _behind(after, before, seen):
                found += deeper
                continue
        found.append(Reason("input", role, before and before["digest"], after and after["digest"], step))
    return list({(reason.kind, reason.subject): reason for reason in reversed(found)}.values())[::-1]


def _sections_whole(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of both, where a section that is null on one side is one setting on the other: the model that it names.

    Without its companion a teacher has none of the companion's settings either, and nobody changed those.
    """
    sides = dict(old), dict(new)
    for section in MOVED:
        held = [[key for key in side if key == section or key.startswith(f"{section}.")] for side in sides]
        if not all(held):  # one of them is of code that had the section in another step's key
            for side, keys in zip(sides, held, strict=True):
                for key in keys:
                    del side[key]
    for here, there in (sides, sides[::-1]):
        for section in [name for name, value in here.items() if value is None]:
            if within := {key: there.pop(key) for key in [*there] if key.startswith(f"{section}.")}:
                there[section] = within.get(f"{section}.base_model", within)
    return sides


def _told(reasons: Sequence[Reason]) -> Sequence[Reason]:
    """The reasons that are told: what earlier steps gave, such as the versions of parts, says nothing beside what a person changed."""
    return [reason for reason in reasons if reason.kind != "setting" or reason.subject.partition(".")[0] not in GIVEN] or reasons


def _behind(after: Mapping[str, str], before: Mapping[str, str], seen: frozenset[str]) -> list[Reason]:
    """Why the step that makes an input gave another one; empty when its records do not tell."""
    step, key = after.get("step", ""), after.get("key", "")
    if not step or step != before.get("step") or key in seen:
        return []
    try:
        new, old = (_read(settings.work_folder() / step / f"{name}{SUFFIX}") for name in (key, before.get("key")))
    except ArtifactError:
        return []
    return _differences(new["parts"], old["parts"], step, seen | {key})


def unused(days: int, only: str | None = None) -> dict[Path, float]:
    """Working folders of steps, finished or begun, that no flow has made, gone on with or taken for so many days, the oldest first.

    With each the time of its last use. The tables of the data stay, to which audits and `replay` lead back, and so does what each retriever
    used last of each step, and all that was used since a flow began that still runs. `only`: what no other retriever has used.
    """
    from components.tracking.live import first_started

    found: dict[Path, float] = {}
    for step in {*_recorded_steps()} - {DATA}:
        records, last = _records(step)[0], dict[str, tuple[tuple[bool, str], str]]()
        for record in records:
            for retriever, use in record["uses"].items() if record["finished"] else ():
                this = _order(use["at"]), record["key"]
                last[retriever] = max(last.get(retriever, this), this)
        stays = {key for _, key in last.values()}
        for record in records:
            folder, users = settings.work_folder() / step / record["key"], {*record["uses"], record["begun"]["retriever"]} - {""}
            there = folder.is_dir() and not folder.is_symlink()  # a link was laid by a person, and what it leads to is theirs
            if record["key"] not in stays and there and (only is None or users == {only}):
                found[folder] = last_use(folder)
    before = min(time.time() - days * 86_400, first_started())
    return {folder: at for folder, at in sorted(found.items(), key=lambda item: (item[1], item[0])) if at < before}


def last_use(folder: Path) -> float:
    """When a flow began, finished or took the result in the folder, in seconds since 1970: it writes the record each time."""
    return _place(folder).stat().st_mtime


def _last_used(folder: Path, retriever: str) -> dict[str, Any] | None:
    """The record of the result that `retriever` used last, of this step and another key."""
    used = [r for r in _records(folder.parent.name)[0] if r["key"] != folder.name and retriever in r["uses"] and r["finished"]]
    return max(used, key=lambda record: _order(record["uses"][retriever]["at"]), default=None)


def _records(step: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The records of a step, and the paths of those that cannot be read."""
    found, unreadable = [], []
    for path in sorted((settings.work_folder() / step).glob(f"*{SUFFIX}")):
        key = path.name.removesuffix(SUFFIX)
        try:
            found.append({**_read(path), "key": key, "finished": (path.parent / key / MANIFEST).is_file()})
        except ArtifactError:
            unreadable.append(str(path))
    return found, unreadable


def _recorded_steps() -> Iterator[str]:
    return (folder.name for folder in settings.work_folder().glob("*") if any(folder.glob(f"*{SUFFIX}")))


def _read(path: Path) -> dict[str, Any]:
    """A record; raises ArtifactError when it is missing, broken or of a newer schema."""
    try:
        record: dict[str, Any] = read_versioned(path, SCHEMA_VERSION)
        parts, begun = record["parts"], record["begun"]
        groups = [parts[name] for name in ("version", "settings", "inputs", "code", "libraries")]
        whole = all(isinstance(group, dict) for group in [*groups, *parts["inputs"].values(), *record["uses"].values()])
        inputs = [text for made in parts["inputs"].values() for text in (made["digest"], *made.values())]
        texts = [begun["at"], begun["retriever"], begun["flow_run"], *inputs, *(use["at"] for use in record["uses"].values())]
        whole = whole and all(isinstance(text, str) for text in texts)
        [Reason(**reason) for reason in begun["reasons"]]
    except (OSError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}). Remove it; nothing but status --why needs it.") from None
    if not whole:
        raise ArtifactError(f"{path} is not the record of a step's key. Remove it; nothing but status --why needs it.")
    return record


def _place(folder: Path) -> Path:
    return folder.with_name(folder.name + SUFFIX)


def _use(retriever: str, flow_run: str, at: str) -> dict[str, dict[str, str]]:
    return {retriever: {"at": at, "flow_run": flow_run}} if retriever else {}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _order(at: str) -> tuple[bool, str]:
    """What a time is sorted by: one that is still to come, of a wrong clock, would be the newest for ever, and comes first."""
    return at <= (datetime.now(UTC) + settings.CLOCK_SLACK).isoformat(timespec="microseconds"), at


def _day(at: str) -> str:
    return f"{at[:10]} at {at[11:16]} UTC"


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if _DIGEST.fullmatch(text):
        return text[:12]
    return (text if len(text) <= VALUE_LENGTH else f"{text[: VALUE_LENGTH - 3]}...") or "''"


def _flat(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


@cache
def _sections() -> dict[str, set[str]]:
    from flows.config import RetrainConfig

    fields = {name: getattr(field.annotation, "model_fields", None) for name, field in RetrainConfig.model_fields.items()}
    return {name: set(inner) for name, inner in fields.items() if inner}


def _named(key: str, sections: Mapping[str, set[str]], section: str) -> str:
    if key.startswith("config."):  # of steps that depend on the whole configuration
        return key.removeprefix("config.")
    first = key.partition(".")[0]
    holders = [section] if first in sections.get(section, ()) else [name for name, fields in sections.items() if first in fields]
    return f"{holders[0]}.{key}" if len(holders) == 1 and first not in sections else key
