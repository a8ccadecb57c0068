"""timm's models without their classifiers: building them with the weights asked for, and how they see pictures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config

from cbir_faiss.errors import ConfigError, one_line
from cbir_faiss.extractors._models import check_own, near_names
from cbir_faiss.extractors._tapped import seeded
from cbir_faiss.nets.weights import fill, read_state_dict


def build(name: str, folder: Path | None, weights: str, seed: int) -> Any:
    """A model in evaluation mode that gives pooled features.

    weights: ``none`` (random, drawn with ``seed``), ``DEFAULT`` or a tag that timm has for this model, or a path.

    Raises:
        ConfigError: no such model, no such weights, weights of another model, or they cannot be downloaded.
    """
    check_own(name, folder, weights)
    if folder is not None:
        if not (folder / "config.json").is_file():
            raise ConfigError(f"{folder} holds no model of timm: there is no config.json", path="model")
        name = f"local-dir:{folder}"
    elif ":" not in name:
        name = _known(name, weights)
    with seeded(seed):
        model = _created(name, weights != "none" and weights.isidentifier())
    if not weights.isidentifier():
        state = read_state_dict(Path(weights))
        heads = model.pretrained_cfg.get("classifier") or ()
        own = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
        body = {key: value for key, value in state.items() if not key.startswith(own)} if own else state
        fill(model, body, f"{weights}: not the weights of '{name}'")
    return model.eval()


def preset(model: Any) -> dict[str, Any]:
    """How pictures are prepared for a model: as timm does it for evaluation.

    Raises:
        ConfigError: in a way that ``Preprocess`` has not.
    """
    told = resolve_model_data_config(model)
    height, width = told["input_size"][1:]
    mode, share = told.get("crop_mode") or "center", told.get("crop_pct") or 1.0
    scaled = math.floor(height / share), math.floor(width / share)
    if mode not in ("center", "squash") or (mode == "center" and height != width):
        raise ConfigError(f"the model wants pictures cropped by '{mode}': give resize and crop", path="preprocess")
    return {
        "resize": scaled[0] if mode == "center" else scaled,
        "crop": (height, width),
        "interpolation": told["interpolation"],
        "mean": tuple(told["mean"]),
        "std": tuple(told["std"]),
    }


def save(model: Any, name: str, folder: Path | None, to: Path) -> str:
    """Config and weights below ``to``, to be built from there; the name of the file of the weights."""
    config: dict[str, Any] = {"architecture": model.pretrained_cfg["architecture"]}
    config["pretrained_cfg"] = model.pretrained_cfg
    if folder is not None:
        told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["model_args"] = told.get("model_args", {})
    elif ":" in name:
        config["model_args"] = timm.models.load_model_config_from_hf(name.partition(":")[2])[2]
    (to / "config.json").write_text(json.dumps(config))
    torch.save(model.state_dict(), to / "weights.pth")
    return "weights.pth"


def channels_last(model: Any) -> bool:
    """Whether maps inside the model are ``(n, h, w, c)``."""
    return str(getattr(model, "output_fmt", "")).endswith("NHWC")


def _known(name: str, weights: str) -> str:
    """The name with the tag of its weights. ConfigError where timm does not know one of them."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise ConfigError(f"timm has no model '{name}'{near_names(architecture, timm.list_models())}", path="model")
    tag = weights if weights.isidentifier() and weights not in ("DEFAULT", "none") else tag
    if not tag:
        return architecture
    tags = [one.partition(".")[2] for one in timm.list_pretrained(f"{architecture}.*")]
    if tag not in tags:
        there = f"there are: {', '.join(tags) or 'none'}"
        raise ConfigError(f"'{architecture}' has no weights '{tag}'; {there}", path="weights")
    return f"{architecture}.{tag}"


def _created(name: str, pretrained: bool) -> Any:
    try:
        if not pretrained:
            return timm.create_model(name, pretrained=False, num_classes=0)
        # Asked for fewer classes than the weights have, timm would let any other name be missing, too.
        model = timm.create_model(name, pretrained=True)
        model.reset_classifier(0)
        return model
    except Exception as error:  # the hub, the network, or a folder that holds something else
        told = " ".join(str(error).split())
        if "in loading state_dict" in told:
            raise ConfigError(f"the weights of '{name}' are of another model: {told[:300]}", path="weights") from error
        reason = (
            f"cannot get the model '{name}' ({one_line(error)[:300]}): give `weights: PATH` of a state dict, or `none`"
        )
        raise ConfigError(reason, path="weights" if pretrained else "model") from error
