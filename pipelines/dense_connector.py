"""Dense Connector (arXiv:2405.13800) on either of its two sets of data, LLaVA-1.5's and Mini-Gemini's.

In order, with LLaVA-1.5: `pretrain` trains the connector on 558K captions, `finetune` connector and language model on
the 665K mix. With Mini-Gemini: `mgm_pretrain` (1.2 million: LLaVA's 558K and ALLaVA's captions) and `mgm_finetune`
(1.5 million). `--phase NAME` makes only one of them. Every dataset is made by its manifest's own recipe, `instruct`.

The guide links two other guides in place of data (docs/upstreams.md U27); here are the data. Of Mini-Gemini's:
mgm_generation_pure_text.json isn't merged in, because mgm_instruction.json holds it already (U67); ALLaVA's pictures
of the instructions are looked up where the tree in the README has them, not where its list does (U68). The rest is as
in `llava15`.
"""

MIXES = {
    "pretrain": "llava558k",
    "finetune": "llava665k",
    "mgm_pretrain": "mgm.pretrain",
    "mgm_finetune": "mgm.instruction",
}

# TRAINING, by phase, comes here with the trainer's recipes.
