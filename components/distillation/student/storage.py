"""A student on disk: a SentenceTransformer's folder, which our own loader reads with transformers alone.

Importing sentence-transformers takes four seconds, and a search must answer sooner.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from components.artifacts import digest_of, file_sha256, read_json, write_json
from components.distillation.student.encoder import StudentEncoder
from components.distillation.student.forms import FORMS, WEIGHTS
from components.errors import ArtifactError
from components.towers.contract import PROBE_TEXTS, EncodingContract, load_contract
from components.towers.tokens import ends_by_itself, has_control_token, kinds_of_tokens, with_switches

MODULES = "modules.json"
UNKNOWN = "\ue000 \U0001fbff"  # characters that no vocabulary has


def save_student(student: StudentEncoder, folder: Path) -> EncodingContract:
    """Write the student as a SentenceTransformer (encoder, dense layers of the head, normalise); returns its contract.

    A query encoder answers queries alone: `encode_document` of what is written says so, since documents belong to another encoder.
    """
    from sentence_transformers import SentenceTransformer

    folder.mkdir(parents=True, exist_ok=True)
    student.form.save(student.model, folder)
    save_tokenizer(student.tokenizer, student.contract, folder)
    modules = [*student.form.modules(student.model, folder, student.contract), *dense_modules(student.head), _last_module(student.contract)]
    prompts = {"query": student.contract.prompt, "document": student.contract.prompt}
    default = "query" if student.contract.prompt else None
    written = SentenceTransformer(modules=modules, prompts=prompts, default_prompt_name=default, similarity_fn_name="cosine", device="cpu")
    written.save(str(folder), create_model_card=False)
    save_tokenizer(student.tokenizer, student.contract, folder)  # once more: what the library writes knows nothing of control tokens
    return student.contract.model_copy(update={"adapter_digest": weights_digest(folder)})


def dense_modules(head: Iterable[Any] | None) -> list[Any]:
    """Each linear map of a head, with the activation that follows it, as a Dense module of sentence-transformers."""
    from sentence_transformers.base.modules import Dense
    from torch import nn

    modules: list[Any] = []
    layers = list(head or ())
    for place, layer in enumerate(layers):
        if isinstance(layer, nn.Linear):
            bends = place + 1 < len(layers) and not isinstance(layers[place + 1], nn.Linear)
            weight, bias = (None if values is None else values.detach().float().cpu().clone() for values in (layer.weight, layer.bias))
            activation = layers[place + 1] if bends else nn.Identity()
            modules.append(Dense(layer.in_features, layer.out_features, bias is not None, activation, init_weight=weight, init_bias=bias))
    return modules


def _last_module(contract: EncodingContract) -> Any:
    """Unit length; of a query encoder behind a route for queries alone, which is also taken where nobody says what is encoded."""
    from sentence_transformers.base.modules import Normalize, Router

    return Router({"query": [Normalize()]}, default_route="query") if contract.role == "query" else Normalize()


def save_tokenizer(tokenizer: Any, contract: EncodingContract, folder: Path) -> None:
    """Write a tokenizer that sentence-transformers uses as the contract says: its end token, its longest text, control tokens as text.

    What is written is a changed copy: other encoders of the process may use the same tokenizer.
    """
    tokenizer = with_switches(copy.deepcopy(tokenizer))
    tokenizer.chat_template = None  # sentence-transformers would put every text into it, as a user's turn
    tokenizer.model_max_length = contract.max_length  # where sentence-transformers looks for the longest text
    # As texts are encoded here. Padding on the left moves every text that has learnt positions, by the longest one of its batch.
    for side in ("padding_side", "truncation_side"):
        if getattr(tokenizer, side) != "right":  # else nothing is written, so that students are the files that they were
            setattr(tokenizer, side, "right")
            tokenizer.init_kwargs[side] = "right"
    if tokenizer.pad_token_id is None:  # as Llama's: sentence-transformers encodes nothing then; behind the mask any token will do
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    if kinds_of_tokens(tokenizer):  # which sentence-transformers would pass on, and nothing here does
        tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = ["input_ids", "attention_mask"]
    if contract.append_eos:
        _append_end_token(tokenizer)
    form = FORMS[contract.form]
    tokenizer.backend_tokenizer.no_padding()
    form.limit_length(tokenizer.backend_tokenizer, contract.max_length)
    # sentence-transformers encodes prompt and text in one way, so control tokens of a prompt are kept at the price of those in texts.
    # With a unigram tokenizer (XLM-R's) it finds them in texts all the same; this project's own loaders do not.
    split = contract.split_special_tokens and not has_control_token(tokenizer, contract.prompt)
    tokenizer.split_special_tokens = tokenizer.init_kwargs["split_special_tokens"] = split
    tokenizer.save_pretrained(folder)
    if split:
        form.hide_control_tokens(folder)
    if contract.append_eos or not form.has_layers:
        _keep_as_written(tokenizer, form.has_layers, folder)


def _append_end_token(tokenizer: Any) -> None:
    """Let the tokenizer itself put the end token behind every text, since sentence-transformers has no setting for it."""
    from tokenizers.processors import TemplateProcessing

    before, end = tokenizer("")["input_ids"], tokenizer.eos_token_id
    if ends_by_itself(tokenizer) and before[-1] == end:  # OPT's begins texts with the same token
        return
    names = tokenizer.convert_ids_to_tokens([*before, end])
    single = " ".join([*(f"{name}:0" for name in names[:-1]), "$A:0", f"{names[-1]}:0"])
    special = dict(zip(names, [*before, end], strict=True))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=list(special.items()))


def _keep_as_written(tokenizer: Any, special: bool, folder: Path) -> None:
    """Let what was saved of `tokenizer` be read as its file says where the class of it would make something else of that.

    GPT-NeoX's ends texts in a way of its own, and some look for special tokens that a static student has hidden (ALBERT, CamemBERT).
    `special`: whether first and last tokens count.
    """
    from transformers import AutoTokenizer

    texts = [*PROBE_TEXTS, UNKNOWN]
    try:
        same = AutoTokenizer.from_pretrained(folder)(texts, add_special_tokens=special)
    except Exception:  # as of a special token that is nowhere
        same = {"input_ids": None}
    if same["input_ids"] != tokenizer(texts, add_special_tokens=special)["input_ids"]:
        settings = folder / "tokenizer_config.json"
        write_json(settings, {**read_json(settings), "tokenizer_class": "PreTrainedTokenizerFast"})


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
    model = FORMS[contract.form].load(folder, precision)
    return StudentEncoder(model, AutoTokenizer.from_pretrained(folder), _load_head(folder), contract, space_id)


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
