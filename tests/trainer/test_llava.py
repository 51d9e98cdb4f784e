from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from toymix import PICTURE, png, record, sample, text

pytest.importorskip("torch", reason="needs the `train` extra")
pytest.importorskip("transformers", reason="needs the `train` extra")

import torch

from datakit.errors import UsageError
from trainer.batch import Collate, Example
from trainer.chat import Chat
from trainer.config import load
from trainer.model import build, image_tokens, loss_sum, part_of, weight_groups

TOY = load("toy")[1]


def chat(vlm: object) -> Chat:
    return Chat(vlm.processor.tokenizer, template="v1", image_tokens=vlm.image_tokens, max_length=512)


def example(vlm: object, one: object) -> Example:
    encoded = chat(vlm).encode(one)
    picture = png(Image.new("RGB", (40, 30), "red"))
    pixels = [vlm.pictures.pixels(picture) for _ in range(encoded.n_images)]
    stacked = np.stack(pixels) if pixels else np.empty((0, 3, 32, 32), np.float32)
    return Example(one.key, encoded.ids, encoded.labels, stacked, 0, 0)


def loss_of(vlm: object, numbers: list[int]) -> tuple[torch.Tensor, int]:
    tokenizer = vlm.processor.tokenizer
    collate = Collate(tokenizer.pad_token_id, chat(vlm).image_id, vlm.image_tokens)
    batch = collate([example(vlm, sample(n)) for n in numbers])
    return loss_sum(vlm.model, batch), batch.n_learned


def test_the_toy_is_the_same_every_time():
    one, two = build(TOY), build(TOY)

    for name, weight in one.model.state_dict().items():
        assert torch.equal(weight, two.model.state_dict()[name]), name


def test_the_toys_tokenizer_does_not_depend_on_the_process():
    line = (
        "from trainer.model import toy_tokenizer; print(toy_tokenizer().backend_tokenizer.to_str(), end='', flush=True)"
    )

    told = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True).stdout

    assert told == build(TOY).processor.tokenizer.backend_tokenizer.to_str()


@pytest.mark.parametrize("trains", [("connector",), ("connector", "llm"), ("vision",)])
def test_only_what_the_recipe_trains_can_change(trains):
    model = build(dataclasses.replace(TOY, trains=trains)).model

    trained = {part_of(name) for name, weight in model.named_parameters() if weight.requires_grad}

    assert trained == set(trains)


def test_biases_and_norms_do_not_decay():
    model = build(TOY).model

    groups = weight_groups(model, 0.1)

    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert {w.ndim for w in groups[1]["params"]} == {1}
    n_trained = sum(w.requires_grad for w in model.parameters())
    assert sum(len(group["params"]) for group in groups) == n_trained


def test_ids_are_those_of_transformers_own_processor():
    vlm = build(TOY)
    one = record(("user", [PICTURE, text("Which?")]), ("assistant", [text("The red one.")]))
    rendered, _ = chat(vlm).render(one)

    theirs = vlm.processor(text=rendered, images=[Image.new("RGB", (32, 32))])

    assert chat(vlm).encode(one).ids.tolist() == list(theirs["input_ids"][0])


def test_unequal_micro_batches_add_up_to_the_batch():
    vlm = build(TOY)
    numbers = [0, 1, 2, 3, 5, 9]
    whole, tokens = loss_of(vlm, numbers)
    (whole / tokens).backward()
    expected = {name: w.grad.clone() for name, w in vlm.model.named_parameters() if w.grad is not None}
    vlm.model.zero_grad()

    for part in (numbers[:1], numbers[1:3], numbers[3:4], numbers[4:]):  # one of them has no picture
        loss, _ = loss_of(vlm, part)
        (loss / tokens).backward()

    assert expected
    for name, weight in vlm.model.named_parameters():
        if name in expected:
            torch.testing.assert_close(weight.grad, expected[name], atol=1e-6, rtol=1e-4)


def test_the_picture_behind_a_text_changes_nothing():
    vlm = build(TOY)
    one = example(vlm, sample(3))
    bare = vlm.model(input_ids=torch.tensor(one.ids)[None], use_cache=False).logits
    ids = torch.tensor(one.labels)[None, 1:]
    expected = torch.nn.functional.cross_entropy(bare[0, :-1], ids[0], reduction="sum")

    loss, _ = loss_of(vlm, [3])
    loss.backward()

    torch.testing.assert_close(loss, expected)
    for name, weight in vlm.model.named_parameters():
        if part_of(name) == "connector":
            assert weight.grad is not None and not weight.grad.any(), name


def test_a_model_on_disk_is_opened_by_its_path(tmp_path):
    toy = build(TOY)
    toy.model.save_pretrained(tmp_path)
    toy.processor.save_pretrained(tmp_path)

    opened = build(dataclasses.replace(TOY, model=str(tmp_path)))

    assert opened.pictures == toy.pictures
    assert opened.image_tokens == toy.image_tokens == 16
    assert chat(opened).encode(sample(1)).ids.tolist() == chat(toy).encode(sample(1)).ids.tolist()
    for name, weight in toy.model.state_dict().items():
        assert torch.equal(weight, opened.model.state_dict()[name]), name


def test_a_recipe_with_another_image_size_than_the_model_is_refused(tmp_path):
    toy = build(TOY)
    toy.model.save_pretrained(tmp_path)
    toy.processor.save_pretrained(tmp_path)

    with pytest.raises(UsageError, match="Set image_size=32"):
        build(dataclasses.replace(TOY, model=str(tmp_path), image_size=336))


@pytest.mark.parametrize("aspect", ["pad", "square", "resize"])
def test_the_saved_processor_prepares_pictures_as_training_did(tmp_path, aspect):
    vlm = build(dataclasses.replace(TOY, image_aspect=aspect))  # first: the classes can be imported after it
    from transformers import LlavaProcessor
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8))
    trained = vlm.pictures.pixels(png(image))
    vlm.processor.save_pretrained(tmp_path)

    theirs = LlavaImageProcessorPil.from_pretrained(tmp_path)(images=image)["pixel_values"][0]
    opened = LlavaProcessor.from_pretrained(tmp_path)
    answer = opened(text="<image>", images=[image], return_tensors="pt")

    np.testing.assert_allclose(theirs, trained, atol=1e-5)
    one_level = 1 / 255 / min(vlm.pictures.std)  # by torchvision, where it is installed
    np.testing.assert_allclose(answer["pixel_values"][0], trained, atol=1.01 * one_level)
    assert (answer["input_ids"] == opened.image_token_id).sum() == vlm.image_tokens


def test_all_features_of_clip_count_its_class_token():
    config = build(TOY).model.config
    assert image_tokens(config) == 16

    config.vision_feature_select_strategy = "full"

    assert image_tokens(config) == 17
