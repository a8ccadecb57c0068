"""open_clip's models: building them with the weights asked for, their two towers, and their tokenizers."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import torch

from cbir_faiss.errors import ConfigError, one_line
from cbir_faiss.extractors import _tokenizer
from cbir_faiss.extractors._models import check_own, near_names
from cbir_faiss.extractors._tapped import seeded
from cbir_faiss.extractors._torch import TextTower

_CONFIG = "open_clip_config.json"


class Pictures(torch.nn.Module):  # type: ignore[misc]
    """Normalised images ``(n, 3, h, w)`` to embeddings ``(n, width)``."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Any) -> Any:
        return self.model.encode_image(x)


class Texts(torch.nn.Module):  # type: ignore[misc]
    """Token ids to embeddings; the mask is not asked for: these models know their own padding."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = model.text
        self.causal = "attn_mask" in dict(self.tower.named_buffers())

    def forward(self, ids: Any, mask: Any) -> Any:
        if not self.causal:
            return self.tower(ids)
        # open_clip lets nothing but texts of full length through its mask.
        length = ids.shape[1]
        cut = {"attn_mask": self.tower.attn_mask[:length, :length]}
        return torch.func.functional_call(self.tower, cut, (ids,))


def build(name: str, folder: Path | None, weights: str, seed: int) -> Any:
    """A model in evaluation mode.

    weights: ``none`` (random, drawn with ``seed``), ``DEFAULT`` or a name that open_clip has for this model, or a path.

    Raises:
        ConfigError: no such model, no such weights, weights of another model, or they cannot be downloaded.
    """
    check_own(name, folder, weights)
    whose, tag = name, None
    named = weights != "none" and weights.isidentifier()
    if folder is not None:
        _config(folder)
        whose = f"local-dir:{folder}"
    elif ":" not in name:
        tag = _tag(name, weights)
    with seeded(seed), _quiet():
        try:
            # The text tower by itself takes texts of any length, which the old way of building them does not.
            model = open_clip.create_model(
                whose,
                tag,
                load_weights=named,
                require_pretrained=named,
                force_custom_text=True,
                force_quick_gelu=folder is None and of_quick_gelu(name, weights),
            )
        except Exception as error:  # the hub, the network, or weights of something else
            reason = f"cannot get the model '{name}' ({one_line(error)[:300]}): give `weights: PATH`, or `none`"
            raise ConfigError(reason, path="weights") from error
    if not weights.isidentifier():
        _fill(model, Path(weights), name)
    return model.eval()


def of_quick_gelu(name: str, weights: str) -> bool:
    """Whether the weights called so were trained with QuickGELU, which open_clip's config of a model may not say.

    Raises:
        ConfigError: no such model, or no such weights.
    """
    tag = None if ":" in name else _tag(name, weights)
    return tag is not None and bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu"))


def preset(model: Any) -> dict[str, Any]:
    """How pictures are prepared for a model. ConfigError where ``Preprocess`` has no such way."""
    told = open_clip.get_model_preprocess_cfg(model)
    sides = told["size"]
    height, width = sides if isinstance(sides, (list, tuple)) else (sides, sides)
    mode = told.get("resize_mode") or "shortest"
    if mode not in ("shortest", "squash") or (mode == "shortest" and height != width):
        raise ConfigError(f"the model wants pictures resized by '{mode}': give resize and crop", path="preprocess")
    return {
        "resize": height if mode == "shortest" else (height, width),
        "crop": (height, width),
        "interpolation": told["interpolation"],
        "mean": tuple(told["mean"]),
        "std": tuple(told["std"]),
    }


def text_tower(model: Any, name: str, folder: Path | None) -> tuple[TextTower, str]:
    """The tower of texts, and its tokenizer as JSON."""
    return TextTower(Texts(model)), _tokenizer.of_open_clip(_tokenizer_of(name, folder))


def _tokenizer_of(name: str, folder: Path | None) -> Any:
    try:
        return open_clip.get_tokenizer(name if folder is None else f"local-dir:{folder}")
    except Exception as error:  # files that are not there, or the hub
        raise ConfigError(f"'{name}': cannot get its tokenizer: {one_line(error)[:300]}", path="embed") from error


def save(model: Any, name: str, folder: Path | None, weights: str, with_text: bool, to: Path) -> None:
    """Config, weights and, if asked for, the tokenizer below ``to``, to be built from there."""
    words = getattr(_tokenizer_of(name, folder), "tokenizer", None) if with_text else None
    if words is not None:  # open_clip's own comes with it
        words.save_pretrained(to)
    config = _config(folder) if folder is not None else {"model_cfg": open_clip.get_model_config(name)}
    if folder is None and of_quick_gelu(name, weights):
        config["model_cfg"]["quick_gelu"] = True
    config["preprocess_cfg"] = open_clip.get_model_preprocess_cfg(model)
    (to / _CONFIG).write_text(json.dumps(config))
    torch.save(model.state_dict(), to / "open_clip_pytorch_model.bin")


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{folder} holds no model of open_clip: {_CONFIG}: {error.strerror}", path="model") from error
    except ValueError as error:
        raise ConfigError(f"{folder / _CONFIG} is not JSON: {error}", path="model") from error
    if not isinstance(config, dict) or "model_cfg" not in config:
        raise ConfigError(f"{folder / _CONFIG} describes no model: there is no 'model_cfg'", path="model")
    return config


def _tag(name: str, weights: str) -> str | None:
    """open_clip's name of the weights, if they have one.

    Raises:
        ConfigError: it does not know the model, or not those weights for it.
    """
    if name not in open_clip.list_models():
        raise ConfigError(f"open_clip has no model '{name}'{near_names(name, open_clip.list_models())}", path="model")
    if weights == "none" or not weights.isidentifier():
        return None
    tags = open_clip.list_pretrained_tags_by_model(name)
    if weights == "DEFAULT" and tags:
        return str(tags[0])
    if weights not in tags:
        raise ConfigError(
            f"'{name}' has no weights '{weights}'; there are: {', '.join(tags) or 'none'}", path="weights"
        )
    return weights


def _fill(model: Any, file: Path, name: str) -> None:
    if not file.is_file():
        raise ConfigError(f"no such file: {file}", path="weights")
    try:
        with _quiet():
            open_clip.load_checkpoint(model, str(file))
    except Exception as error:  # a damaged file raises nearly anything
        reason = f"{file}: not the weights of '{name}': {' '.join(str(error).split())[:200]}"
        raise ConfigError(reason, path="weights") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """open_clip warns, in the name of nobody, that there are no weights, before they are filled in."""
    root = logging.getLogger()

    def others(record: logging.LogRecord) -> bool:
        return "open_clip" not in record.pathname

    root.addFilter(others)
    try:
        yield
    finally:
        root.removeFilter(others)
