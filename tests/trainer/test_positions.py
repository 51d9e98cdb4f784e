from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs the `train` extra")
pytest.importorskip("transformers", reason="needs the `train` extra")

from datakit.errors import SourceError
from datakit.stream.reader import Sample, Stream
from trainer import data
from trainer.batch import Collate, Pictures
from trainer.chat import Chat
from trainer.model import toy_tokenizer

TOKENIZER = toy_tokenizer()
CHAT = Chat(TOKENIZER, template="v1", image_tokens=16, max_length=512)
PICTURES = Pictures(size=32, aspect="pad", mean=(0.5,) * 3, std=(0.5,) * 3)
COLLATE = Collate(TOKENIZER.pad_token_id, CHAT.image_id, 16)


def share(rank: int, processes: int, first: int = 0, last: int = 3, micro_batch: int = 1) -> data.Share:
    accumulation = 8 // (processes * micro_batch)
    return data.Share(
        first_step=first,
        last_step=last,
        rank=rank,
        processes=processes,
        micro_batch=micro_batch,
        accumulation=accumulation,
    )


def of_step(step: int, processes: int, micro_batch: int) -> list[int]:
    """Positions that all processes see in a step, in the order of their ranks."""
    ranks = [share(rank, processes, step, step + 1, micro_batch) for rank in range(processes)]
    return [position for rank in ranks for batch in rank for position in batch]


@pytest.mark.parametrize(("processes", "micro_batch"), [(1, 1), (1, 8), (2, 2), (4, 1), (8, 1)])
def test_a_step_covers_the_same_positions_on_any_number_of_processes(processes, micro_batch):
    assert of_step(2, processes, micro_batch) == list(range(16, 24))


@pytest.mark.parametrize("first", range(4))
def test_to_go_on_after_a_step_is_to_start_at_it(first):
    whole = list(share(1, 2))

    rest = list(share(1, 2, first=first))

    assert rest == whole[first * 4 :]
    assert len(share(1, 2, first=first)) == len(rest)


def test_every_process_has_as_many_batches_as_the_others():
    assert {len(list(share(rank, 4))) for rank in range(4)} == {6}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_brings_the_samples_of_the_stream_in_order(toy_mix, workers):
    stream = Stream(toy_mix, seed=3)
    examples = data.Examples(Stream(toy_mix, seed=3), CHAT, PICTURES)

    batches = list(data.loader(examples, share(0, 1, micro_batch=2), collate=COLLATE, workers=workers))

    assert [key for batch in batches for key in batch.keys] == [stream[p].key for p in range(24)]
    assert all(len(batch.pixels_NCHW) == batch_pictures(batch) for batch in batches)


def batch_pictures(batch: object) -> int:
    return int((batch.ids_BT == CHAT.image_id).sum()) // 16


def test_a_sample_that_cannot_be_read_is_named(toy_mix):
    class Broken:
        def __getitem__(self, position: int) -> Sample:
            whole = Stream(toy_mix)[0]
            return Sample(whole.key, whole.record, [b"<html>" for _ in whole.images])

    assert Stream(toy_mix)[0].images
    with pytest.raises(SourceError, match=f"picture 0 of sample '{Stream(toy_mix)[0].key}' can't be read"):
        data.Examples(Broken(), CHAT, PICTURES)[0]
