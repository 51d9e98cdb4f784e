"""Half of LLaVA's 665K by a stated rule, for LibMoE's third phase: `datakit fetch llava665k --recipe llava_half`.

LibMoE (arXiv:2411.00918) publishes its own half, 332K (the dataset `llava332k`), and nowhere says how it was drawn
(docs/upstreams.md U21). Anybody can make this one again: half of the records of each folder of pictures, and half of
those without a picture, chosen by a hash of their keys. It isn't upstream's half and isn't claimed to be. The rest is
as in `instruct`.
"""

from datakit.engine.pipeline import like
from datakit.engine.stage import Step
from datakit.stages.stratified_share import StratifiedShare

STEPS = {
    # half, as the name llava_v1_5_mix665k_half.json says
    "llava665k": like("instruct", Step(name="half", stage=StratifiedShare(share=0.5)))
}
