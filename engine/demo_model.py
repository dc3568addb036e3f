"""A tiny image-text model for the demo: LLaVA's architecture, a tokenizer trained on the spot, no weights."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

IMAGE_SIZE = 96
_PATCH = 16
_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
_CHAT = (
    "{% for message in messages %}{{ message['role'] }} : "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)


def write_demo_model(folder: str | Path, texts: Iterable[str], *, n_layers: int = 6) -> Path:
    """Save the configuration and processor of a LLaVA of some 1.6 million parameters, as transformers does.

    Loaded with ``weights = "random"`` it becomes a model.

    Parameters
    ----------
    folder
        Where to; made if it is not there.
    texts
        What the tokenizer is trained on.
    n_layers
        Blocks of the language side.

    Returns
    -------
    Path
        ``folder``.
    """
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    folder = Path(folder)
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=1000, special_tokens=list(_SPECIAL), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = hf.LlavaProcessor(
        hf.CLIPImageProcessor(size=size, crop_size=size),
        wrapped,
        patch_size=_PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_CHAT,
    )
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(
            hidden_size=96,
            intermediate_size=192,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=IMAGE_SIZE,
            patch_size=_PATCH,
        ),
        text_config=hf.LlamaConfig(
            vocab_size=len(wrapped),
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=n_layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=1024,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        ),
        image_token_index=_SPECIAL.index("<image>"),
        vision_feature_layer=-1,
    )
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
