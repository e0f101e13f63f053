"""A student on disk: a SentenceTransformer's folder, which our own loader reads with transformers alone.

Importing sentence-transformers takes four seconds, and a search must answer sooner.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from components.artifacts import digest_of, file_sha256, read_json, write_json
from components.distillation.static import static_model
from components.distillation.student_encoder import StudentEncoder
from components.errors import ArtifactError
from components.towers.contract import EncodingContract, load_contract
from components.towers.precision import pick_dtype
from components.towers.tokens import has_control_token, words_only

WEIGHTS = "model.safetensors"
MODULES = "modules.json"
TOKENIZER = "tokenizer.json"
POOLINGS = {"mean": "mean", "cls": "cls", "last": "lasttoken"}  # our names and sentence-transformers'


def save_student(student: StudentEncoder, folder: Path) -> EncodingContract:
    """Write the student as a SentenceTransformer (encoder, dense layers of the head, normalise); returns its contract."""
    folder.mkdir(parents=True, exist_ok=True)
    _save_encoder(student, folder)
    save_tokenizer(student.tokenizer, student.contract, folder)
    modules = [("", "StaticEmbedding")] if student.is_static else [("", "Transformer"), ("1_Pooling", "Pooling")]
    if not student.is_static:
        pooling = {"word_embedding_dimension": student.model.config.hidden_size, "pooling_mode": POOLINGS[student.contract.pooling]}
        _write_module(folder / "1_Pooling", pooling)
    modules += _save_head(student.head, folder, len(modules))
    _write_module(folder / f"{len(modules)}_Normalize", {})
    modules.append((f"{len(modules)}_Normalize", "Normalize"))
    _save_settings(student.contract, modules, folder)
    return student.contract.model_copy(update={"adapter_digest": weights_digest(folder)})


def _save_encoder(student: StudentEncoder, folder: Path) -> None:
    from safetensors.torch import save_file

    if student.is_static:
        save_file({k: v.detach().float().cpu().contiguous() for k, v in student.model.state_dict().items()}, folder / WEIGHTS)
    else:
        student.model.save_pretrained(folder)


def save_tokenizer(tokenizer: Any, contract: EncodingContract, folder: Path) -> None:
    """Write a tokenizer that sentence-transformers uses as the contract says: its end token, its longest text, control tokens as text."""
    if contract.append_eos:
        _append_end_token(tokenizer)
    backend, static = tokenizer.backend_tokenizer, contract.form == "static"
    backend.no_padding()
    if static:
        backend.enable_truncation(contract.max_length)  # StaticEmbedding has no other place for the longest text
    else:
        backend.no_truncation()
    # sentence-transformers encodes prompt and text in one way, so control tokens of a prompt are kept at the price of those in texts.
    # With a unigram tokenizer (XLM-R's) it finds them in texts all the same; this project's own loaders do not.
    split = contract.split_special_tokens and not has_control_token(tokenizer, contract.prompt)
    tokenizer.split_special_tokens = tokenizer.init_kwargs["split_special_tokens"] = split
    tokenizer.save_pretrained(folder)
    if static and split:
        # StaticEmbedding reads this file alone, and it has no use for control tokens, whose names it would find in texts.
        write_json(folder / TOKENIZER, words_only(read_json(folder / TOKENIZER)))


def _append_end_token(tokenizer: Any) -> None:
    """Let the tokenizer itself put the end token behind every text, since sentence-transformers has no setting for it."""
    from tokenizers.processors import TemplateProcessing

    before, end = tokenizer("")["input_ids"], tokenizer.eos_token_id
    if before and before[-1] == end:
        return
    names = tokenizer.convert_ids_to_tokens([*before, end])
    single = " ".join([*(f"{name}:0" for name in names[:-1]), "$A:0", f"{names[-1]}:0"])
    special = dict(zip(names, [*before, end], strict=True))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=list(special.items()))


def _save_head(head: Any, folder: Path, place: int) -> list[tuple[str, str]]:
    """Each linear map of the head as a Dense module with the activation that follows it; their names, the first numbered `place`."""
    from safetensors.torch import save_file
    from torch import nn

    names: list[tuple[str, str]] = []
    layers = list(head)
    for i, layer in enumerate(layers):
        if not isinstance(layer, nn.Linear):
            continue
        bends = i + 1 < len(layers)
        name = f"{place + len(names)}_Dense"
        config = {"in_features": layer.in_features, "out_features": layer.out_features, "bias": layer.bias is not None}
        activation = "torch.nn.modules.activation.GELU" if bends else "torch.nn.modules.linear.Identity"
        _write_module(folder / name, {**config, "activation_function": activation})
        tensors = {f"linear.{k}": v.detach().float().cpu().contiguous() for k, v in layer.state_dict().items()}
        save_file(tensors, folder / name / WEIGHTS)
        names.append((name, "Dense"))
    return names


def _save_settings(contract: EncodingContract, modules: list[tuple[str, str]], folder: Path) -> None:
    rows = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"} for i, (path, kind) in enumerate(modules)
    ]
    write_json(folder / MODULES, rows)
    if contract.form == "transformer":
        write_json(folder / "sentence_bert_config.json", {"max_seq_length": contract.max_length, "do_lower_case": False})
    prompts = {"query": contract.prompt, "document": contract.prompt}
    settings = {"prompts": prompts, "default_prompt_name": "query", "similarity_fn_name": "cosine"}
    write_json(folder / "config_sentence_transformers.json", settings)


def _write_module(folder: Path, config: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    write_json(folder / "config.json", config)


def weights_digest(folder: Path) -> str:
    """Digest over all weight files of a saved student."""
    files = [folder / WEIGHTS, *sorted(folder.glob(f"*_Dense/{WEIGHTS}"))]
    return digest_of([file_sha256(path) for path in files])


def load_student(folder: Path, precision: str = "auto") -> StudentEncoder:
    """Load a saved student of any form; raises ArtifactError when the weights are not those of its contract."""
    from transformers import AutoTokenizer

    contract, space_id = load_contract(folder)
    if weights_digest(folder) != contract.adapter_digest:
        raise ArtifactError(f"{folder}: the weights are not those its contract names. Restore the student, or retrain.")
    model = _load_static(folder) if contract.form == "static" else _load_transformer(folder, precision)
    return StudentEncoder(model, AutoTokenizer.from_pretrained(folder), _load_head(folder), contract, space_id)


def _load_static(folder: Path) -> Any:
    from safetensors.torch import load_file

    return static_model(load_file(folder / WEIGHTS)["embedding.weight"])


def _load_transformer(folder: Path, precision: str) -> Any:
    import inspect

    import transformers

    kind = getattr(transformers, read_json(folder / "config.json")["architectures"][0])
    options = {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(kind.__init__).parameters else {}
    return kind.from_pretrained(folder, dtype=pick_dtype(precision), **options)


def _load_head(folder: Path) -> Any:
    from safetensors.torch import load_file
    from torch import nn

    layers: list[Any] = []
    for path in sorted(folder.glob(f"*_Dense/{WEIGHTS}")):
        tensors = load_file(path)
        weight, bias = tensors["linear.weight"], tensors.get("linear.bias")
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        layer.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
        layers += [layer] if not layers else [nn.GELU(), layer]
    return nn.Sequential(*layers).eval()
