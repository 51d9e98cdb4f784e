"""ICM-Instruct (arXiv:2412.18216), strategy CSFT: a finished LLaVA-1.5 learns content moderation. Research only.

One phase, `finetune`: projector and language model of llava-v1.5 on ICM-Instruct alone.

Differs from the guide as `icm_msft` does: no mix here, whatever the sentence under this heading says
(docs/upstreams.md U47), and records with a broken path are dropped and counted (U44).
"""

from datakit.engine.pipeline import like
from datakit.engine.stage import Step
from datakit.stages.locate import Locate

STEPS = {
    # docs/upstreams.md U44: the converter breaks 156,884 of 172,465 paths of questions, which stand together: 91 %
    "icm": like("instruct", Step(name="fetch", stage=Locate(), tolerates=0.95))
}

MIXES = {"finetune": "icm"}

# TRAINING, by phase, comes here with the trainer's recipes. Upstream names 13b in the script and 7B in the guide.
