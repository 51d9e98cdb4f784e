"""LLaVA-1.5 (arXiv:2310.03744): 558K captions align the projector, the 665K mix tunes the model.

In order: `pretrain` trains the projector on LLaVA-Pretrain 558K, `finetune` projector and language model on the
mix of 665K instructions (scripts/v1_5/pretrain.sh and finetune.sh of haotian-liu/LLaVA). Each dataset is made by its
manifest's own recipe, `instruct`.

Differs from upstream: archives are read by their indexes and not unpacked; a record that can't be trained on (an
empty answer, a picture that is gone or broken) is dropped with its reason, where upstream stops or masks the whole
sample (docs/upstreams.md U2, U3, U58); several pictures of one turn stay several (U4); sizes are the hub's, not those
of LLaVA's docs (U54). Keys are row numbers, since upstream's ids are not unique (U56).
"""

MIXES = {"pretrain": "llava558k", "finetune": "llava665k"}

# TRAINING, by phase, comes here with the trainer's recipes.
