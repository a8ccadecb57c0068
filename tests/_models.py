"""Real architectures at random weights, small enough for tests, in folders as their libraries write them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TEXTS = ["a red bus", "two dogs on the beach", "a very long text " * 20]


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(3)]


def pooled(found: Any) -> Any:
    """What a tower of transformers gives, which before version 5 is a tensor."""
    return getattr(found, "pooler_output", found)


def directions(x: Any) -> Any:
    x = x.detach().numpy()
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def timm_weights(file: Path) -> Path:
    """The state dict of ``test_vit``, its classifier included."""
    import timm
    import torch

    torch.manual_seed(1)
    torch.save(timm.create_model("test_vit", num_classes=7).state_dict(), file)
    return file


def timm_folder(folder: Path, name: str = "test_vit", **changed: Any) -> Path:
    """A model with seven classes, as timm saves one for the hub; ``changed``: the arguments it is made with."""
    import timm
    import torch

    torch.manual_seed(1)
    model = timm.create_model(name, num_classes=7, **changed)
    folder.mkdir()
    config = {"architecture": name, "num_classes": 7, "model_args": changed, "pretrained_cfg": model.pretrained_cfg}
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def open_clip_folder(folder: Path) -> Path:
    """A CLIP of one layer a tower, with open_clip's own tokenizer."""
    import open_clip
    import torch

    vision = {"image_size": 32, "patch_size": 16, "layers": 1, "width": 32, "head_width": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    preprocess = {"mean": [0.48, 0.45, 0.4], "std": [0.26, 0.26, 0.27], "interpolation": "bicubic"}
    config = {
        "model_cfg": {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text},
        "preprocess_cfg": {**preprocess, "resize_mode": "shortest"},
    }
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(1)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder


def clip_folder(folder: Path) -> Path:
    """transformers' CLIP, whose text tower does not mind padding."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    words = _tokenizer(folder, "<s> $A </s>", ["input_ids", "attention_mask"])
    torch.manual_seed(0)
    config = CLIPConfig(text_config={**_TINY, **words}, vision_config={**_TINY, **_SEEN}, projection_dim=16)
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def siglip_folder(folder: Path) -> Path:
    """transformers' SigLIP, whose text tower was trained with padding and needs it."""
    import torch
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    words = _tokenizer(folder, "$A </s>", ["input_ids"])
    torch.manual_seed(0)
    SiglipModel(SiglipConfig(text_config={**_TINY, **words}, vision_config={**_TINY, **_SEEN})).save_pretrained(folder)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def vit_folder(folder: Path) -> Path:
    """transformers' ViT as a classifier is saved: with a head, and without the pooler."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(**_TINY, **_SEEN)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


_TINY = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
_SEEN = {"image_size": 32, "patch_size": 16}


def _tokenizer(folder: Path, template: str, inputs: list[str]) -> dict[str, int]:
    """A tokenizer of byte pairs, written down; what the text tower is told of it."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=sorted(alphabet), show_progress=False
    )
    made.train_from_iterator(["a red bus and two dogs on the beach"] * 5, trainer)
    made.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 0), ("</s>", 1)])
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    whole = PreTrainedTokenizerFast(tokenizer_object=made, **named, model_max_length=16, model_input_names=inputs)
    whole.save_pretrained(folder)
    size = made.get_vocab_size()
    numbers = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    return {"vocab_size": size, "max_position_embeddings": 16, **numbers}


def quietly_imported(*modules: str) -> None:
    """Import libraries whose own code warns of what it uses; the test is skipped where one is missing."""
    import pytest

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in modules:
            pytest.importorskip(module)
