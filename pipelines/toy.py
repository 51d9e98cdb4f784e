"""The toy: a Llava of 0.2 million parameters, small enough that a laptop's two cores train it in a minute.

Every number here is ours, chosen for speed. It shows the whole path and teaches the model nothing.
"""

from trainer.config import Training

TRAINING = Training(
    model="toy",  # trainer/model.py: two layers each of CLIP and Llama, weights from the seed
    template="v1",
    trains=("connector", "llm"),
    lr=1e-3,
    warmup_ratio=0.03,
    epochs=1.0,
    global_batch=8,
    micro_batch=2,
    max_length=512,
    image_size=32,  # 8-pixel patches: 16 image tokens
    image_aspect="pad",
    precision="fp32",
    save_every_steps=10,
)
