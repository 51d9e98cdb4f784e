"""ShareGPT4V (arXiv:2311.12793): 1.2 million written captions, then LLaVA's mix with 23K of them in it.

In order: `pretrain` trains the upper half of the vision tower, the projector and the language model on the captions,
`finetune` projector and language model on the mix.

VILA uses a cleaned copy (the dataset `sharegpt4v_vila`): its README says that captions which name a file (sa_XXXX) or
repeat themselves were left out (docs/upstreams.md U90), and the script for it is not published (U93). The step `clean`
does what that sentence says, by two rules of our own, to all but the mix; it need not leave out the same captions as
upstream. The pictures of SAM and of four smaller collections come only from forms and drives: bring them with `datakit
adopt`, or go `--without`.
"""

from datakit.engine.pipeline import like
from datakit.engine.stage import Step
from datakit.stages.text_rules import DropText

STEPS = {
    "sharegpt4v": like("instruct", Step(name="clean", stage=DropText(rules=("sa_id", "repetition")))),
    "sharegpt4v.sft": like("instruct"),  # the mix stays as it is
}

MIXES = {"pretrain": "sharegpt4v.pretrain", "finetune": "sharegpt4v.sft"}

# TRAINING, by phase, comes here with the trainer's recipes.
