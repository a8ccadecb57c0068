"""State dicts: read without unpickling anything but tensors, and filled into a model that they fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cbir_faiss.base.options import need
from cbir_faiss.errors import ConfigError, one_line


def read_state_dict(file: Path) -> dict[str, Any]:
    """The tensors of a state dict by name, as torch saves one, or ``.safetensors``.

    Raises:
        ConfigError: the file is missing, damaged or anything else. MissingDependency: there is no safetensors.
    """
    if not file.is_file():
        raise ConfigError(f"no such file: {file}", path="weights")
    safe = need("safetensors.torch", "timm") if file.suffix == ".safetensors" else None
    try:
        state = safe.load_file(file) if safe else torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle or archive raises nearly anything
        reason = f"not a state dict that can be loaded safely: {one_line(error)}"
        raise ConfigError(f"{file}: {reason}", path="weights") from error
    if not isinstance(state, dict) or not state or not all(torch.is_tensor(value) for value in state.values()):
        raise ConfigError(f"{file}: not a state dict, a mapping of names to tensors", path="weights")
    return state


def fill(model: Any, state: dict[str, Any], problem: str) -> None:
    """Load ``state``, of any float type, into the float32 ``model``; ConfigError where names or shapes differ."""
    mine = model.state_dict()
    missing, unknown = [key for key in mine if key not in state], [key for key in state if key not in mine]
    if missing or unknown:
        first = f"'{missing[0]}' is not in it" if missing else f"'{unknown[0]}' is not in the model"
        raise ConfigError(f"{problem}: {len(missing)} names missing, {len(unknown)} unknown; {first}", path="weights")
    for key, value in mine.items():
        if value.shape != state[key].shape:
            raise ConfigError(f"{problem}: '{key}' is {(*state[key].shape,)}, not {(*value.shape,)}", path="weights")
    model.load_state_dict(state)


def device(name: str) -> Any:
    """Raises ConfigError where this machine or this torch does not have it."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there[name]:
        raise ConfigError(f"torch sees no {name} device here", path="device")
    return torch.device(name)


def has_bfloat16(where: Any) -> bool:
    """Whether a torch device computes in bfloat16; others have to emulate it, and are slower than in float32."""
    if where.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(where.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False))
