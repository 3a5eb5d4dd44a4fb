"""Small multimodal models of transformers, random weights: their text configuration is a part of theirs."""

from typing import Any

import torch
import transformers

VOCAB, WIDTH = 60, 16
_TEXT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# As many layers as the text has: the blocks are not the first list of that length.
_VISION: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
_ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e4}
_MLLAMA = {
    "cross_attention_layers": [1],
    "num_hidden_layers": 3,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}
_SIZES: dict[str, dict[str, Any]] = {
    "Gemma3": {"text_config": {**_TEXT, "head_dim": 8}, "vision_config": _VISION, "mm_tokens_per_image": 4},
    "Llava": {"text_config": {**_TEXT, "model_type": "llama"}, "vision_config": {**_VISION, "model_type": "clip_vision_model"}},
    "Qwen2VL": {
        "text_config": {**_TEXT, "rope_parameters": {**_ROPE, "mrope_section": [1, 1, 2]}},
        "vision_config": {"depth": 2, "embed_dim": 8, "hidden_size": WIDTH, "num_heads": 2, "patch_size": 8},
    },
    "Idefics3": {"text_config": {**_TEXT, "model_type": "llama"}, "vision_config": _VISION, "scale_factor": 1},
    "Mllama": {
        "text_config": {**_TEXT, **_MLLAMA},
        "vision_config": {**_VISION, "attention_heads": 2, "num_global_layers": 1, "vision_output_dim": 16, "max_num_tiles": 2}
        | {"intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]], "image_size": 16},
    },
}
KINDS = tuple(_SIZES)


def multimodal(kind: str, *, tied: bool) -> Any:
    """A model in evaluation mode whose images have ids beyond the text's."""
    ids = {"image_token_id": VOCAB - 1, "image_token_index": VOCAB - 1, "video_token_id": VOCAB - 2, "pad_token_id": 0}
    ids |= {"vision_start_token_id": VOCAB - 3, "vision_end_token_id": VOCAB - 4, "tie_word_embeddings": tied}
    parts = {**_SIZES[kind], "text_config": {**_SIZES[kind]["text_config"], "tie_word_embeddings": tied}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(**parts, **ids)
        model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.15 * torch.randn(parameter.shape))
    return model
