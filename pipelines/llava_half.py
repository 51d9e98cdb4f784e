"""Half of LLaVA's 665K by a stated rule, for LibMoE's third stage: `datakit fetch llava665k --recipe llava_half`.

LibMoE publishes its own half, 332K (the dataset `llava332k`), and nowhere says how it was drawn (docs/upstreams.md
U21). This one can be made again by anybody: half of the records of each folder of pictures, and of those without one,
chosen by a hash of their keys. It isn't upstream's half and isn't claimed to be.
"""

from datakit.stage import Step
from datakit.stages.listing import Listing
from datakit.stages.locate import Locate
from datakit.stages.pack import Pack
from datakit.stages.share import StratifiedShare

STEPS = {
    "llava665k": (
        Step(name="list", stage=Listing()),
        Step(name="half", stage=StratifiedShare(share=0.5)),  # half, as the name llava_v1_5_mix665k_half.json says
        Step(name="fetch", stage=Locate()),
        Step(name="pack", stage=Pack()),
    )
}
