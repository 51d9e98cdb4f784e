"""Data: which process sees which position of the stream, and a loader that brings them as micro batches.

Step s covers positions s*G to (s+1)*G, G being the global batch. Of these, process r of W takes the r-th
contiguous share, in micro batches one after the other. So the samples of a step never depend on the number
of processes, every process has as many steps as the others, and to go on after step s is to start at s.
The last step of an epoch runs on into the next one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from datakit.errors import BadImage, SourceError
from datakit.stream.reader import Stream
from trainer.batch import Batch, Collate, Example, Pictures
from trainer.chat import Chat


class Examples(Dataset[Example]):
    """The sample at each position of a stream, as tokens and pixels. Safe to pickle."""

    def __init__(self, stream: Stream, chat: Chat, pictures: Pictures) -> None:
        self.stream, self.chat, self.pictures = stream, chat, pictures

    def __getitem__(self, position: int) -> Example:
        """Raises SourceError, naming the sample, when it can't be read: packing has checked it."""
        sample = self.stream[position]
        if len(sample.images) != sample.record.n_marks:
            raise SourceError(
                f"sample {sample.key!r} has {len(sample.images)} pictures for {sample.record.n_marks} image "
                "parts. Pack its dataset again"
            )
        encoded = self.chat.encode(sample.record)
        side = self.pictures.size
        pixels = np.empty((encoded.n_images, 3, side, side), np.float32)
        for n, data in enumerate(sample.images[: encoded.n_images]):
            try:
                pixels[n] = self.pictures.pixels(data)
            except BadImage as error:
                raise SourceError(f"picture {n} of sample {sample.key!r} can't be read: {error}") from error
        return Example(sample.key, encoded.ids, encoded.labels, pixels, encoded.cut_tokens, encoded.cut_images)


@dataclass(frozen=True, kw_only=True)
class Share:
    """The positions of one process: lists of `micro_batch`, `accumulation` of them a step."""

    first_step: int
    last_step: int  # not included
    rank: int
    processes: int
    micro_batch: int
    accumulation: int

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        share = self.micro_batch * self.accumulation
        for step in range(self.first_step, self.last_step):
            start = (step * self.processes + self.rank) * share
            for at in range(start, start + share, self.micro_batch):
                yield list(range(at, at + self.micro_batch))


def loader(examples: Examples, share: Share, *, collate: Collate, workers: int) -> Iterable[Batch]:
    """Micro batches of one process, in order. With `workers`, they are made by so many other processes."""
    return DataLoader(
        examples,
        batch_sampler=share,
        collate_fn=collate,
        num_workers=workers,
        # Forked, they would inherit locks that threads of the collectives or of Arrow hold; from a fork server,
        # they would outlive a process that was killed, because they watch the server and it watches them.
        multiprocessing_context="spawn" if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
