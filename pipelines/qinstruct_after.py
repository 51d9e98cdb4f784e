"""Q-Instruct, strategy "after" (arXiv:2311.06783): a finished LLaVA-1.5 learns low-level vision.

One phase, `finetune`: projector and language model of liuhaotian/llava-v1.5-7b (or 13b) on Q-Instruct alone,
which is made by its manifest's own recipe, `instruct`.

Differs from the guide as `qinstruct_mix` does: its links are to pages (docs/upstreams.md U1), and get_mm_projectors.sh
(U82), which it leaves out, isn't needed here, for the model has a projector.
"""

MIXES = {"finetune": "qinstruct"}

# TRAINING, by phase, comes here with the trainer's recipes. Batches are not grouped by modality in this script.
