"""Models of transformers: building them with the weights asked for, their towers, and how they see pictures."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

from cbir_faiss.base.options import parse_options
from cbir_faiss.errors import ConfigError, one_line
from cbir_faiss.extractors import _tokenizer
from cbir_faiss.extractors._models import commit_at_hub, near_names
from cbir_faiss.extractors._tapped import seeded
from cbir_faiss.extractors._torch import TextTower
from cbir_faiss.images.preprocess import Preprocess
from cbir_faiss.nets.weights import fill, read_state_dict

# Left open, the library asks on the terminal whether to run the code that comes with a model.
_SAFE = {"trust_remote_code": False}
_ALIKE = 0.05  # of values whose deviation is about one: resampling differs by much less
_INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's numbers


class Pictures(torch.nn.Module):  # type: ignore[misc]
    """Images ``(n, 3, h, w)``, normalised, to embeddings ``(n, width)``; to tokens or maps where nothing pools them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.in_common = model, hasattr(model, "get_image_features")

    def forward(self, x: Any) -> Any:
        if self.in_common:
            return _pooled(self.model.get_image_features(pixel_values=x))
        found = self.model(pixel_values=x)
        whole = getattr(found, "pooler_output", None)
        return found[0] if whole is None else whole.flatten(1)


class Texts(torch.nn.Module):  # type: ignore[misc]
    """Token ids and, where the tokenizer gives one to the model, their mask, to embeddings."""

    def __init__(self, model: Any, masked: bool) -> None:
        super().__init__()
        self.model, self.masked = model, masked

    def forward(self, ids: Any, mask: Any) -> Any:
        return _pooled(self.model.get_text_features(input_ids=ids, **({"attention_mask": mask} if self.masked else {})))


def build(name: str, folder: Path | None, weights: str, seed: int) -> Any:
    """A model in evaluation mode, float32, without a pooler that its weights do not have.

    weights: ``none`` (random, drawn with ``seed``), ``DEFAULT``, or a path.

    Raises:
        ConfigError: no such model, weights of another model, or they cannot be downloaded.
    """
    if weights.isidentifier() and weights not in ("DEFAULT", "none"):
        raise ConfigError(f"transformers knows weights by the model's name alone, not '{weights}'", path="weights")
    config = _config(name, folder)
    missing: set[str] = set()
    with seeded(seed), _quiet():
        if weights == "DEFAULT":
            model, missing = _loaded(name, config)
        else:
            model = AutoModel.from_config(config)
    if not weights.isidentifier():
        fill(model, read_state_dict(Path(weights)), f"{weights}: not the weights of '{name}'")
    if missing:
        model.pooler = None  # drawn at random where the weights are those of a classifier
    return model.float().eval()


def tower(model: Any) -> Any:
    """The part of a model that sees pictures, whose modules may be tapped."""
    return getattr(model, "vision_model", model)


def preset(name: str, given: Set[str]) -> dict[str, Any]:
    """How pictures are prepared for a model, but for what is ``given``; nothing where it does not say, and the size is.

    Raises:
        ConfigError: it does not say, or in a way that ``Preprocess`` has not.
    """
    sized = bool(given & {"resize", "crop"})
    try:
        with _quiet():
            processor = AutoImageProcessor.from_pretrained(name, **_SAFE)
    except Exception as error:  # no such file, or not one of a processor of pictures
        if sized:
            return {}
        raise ConfigError(
            f"'{name}' does not say how pictures are prepared: give preprocess with resize and crop", path="preprocess"
        ) from error
    told = processor.to_dict()
    found: dict[str, Any] = dict(_sides(told))
    if told.get("resample") is not None:
        found["interpolation"] = _INTERPOLATIONS[int(told["resample"])]
    normal = told.get("do_normalize", True)
    found["mean"] = tuple(told["image_mean"]) if normal else (0.0, 0.0, 0.0)
    found["std"] = tuple(told["image_std"]) if normal else (1.0, 1.0, 1.0)
    said = sized and {"mean", "std"} <= given
    if not said and not _as_asked(processor, parse_options(Preprocess, found)):
        raise ConfigError(
            f"'{name}' wants pictures prepared as only its own {type(processor).__name__} does: give preprocess with "
            "resize and crop, mean and std",
            path="preprocess",
        )
    return found


def _as_asked(processor: Any, how: Preprocess) -> bool:
    """Whether a picture becomes what the model's own processor makes of it, which has more ways than are read here."""
    slopes = np.add.outer(np.arange(300), np.arange(400)) / 700
    picture = Image.fromarray((255 * np.stack([slopes, slopes[::-1], 0.3 + 0 * slopes], axis=2)).astype(np.uint8))
    ours = how.normalise(how.pixels(picture)[None])[0].transpose(2, 0, 1)
    try:
        with _quiet():
            theirs = np.asarray(processor(images=picture, return_tensors="np")["pixel_values"])[0]
    except Exception:  # it asks for more than a picture
        return False
    return theirs.shape == ours.shape and float(np.abs(theirs - ours).mean()) < _ALIKE


def text_tower(model: Any, name: str) -> tuple[TextTower, str]:
    """The tower of texts, and its tokenizer as JSON. ConfigError where there is none."""
    if not hasattr(model, "get_text_features"):
        raise ConfigError(f"'{name}' ({model.config.model_type}) has no text tower: leave embed out", path="embed")
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(name, **_SAFE)
    except Exception as error:  # files that are not there, or the hub
        raise ConfigError(f"'{name}': cannot get its tokenizer: {one_line(error)[:300]}", path="embed") from error
    texts = getattr(model.config, "text_config", model.config)
    length = min(int(texts.max_position_embeddings), int(tokenizer.model_max_length))
    masked = "attention_mask" in tokenizer.model_input_names
    return TextTower(Texts(model, masked)), _tokenizer.of_transformers(tokenizer, length)


def save(model: Any, name: str, with_text: bool, folder: Path) -> None:
    """The model, and its tokenizer if asked for, to be built from ``folder``."""
    with _quiet():
        model.save_pretrained(folder)
        if with_text:
            AutoTokenizer.from_pretrained(name, **_SAFE).save_pretrained(folder)


def revision(name: str) -> str:
    """The name and the revision of a model at the hub. ConfigError where it cannot be had."""
    # transformers 5 does not say any more where a config is from.
    return f"{name} {getattr(_config(name, None), '_commit_hash', None) or commit_at_hub(name, 'config.json')}"


def _config(name: str, folder: Path | None) -> Any:
    if folder is not None and not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} holds no model of transformers: there is no config.json", path="model")
    try:
        with _quiet():
            return AutoConfig.from_pretrained(name, **_SAFE)
    except Exception as error:  # the hub, the network, or JSON of something else
        near = near_names(name, _downloaded())
        raise ConfigError(
            f"cannot get the model '{name}'{near} ({one_line(error)[:200]}); a folder is written './{name}'"
            if folder is None
            else f"{folder} holds no model of transformers: {one_line(error)[:300]}",
            path="model",
        ) from error


def _loaded(name: str, config: Any) -> tuple[Any, set[str]]:
    try:
        model, told = AutoModel.from_pretrained(name, config=config, output_loading_info=True, **_SAFE)
    except Exception as error:  # the hub, the network, or weights of something else
        raise ConfigError(f"cannot get the weights of '{name}': {one_line(error)[:300]}", path="weights") from error
    missing = set(told["missing_keys"])
    others = sorted(key for key in missing if "pooler." not in key)
    if others:
        raise ConfigError(
            f"the weights of '{name}' are of another model: {len(others)} names missing; '{others[0]}' is not in it",
            path="weights",
        )
    return model, missing


def _downloaded() -> list[str]:
    """The models that were downloaded before."""
    from huggingface_hub import scan_cache_dir

    try:
        return [one.repo_id for one in scan_cache_dir().repos if one.repo_type == "model"]
    except Exception:  # there is no such folder yet
        return []


def _sides(told: dict[str, Any]) -> dict[str, Any]:
    size, crop = _plain(told.get("size")), _plain(told.get("crop_size"))
    if told.get("crop_pct") and "shortest_edge" in size:  # ConvNeXt's
        edge = size["shortest_edge"]
        return (
            {"resize": int(edge / told["crop_pct"]), "crop": edge}
            if edge < 384
            else {"resize": (edge, edge), "crop": None}
        )
    cropped = told.get("do_center_crop") and crop
    found: dict[str, Any] = {"crop": (crop["height"], crop["width"]) if cropped else None, "resize": None}
    if told.get("do_resize", True):
        if "shortest_edge" in size and not size.get("longest_edge"):
            found["resize"] = size["shortest_edge"]
        elif "height" in size:
            found["resize"] = size["height"], size["width"]
        else:
            raise ConfigError(f"the model wants pictures resized to {size}: give resize and crop", path="preprocess")
    return found


def _plain(size: Any) -> dict[str, Any]:
    if isinstance(size, int):
        return {"height": size, "width": size}
    return {key: value for key, value in dict(size or {}).items() if value is not None}


def _pooled(found: Any) -> Any:
    return found if torch.is_tensor(found) else found.pooler_output


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers writes what it finds unusual, and bars of progress, to stderr."""
    level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(level)
