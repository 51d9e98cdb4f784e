"""A training loop of one's own over a mix, in plain PyTorch. Stopped and run again, it goes on where it was.

    python examples/own_loop.py data/mixes/answers-train/mix.json runs/own_loop.pt 40

The model is a toy: from the picture in 8 x 8 pixels it guesses which bytes the answers have. The rest is what any loop
needs. A sample is a function of its position, so all that is to be kept of the data is the next position.
"""

import io
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from datakit import DatakitError, Stream

BATCH = 4


class Examples(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """The sample at each position of a stream, as tensors. A stream can be pickled, so workers may read it, too."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __getitem__(self, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels from 0 to 1, (192,), and for each byte whether the answers have it, (256,)."""
        sample = self.stream[position]
        pixels, there = torch.zeros(192), torch.zeros(256)
        if sample.images:  # JPEG or PNG, as many as the messages have image parts; none in a row of text
            picture = Image.open(io.BytesIO(sample.images[0])).convert("RGB").resize((8, 8))
            pixels = torch.from_numpy(np.asarray(picture, np.float32).flatten() / 255)
        for message in sample.record.messages:
            if message.role == "assistant":
                there[list("".join(part.text or "" for part in message.content).encode())] = 1
        return pixels, there


def train(mix: str, checkpoint: Path, steps: int) -> None:
    """Trains up to a step, from where the checkpoint ends. Raises MixError for one of another mix or seed."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(192, 64), torch.nn.ReLU(), torch.nn.Linear(64, 256))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    stream, position = Stream(mix, seed=0), 0
    if checkpoint.exists():
        kept = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        position = stream.check_state(kept["stream"])
    # Positions count on through the epochs. trainer/data.py shares them among processes.
    loader = DataLoader(Examples(stream), batch_size=BATCH, sampler=range(position, steps * BATCH))
    for pixels, there in loader:
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(pixels), there)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        position += len(pixels)
        if position % (10 * BATCH) == 0 or position == steps * BATCH:
            print(f"step {position // BATCH}, epoch {position / len(stream):.2f}, loss {loss.item():.4f}")
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "stream": stream.state(position)}
            torch.save(state, beside := checkpoint.with_suffix(".part"))
            beside.replace(checkpoint)  # so that what is under its name is always whole


if __name__ == "__main__":
    try:
        Path(sys.argv[2]).parent.mkdir(parents=True, exist_ok=True)
        train(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
    except DatakitError as error:  # the parent of all that datakit raises on purpose; its text says what to do
        sys.exit(f"error: {error}")
