"""Models of a Hugging Face hub: known by commit and weights, found in the user's own cache, fetched when they are not there.

A name such as `Qwen/Qwen3-0.6B` means whatever its branch `main` holds today. So a name is resolved to a commit once, that commit is
recorded, and what was trained on it loads the folder of that commit in the cache for ever, without asking the hub again.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import is_zipfile

from components.artifacts import MOST_JSON, digest_of, file_sha256, read_bounded
from components.errors import ArtifactError, ModelError, ResourceError, ScalingNoteError, lack_behind

ANSWER_SECONDS = 5.0
MAIN = "main"
# What transformers and sentence-transformers read of a repository; the same weights for other runtimes are left out.
# `*.codes`: the merges of PhoBERT and BERTweet.
WANTED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.codes", "*.jinja", "README.md", "*_Dense/pytorch_model.bin")
MODULES = "modules.json"
UNWANTED = ("onnx/*", "openvino/*", "original/*", "consolidated*", "coreml/*", "*.msgpack", "*.h5")
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
# One file of weights, or the index of several, in the order in which transformers looks for them.
FORMS = (("model.safetensors", "model.safetensors.index.json"), ("pytorch_model.bin", "pytorch_model.bin.index.json"))
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "spm.model")
ADAPTER = "adapter_config.json"
NO_FOLDER = "{} is not a model folder: it has no config.json. Give a folder saved by save_pretrained."
SENTENCEPIECE = (
    "its tokenizer is a SentencePiece file without a tokenizer.json. Run `pip install sentencepiece`, or save the tokenizer where that "
    "is there (save_pretrained), and name the folder with both"
)
AN_ADAPTER = "'{}' is an adapter, not a model. Name the model that it was trained on, or a merged one."
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_POINTER = b"version https://git-lfs.github.com/spec/"
_SILENT: set[str] = set()  # models that the hub gave no answer about: it is not asked again for what may do without


@dataclass(frozen=True)
class HubModel:
    """A model of the hub at one commit: its folder in the cache, and the digest of its configuration and weights.

    `code`: the digest of the Python files that it brings, where they may run; None for a model without, and where they may not.
    """

    name: str
    commit: str
    folder: Path
    digest: str
    code: str | None = None


def is_hub_name(name: str) -> bool:
    """Whether `name` has the form of a model's name on a hub: `model` or `owner/model`, no path."""
    return bool(_NAME.fullmatch(name)) and len(name) <= 96 and "--" not in name and ".." not in name


def is_commit(revision: str | None) -> bool:
    """Whether `revision` is a commit's full sha, which never means anything else later."""
    return revision is not None and bool(_COMMIT.fullmatch(revision))


def find(name: str, revision: str | None = None, code: bool = False) -> HubModel:
    """The model `name` at `revision` (branch, tag or commit; None: the branch main), from the cache or else from the hub.

    `code`: the Python files that it brings may run here, which takes a commit, since nobody has read what a branch may hold tomorrow.
    Raises ModelError, in one sentence and within seconds, for a name, revision or access that does not work.
    """
    if code and not is_commit(revision):
        raise ModelError(f"Code that '{name}' brings runs only of a full commit; the revision is '{revision or MAIN}'. Name a commit.")
    commit = commit_of(name, revision)
    folder = _folder(name, commit)
    digest = weights_digest(folder)
    brought = code_files(folder, name, commit) if code else []
    if not brought:
        return HubModel(name, commit, folder, digest)
    of_code = digest_of({path.relative_to(folder).as_posix(): file_sha256(path) for path in brought})
    return HubModel(name, commit, folder, digest_of({"model": digest, "code": of_code}), of_code)


def code_files(folder: Path, name: str, commit: str) -> list[Path]:
    """The Python files that the model in `folder` names for its classes, and those that they import from beside them, in a fixed order.

    What is missing in the cache is fetched. Raises ModelError for classes of another repository, which this commit does not pin, and
    for files that are nowhere.
    """
    from transformers.dynamic_module_utils import get_relative_imports

    settings = [folder / file for file in ("config.json", "tokenizer_config.json") if (folder / file).is_file()]
    named = {entry for path in settings for entry in _classes(path)}
    if elsewhere := sorted(entry for entry in named if "--" in entry):
        raise ModelError(f"'{name}' takes code from another repository ({elsewhere[0]}), which its commit does not pin. Name that model.")
    wanted, found = [f"{entry.rpartition('.')[0]}.py" for entry in sorted(named)], dict[str, Path]()
    while wanted:
        file = wanted.pop()
        if file in found:
            continue
        if not (folder / file).is_file():
            _download(name, commit, ("*.py",))
        if not (folder / file).is_file():
            raise ModelError(f"'{name}' at commit {commit[:12]} names the code {file}, which it does not have.")
        found[file] = folder / file
        wanted += [(Path(file).parent / f"{module}.py").as_posix() for module in get_relative_imports(folder / file)]
    return [found[file] for file in sorted(found)]


def _classes(path: Path) -> Iterator[str]:
    """The classes of a repository's own that a configuration names; raises ModelError where it names something else."""
    found = read_own(path)
    named = found.get("auto_map") if isinstance(found, dict) else None
    values = list(named.values()) if isinstance(named, dict) else [named]
    for entry in (entry for value in values for entry in (value if isinstance(value, list) else [value])):
        if not isinstance(entry, str | None):
            raise ModelError(f"{path}: auto_map must name classes by text; found {entry!r:.60}. Name another revision, or another model.")
        if entry:
            yield entry


def own_class(folder: Path) -> str | None:
    """The class of its own that a model names for its transformer, as `modeling_qwen.Qwen2Model`; None where it names none."""
    named = read_own(folder / "config.json").get("auto_map")
    found = named.get("AutoModel") if isinstance(named, dict) else None
    return found if isinstance(found, str) else None


def read_own(path: Path) -> Any:
    """What a model's own file of JSON holds, as transformers reads it: of a field that stands there twice the last. Raises ModelError."""
    try:
        return json.loads(read_bounded(path, MOST_JSON).decode("utf-8"))
    except FileNotFoundError:
        said = f"{path} is missing"
    except (ValueError, RecursionError) as error:
        said = f"{path} is not valid JSON ({error})"
    except ArtifactError as error:
        said = str(error).partition(";")[0]
    raise ModelError(f"{said}. Fetch the model again, or name another revision of it.")


@cache
def commit_of(name: str, revision: str | None = None) -> str:
    """The commit that `revision` of `name` stands for: asked of the hub, or of the cache where the hub cannot be asked.

    One answer holds for the whole process, so configuration, tokenizer and weights are of one commit although the branch may move. Raises
    ModelError as `find` does.
    """
    if is_commit(revision):
        return str(revision)
    asked = revision or MAIN
    cached = _cached_ref(name, asked)
    try:
        info = _api().model_info(name, revision=asked, timeout=ANSWER_SECONDS)
    except Exception as error:
        if cached is None or not _is_silence(error):
            raise _in_words(error, name, asked) from None
        _SILENT.add(name)
        if not _offline():
            print(f"The model hub does not answer; '{name}' is taken from the cache at commit {cached[:12]}.", flush=True)
        return cached
    if info.id and info.id.lower() != name.lower():
        raise ModelError(f"The model '{name}' is called '{info.id}' on the hub now. Use that name.")
    if not is_commit(info.sha):
        raise ModelError(f"The hub names no commit for '{name}' ({asked}), so what is trained on it could never be traced.")
    _remember(name, asked, info.sha)
    return str(info.sha)


def _remember(name: str, revision: str, commit: str) -> None:
    """Keep what a branch or tag stands for where the hub's client looks it up without a network; it does so itself for names alone."""
    path = _repository(name) / "refs" / revision
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(commit, encoding="utf-8")


def _repository(name: str) -> Path:
    return cache_folder() / f"models--{name.replace('/', '--')}"


def cached_snapshot(name: str, commit: str) -> Path:
    """Where the files of a commit lie in the cache, whether they are there or not."""
    return _repository(name) / "snapshots" / commit


@cache
def _folder(name: str, commit: str) -> Path:
    """The folder of the commit in the cache; what is missing there is fetched."""
    folder = _repository(name) / "snapshots" / commit
    for patterns in (WANTED, (*WANTED, WEIGHTS[1])):
        if _is_whole(folder):
            _complete(name, commit, folder)
            return folder
        folder = _download(name, commit, patterns)
        if not (folder / "config.json").is_file():
            raise ModelError(_no_model(name, folder))
    if not _is_whole(folder):
        lacking = f"weights that transformers loads ({' or '.join(WEIGHTS)})"
        if not has_tokenizer(folder):
            lacking = f"a tokenizer ({', '.join(TOKENIZERS)}), as a model of images or sounds does. Name a language model or a text encoder"
        raise ModelError(f"'{name}' at commit {commit[:12]} lacks {lacking}.")
    return folder


def _complete(name: str, commit: str, folder: Path) -> None:
    """Fetch what the model says of its modules where another program that wanted its weights alone left that out of the cache.

    Without it an embedding model would be taken for a bare transformer, pooled and prompted as the settings say. A file that the hub does
    not have is noted where its own client notes that, so that it is asked for once. Without an answer what is there has to do.
    """
    missing = _repository(name) / ".no_exist" / commit / MODULES
    if _has_modules(folder) or missing.is_file() or _offline() or name in _SILENT:
        return
    try:
        files = [file.rfilename for file in _api().model_info(name, revision=commit, timeout=ANSWER_SECONDS).siblings or ()]
    except Exception:
        _SILENT.add(name)
        return
    if MODULES in files:
        _download(name, commit, WANTED)
        return
    with suppress(OSError):
        missing.parent.mkdir(parents=True, exist_ok=True)
        missing.touch()


def _has_modules(folder: Path) -> bool:
    """Whether a model says of what modules it is made, with the files of those that have some."""
    if not (folder / MODULES).is_file():
        return False
    listed = read_own(folder / MODULES)
    found = [(str(module.get("type", "")), folder / str(module.get("path", ""))) for module in listed if isinstance(module, dict)]
    weights = [path for kind, path in found if kind.endswith(".Dense")]
    return all((path / "config.json").is_file() for kind, path in found if kind.endswith((".Pooling", ".Dense"))) and all(
        any((path / form).is_file() for form in ("model.safetensors", "pytorch_model.bin")) for path in weights
    )


def _is_whole(folder: Path) -> bool:
    """Whether configuration, tokenizer and every file of the weights are there: other programs leave only what they used."""
    if not (folder / "config.json").is_file() or not has_tokenizer(folder):
        return False
    loaded = _loaded(folder)
    return bool(loaded) and all(path.is_file() for path in loaded)


def _loaded(folder: Path) -> list[Path]:
    """The files of weights that transformers loads from a model's folder, which may not all be there; none where it finds no weights."""
    for single, index in FORMS:
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            return [folder / shard for shard in _shards(folder / index)]
    return []


def whole_numbers(folder: Path) -> list[str]:
    """Names of the weights of a model's folder that are whole numbers, as quantized ones are alone; masks and places in a text are none."""
    return sorted(name for path in _loaded(folder) for name in _of_integers(path) if name.endswith(("weight", "_proj")))


def _of_integers(path: Path) -> Iterator[str]:
    """The tensors of two dimensions or more in a file of weights that are whole numbers, by its list of contents alone."""
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            listed = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        told = {name: (of["dtype"][0] in "IU", of["shape"]) for name, of in listed.items() if name != "__metadata__"}
    else:
        import torch

        found = torch.load(path, map_location="meta", weights_only=True, mmap=is_zipfile(path))
        tensors = {name: of for name, of in found.items() if isinstance(of, torch.Tensor)}
        told = {name: (not of.is_floating_point() and of.dtype != torch.bool, of.shape) for name, of in tensors.items()}
    return (name for name, (whole, shape) in told.items() if whole and len(shape) > 1)


def _shards(index: Path) -> list[str]:
    """The files that an index of weights names, each once, in a fixed order."""
    named = read_own(index)
    shards = named.get("weight_map") if isinstance(named, dict) else None
    if not isinstance(shards, dict) or not shards or not all(isinstance(shard, str) and _is_below(shard) for shard in shards.values()):
        raise ModelError(f"{index} does not say in which files the weights are. Name another revision of the model, or another model.")
    return sorted(set(shards.values()))


def _is_below(name: str) -> bool:
    """Whether a file of this name lies in the folder that it is looked for in, or below."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def has_tokenizer(folder: Path) -> bool:
    """Whether a file of words is there that transformers makes a tokenizer of."""
    return any((folder / name).is_file() for name in TOKENIZERS)


def require_files(folder: Path) -> None:
    """Raise ModelError where git has cloned pointers in the place of weights or tokenizer, which every reader calls broken files."""
    for path in (*_loaded(folder), *(folder / name for name in TOKENIZERS)):
        with suppress(OSError), path.open("rb") as file:
            if file.read(len(_POINTER)) == _POINTER:
                raise ModelError(f"{path} is a pointer of git-lfs, not the file that it stands for. Run `git lfs pull` in its folder.")


def _download(name: str, commit: str, patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        if not _offline():
            print(f"Fetching '{name}' at commit {commit[:12]} from the model hub, if it is not in {cache_folder()} yet", flush=True)
        return Path(
            snapshot_download(
                name, revision=commit, allow_patterns=list(patterns), ignore_patterns=list(UNWANTED), etag_timeout=ANSWER_SECONDS
            )
        )
    except Exception as error:
        raise _in_words(error, name, commit) from None


def weights_digest(folder: Path) -> str:
    """Digest over names and sha256 of configuration and weights in a folder of the cache.

    The cache names a large file's blob by its sha256, which was checked when it was fetched; `verify` hashes it again.
    """
    return digest_of({path.relative_to(folder).as_posix(): _sha256(path) for path in _identity(folder)})


def former_digest(folder: Path) -> str:
    """The digest that the same folder had until 2026-11-30, when the files that are loaded began to count, whatever they are called."""
    return digest_of({path.name: _sha256(path) for path in _named_as_weights(folder)})


def verify(folder: Path) -> list[str]:
    """Hash every large file of a model's folder in the cache; returns, in words, each whose content is not what it is named for."""
    found = []
    for path in _identity(folder):
        named = path.resolve().name
        if _SHA256.fullmatch(named) and (actual := file_sha256(path)) != named:
            found.append(
                f"{path.name}: its content has the sha256 {actual[:12]}, the hub named {named[:12]}; remove {path.resolve()} and pull again"
            )
    return found


def cached_models() -> Iterator[tuple[str, str, int]]:
    """Name, commit and bytes of every model revision in the cache, by name."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return
    for repository in sorted(repositories, key=lambda r: r.repo_id):
        for revision in sorted(repository.revisions, key=lambda r: r.commit_hash):
            if repository.repo_type == "model":
                yield repository.repo_id, revision.commit_hash, revision.size_on_disk


def cache_folder() -> Path:
    """The folder in which Hugging Face's libraries keep models: HF_HUB_CACHE, HF_HOME/hub or ~/.cache/huggingface/hub."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _identity(folder: Path) -> list[Path]:
    """The files that decide the vectors, beside the tokenizer, which the contract knows by a digest of its own."""
    # An index may name its shards as it likes, and beside weights of another form (model.fp16.safetensors) the .bin is what is loaded.
    return sorted({*_named_as_weights(folder), *_loaded(folder)})


def _named_as_weights(folder: Path) -> list[Path]:
    files = [p for p in folder.iterdir() if p.is_file() and any(fnmatch(p.name, wanted) for wanted in ("config.json", *WEIGHTS))]
    if any(p.name.endswith(".safetensors") for p in files):
        files = [p for p in files if not p.name.endswith(".bin")]  # transformers prefers the former, and the latter may not be there
    return sorted(files)


@cache
def _sha256(path: Path) -> str:
    blob = path.resolve().name
    return blob if _SHA256.fullmatch(blob) else file_sha256(path)


def _cached_ref(name: str, revision: str) -> str | None:
    """The commit that `revision` had when the cache last heard of it, if its files are there."""
    folder = _repository(name)
    try:
        commit = (folder / "refs" / revision).read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return commit if is_commit(commit) and (folder / "snapshots" / commit).is_dir() else None


def _no_model(name: str, folder: Path) -> str:
    own = f"'{name}' has no config.json: transformers cannot load it as a model. A GGUF repository names the original model on its page."
    return what_else(name, folder) or own


def what_else(name: str, folder: Path) -> str:
    """What a folder without a config.json of its own holds that looks like a model, in a sentence; empty where it holds nothing known."""
    if (folder / ADAPTER).is_file():
        return AN_ADAPTER.format(name)
    listed = read_own(folder / MODULES) if (folder / MODULES).is_file() else None
    first = listed[0] if isinstance(listed, list) and listed else None
    if not isinstance(first, dict):
        return ""
    return (
        f"'{name}' begins with the module {str(first.get('type', '')).rpartition('.')[2]} and has no transformer in its own folder, as "
        "teachers and students here do. Name one that has; distillation.form=static makes a static student of it."
    )


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(library_name="scalingnote")


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _is_silence(error: Exception) -> bool:
    """Whether the hub could not be asked, or is broken: no answer about the model itself."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status is None or status >= 500 or status == 429


def _in_words(error: Exception, name: str, revision: str) -> ScalingNoteError:
    from huggingface_hub import errors

    hub = _endpoint()
    if own := _of_this_machine(error, name):
        return own
    if isinstance(error, errors.GatedRepoError):
        return ModelError(f"The model '{name}' is gated: accept its terms on its page, then run `hf auth login` or set HF_TOKEN.")
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelError(
            f"The model '{name}' has no revision '{revision}'. Name a branch, a tag or a full commit, or leave it out for main."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelError(
            f"The model '{name}' is not on {hub}, or is private: check the name; for a private one run `hf auth login` or set HF_TOKEN."
        )
    if isinstance(error, errors.DisabledRepoError):
        return ModelError(f"The model '{name}' has been disabled on {hub}.")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return ModelError(
            f"{hub} refused access to '{name}' (status {status}): run `hf auth login` or set HF_TOKEN to a token that may read it."
        )
    missing = f"and '{name}' ({_short(revision)}) is not (or not whole) in the cache {cache_folder()}"
    if _offline():
        return ModelError(f"HF_HUB_OFFLINE is set {missing}. Unset it, or run `scalingnote models pull` where there is a network.")
    if status is not None:
        return ModelError(f"{hub} answered '{name}' with status {status} {missing}. Try again later.")
    reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
    return ModelError(
        f"The model hub {hub} cannot be reached ({type(error).__name__}: {reason}), {missing}. Check the network or set HF_ENDPOINT."
    )


def _of_this_machine(error: Exception, name: str) -> ScalingNoteError | None:
    """What to tell where this machine failed, not the network: a full disk, a cache that is not ours, certificates that are not there."""
    lack = said = lack_behind(error)
    if isinstance(error, OSError) and error.filename is not None:  # what a socket raises names no file
        said = f"{error.strerror}: {error.filename}"
    if said:
        what = f"The model '{name}' cannot be kept in the cache {cache_folder()} ({said}). Mend that, or name another folder with HF_HOME."
        return ResourceError(what) if lack else ModelError(what)
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        what = f"The certificate of {_endpoint()}, asked for '{name}', is signed by nobody who is known here, as behind a company's proxy."
        return ModelError(f"{what} Name the file of its authorities with SSL_CERT_FILE.")
    lost = next((v for v in ("SSL_CERT_FILE", "SSL_CERT_DIR") if (named := os.environ.get(v)) and not Path(named).exists()), None)
    if lost and isinstance(error, FileNotFoundError) and not _offline():
        return ModelError(f"The model hub cannot be asked for '{name}': {lost} names '{os.environ[lost]}', which is not there. Correct it.")
    return None


def _short(revision: str) -> str:
    return revision[:12] if is_commit(revision) else revision
