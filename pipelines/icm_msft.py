"""ICM-Instruct (arXiv:2412.18216), strategy MSFT: content moderation mixed with LLaVA's 665K. Research only.

One phase, `finetune`: projector and language model on ICM-Instruct and the 665K mix together, ICM first as in
upstream's `jq -s add`. Each is made by its manifest's own recipe: `icm_csft`, which tolerates ICM's broken paths, and
`instruct`.

Differs from the guide: files are taken from resolve/ (docs/upstreams.md U1), and the mix is that of this strategy: the
guide has the sentence about icm_llava_train_mix.json under the other one (U47). Both strategies call one script that
starts from llava-v1.5-13b where the guide says 7B (U48); mixing from the start needs LLaVA's pretrained projector
instead, which is the trainer's side. Upstream's converter breaks the picture's path in 156,884 of its 323,932 records
(U44): those are dropped as `missing` and counted, for what they meant can't be told; `datakit check icm` counts them.
"""

MIXES = {"finetune": "icm+llava665k"}

# TRAINING, by phase, comes here with the trainer's recipes.
