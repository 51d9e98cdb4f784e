"""Model: transformers' Llava classes, which parts of them are trained, and what pictures and text they want.

`toy` makes a Llava of a few ten thousand weights and a tokenizer on the spot, the same in every process and
run. Any other name goes to `from_pretrained`.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from datakit.errors import UsageError
from trainer.batch import Batch, Pictures
from trainer.chat import IGNORE, IMAGE
from trainer.config import TOY_PATCH, Training
from trainer.templates import TEMPLATES

if TYPE_CHECKING:  # importing them imports torchvision: see `load_torchvision`
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

PREFIXES = {"vision": "model.vision_tower.", "connector": "model.multi_modal_projector."}  # else "llm"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@cache  # the schemas live as long as the library that is returned
def load_torchvision() -> torch.library.Library | None:
    """Imports torchvision where it is installed, also beside a CPU-only torch, which can't load its compiled ops.

    transformers imports it with the classes of a Llava. PyPI's torchvision is built for CUDA, and beside another
    torch its import fails, because two operators have no schema. So call this before you import those classes.
    Returns the library that the two schemas were added to; None where nothing had to be added.
    """
    if importlib.util.find_spec("torchvision") is None or torch.cuda.is_available():
        return None
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        boxes = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library = torch.library.Library("torchvision", "DEF")
        library.define(f"nms{boxes}")
        library.define(f"qnms{boxes}")
        importlib.import_module("torchvision")
        return library
    return None


@dataclass(frozen=True)
class Vlm:
    """A model and all that must be known to feed it."""

    model: LlavaForConditionalGeneration
    processor: LlavaProcessor  # saved beside the weights; holds the tokenizer
    pictures: Pictures
    image_tokens: int  # per picture


def build(training: Training) -> Vlm:
    """The recipe's model, what it doesn't train frozen. Raises UsageError when recipe and model disagree."""
    load_torchvision()
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    if training.model == "toy":
        model, processor = _toy(training)
    else:
        processor = AutoProcessor.from_pretrained(training.model)
        model = LlavaForConditionalGeneration.from_pretrained(training.model, dtype=DTYPES[training.precision])
    side = model.config.vision_config.image_size
    if side != training.image_size:
        raise UsageError(
            f"the vision tower of {training.model!r} sees {side} pixels, the recipe says "
            f"{training.image_size}. Set image_size={side}"
        )
    if model.config.image_token_id != processor.tokenizer.convert_tokens_to_ids(IMAGE):
        raise UsageError(f"model and tokenizer of {training.model!r} disagree on the id of {IMAGE!r}")
    for name, weight in model.named_parameters():
        weight.requires_grad_(part_of(name) in training.trains)
    # HF's own chat functions add no first token, so the template that is saved has it.
    processor.chat_template = "{{ bos_token }}" + TEMPLATES[training.template]
    pictures = Pictures(
        size=side,
        aspect=training.image_aspect,
        mean=tuple(processor.image_processor.image_mean),
        std=tuple(processor.image_processor.image_std),
    )
    processor.image_processor = image_processor_of(pictures)
    return Vlm(model, processor, pictures, image_tokens(model.config))


def image_processor_of(pictures: Pictures) -> LlavaImageProcessorPil:
    """transformers' image processor that prepares a picture as training did, to be saved with the model.

    Two things it leaves to whoever uses it. It doesn't turn a photo by its EXIF: `ImageOps.exif_transpose`
    does. And where torchvision is installed, transformers opens it as the class that resizes by torchvision,
    which may be off by 1 of 255 levels; `LlavaImageProcessorPil.from_pretrained` has the very pixels.
    """
    load_torchvision()
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    square = {"height": pictures.size, "width": pictures.size}
    cut = pictures.aspect == "square"
    return LlavaImageProcessorPil(
        do_pad=pictures.aspect == "pad",  # to a square, on the mean colour
        size={"shortest_edge": pictures.size} if cut else square,
        do_center_crop=cut,
        crop_size=square,  # also where there is no cut: the processor counts image tokens by it
        resample=Image.Resampling.BICUBIC,
        image_mean=list(pictures.mean),
        image_std=list(pictures.std),
    )


def part_of(weight: str) -> str:
    """The part of a Llava that a weight belongs to: "vision", "connector" or "llm"."""
    return next((part for part, prefix in PREFIXES.items() if weight.startswith(prefix)), "llm")


def image_tokens(config: LlavaConfig) -> int:
    """Tokens that stand for one picture: its patches, and CLIP's class token when all features are taken."""
    vision = config.vision_config
    patches: int = (vision.image_size // vision.patch_size) ** 2
    has_class_token = vision.model_type == "clip_vision_model"
    return patches + int(has_class_token and config.vision_feature_select_strategy == "full")


def weight_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """What the optimizer is given: trained weights, biases and norms apart because they don't decay."""
    trained = [w for w in model.parameters() if w.requires_grad]
    groups = [
        {"params": [w for w in trained if w.ndim > 1], "weight_decay": weight_decay},
        {"params": [w for w in trained if w.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def loss_sum(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Sum of the token losses of a micro batch; the caller divides by the tokens of the global batch.

    `model` is a Llava or the DeepSpeed engine around one.
    """
    out = model(
        input_ids=batch.ids_BT,
        attention_mask=batch.mask_BT,
        pixel_values=batch.pixels_NCHW,
        use_cache=False,
    )
    logits = out.logits[:, :-1].float().flatten(0, 1)
    return F.cross_entropy(logits, batch.labels_BT[:, 1:].flatten(), ignore_index=IGNORE, reduction="sum")


def _toy(training: Training) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    load_torchvision()
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = toy_tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=training.image_size,
        patch_size=TOY_PATCH,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=training.max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(training.image_size // TOY_PATCH) ** 2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        model = LlavaForConditionalGeneration(config)
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(),  # for its mean and deviation; see `image_processor_of`
        tokenizer=tokenizer,
        patch_size=TOY_PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLIP's class token
    )
    return model, processor


_TOY_TEXT = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions. USER: What is in the picture? ASSISTANT: There is "
    "a boat on the water, and a person in a red coat is standing on the left of it. USER: Which of these "
    "colours can be seen? Answer with the letter of the option. ASSISTANT: The sky is blue, the grass green."
)


def toy_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 512 tokens, trained on a text that stands above and not on any data."""
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        [_TOY_TEXT],
        trainers.BpeTrainer(
            vocab_size=512,
            special_tokens=[*special.values(), IMAGE],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    bos = special["bos_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special, extra_special_tokens={"image_token": IMAGE})
