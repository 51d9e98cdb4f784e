"""COYO, the 25 million pairs that VILA trained on, as far as that is documented (arXiv:2312.07533).

VILA's scripts keep the best fifth of each shard above the floor (the recipe `coyo_vila`), 149.4 million pairs. Its
training uses 25 million, "ranked by CLIP" (NVlabs/VILA issue 207), and no script says which (docs/upstreams.md U38).
Our reading is the same ranking and the same floor, with the share that gives 25 million of the whole; we don't claim
that these are upstream's 25 million. The rest is as in `coyo_vila`.
"""

from datakit.engine.pipeline import like
from datakit.engine.stage import Step
from datakit.stages.clip_top import ClipTop

SOURCE = "NVlabs/VILA data_prepare/coyo/coyo_downloader.py"

STEPS = {
    "coyo": like(
        "coyo_vila",
        # 25 million by NVlabs/VILA issue 207, of the 746,972,269 rows by COYO's README; SOURCE: clip_sim > 0.6
        Step(name="top25m", stage=ClipTop(share=25_000_000 / 746_972_269, floor=0.60)),
        without=("top20",),
    )
}
