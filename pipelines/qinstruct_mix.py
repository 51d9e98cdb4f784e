"""Q-Instruct, strategy "mix" (arXiv:2311.06783): low-level vision beside LLaVA's 665K from the start.

One phase, `finetune`: projector and language model of LLaVA-1.5, from its pretrained projector, on Q-Instruct and the
665K mix together, Q-Instruct first as in upstream's `jq -s add` (the order that is trained in is the stream's). Both
are made by their manifests' own recipe, `instruct`.

Differs from the guide: files are taken from resolve/ and a web page in place of JSON is refused (docs/upstreams.md U1);
the two JSONs are never in memory at once (U84), and nothing of either is rewritten. The guide leaves out
get_mm_projectors.sh, which fetches the projector that this starts from (U82): the first phase of `llava15` makes
one. Upstream's scripts need two working folders at once (U83); ours need none.
"""

MIXES = {"finetune": "qinstruct+llava665k"}

# TRAINING, by phase, comes here with the trainer's recipes.
