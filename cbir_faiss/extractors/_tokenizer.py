"""The tokenizers of other libraries as ``tokenizers.Tokenizer``, which is written down as one JSON text."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from cbir_faiss.base.options import need
from cbir_faiss.errors import ConfigError
from cbir_faiss.extractors._text import tokenizer_of, tokens_of
from cbir_faiss.extractors._towers import SAMPLES

_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_QUOTES = {"[‘’‚‛]": "'", "[“”„‟]": '"'}  # which ftfy, that open_clip cleans texts by, makes straight
_PUNCTUATION = r"[!-/:-@\[-`{-~]"


def of_open_clip(tokenizer: Any) -> str:
    """JSON of a tokenizer of open_clip: its own byte pairs, or one of transformers with a way of cleaning.

    Raises:
        ConfigError: it has no such form: it would give other ids.
    """
    length = tokenizer.context_length
    if hasattr(tokenizer, "bpe_ranks"):
        made = _byte_pairs(tokenizer, length)
    else:
        made = _of_fast(tokenizer.tokenizer, length, _cleaning(tokenizer.clean_fn.__name__))
    return _checked(made, lambda texts: tokenizer(list(texts), context_length=length).tolist())


def of_transformers(tokenizer: Any, length: int) -> str:
    """JSON of a tokenizer of transformers that gives ``length`` ids. ConfigError as ``of_open_clip``."""

    def expected(texts: Sequence[str]) -> list[list[int]]:
        found = tokenizer(list(texts), padding="max_length", truncation=True, max_length=length)
        return [list(ids) for ids in found["input_ids"]]

    return _checked(_of_fast(tokenizer, length, []), expected)


def _byte_pairs(tokenizer: Any, length: int) -> Any:
    """CLIP's: words in lower case, as bytes, joined pair by pair in the order of the merges."""
    library = need("tokenizers", "text")
    start, end = tokenizer.sot_token_id, tokenizer.eot_token_id
    name = {number: token for token, number in tokenizer.encoder.items()}
    merges = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.__getitem__)
    made = library.Tokenizer(
        library.models.BPE(vocab=tokenizer.encoder, merges=merges, end_of_word_suffix="</w>", fuse_unk=False)
    )
    made.normalizer = library.normalizers.Sequence(_cleaning(tokenizer.clean_fn.__name__))
    made.pre_tokenizer = library.pre_tokenizers.Sequence(
        [
            library.pre_tokenizers.Split(library.Regex(_WORDS), behavior="removed", invert=True),
            library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.post_processor = library.processors.TemplateProcessing(
        single=f"{name[start]} $A {name[end]}", special_tokens=[(name[start], start), (name[end], end)]
    )
    made.enable_truncation(length)
    made.enable_padding(length=length, pad_id=0, pad_token=name[0])
    return made


def _of_fast(tokenizer: Any, length: int, cleaning: Sequence[Any]) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError(f"its tokenizer ({type(tokenizer).__name__}) has no form without transformers", path="embed")
    made = tokenizer_of(backend.to_str())
    if cleaning:
        own = [] if made.normalizer is None else [made.normalizer]
        made.normalizer = need("tokenizers", "text").normalizers.Sequence([*cleaning, *own])
    made.enable_truncation(length)
    made.enable_padding(length=length, pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token)
    return made


def _cleaning(name: str) -> list[Any]:
    """What open_clip does to a text first, by the name of its function: ``_clean_lower``, ``_clean_canonicalize``, …"""
    library = need("tokenizers", "text")
    replace, regex = library.normalizers.Replace, library.Regex
    steps = [library.normalizers.NFC(), *(replace(regex(old), new) for old, new in _QUOTES.items())]
    if "canonicalize" in name:
        steps += [replace("_", " "), replace(regex(_PUNCTUATION), "")]
    if "lower" in name or "canonicalize" in name:
        steps.append(library.normalizers.Lowercase())
    return [*steps, replace(regex(r"\s+"), " "), library.normalizers.Strip()]


def _checked(made: Any, expected: Callable[[Sequence[str]], list[list[int]]]) -> str:
    text = json.dumps(json.loads(made.to_str()))
    if [ids for ids, _ in tokens_of(tokenizer_of(text), SAMPLES)] != expected(SAMPLES):
        raise ConfigError("its tokenizer has no form without its library: it would give other ids", path="embed")
    return text
