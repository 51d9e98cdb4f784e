"""COYO, the 25 million pairs that VILA trained on, as far as that is documented (arXiv:2312.07533).

VILA's scripts keep the best fifth of each shard above the floor (the recipe `coyo_vila`), 149.4 million pairs. Its
training uses 25 million, "ranked by CLIP" (NVlabs/VILA issue 207); which ones is in no script (docs/upstreams.md U38).
Our reading: the same ranking and the same floor, with a share that gives 25 million of the whole. That they are
upstream's 25 million is not claimed. The rest is as in `coyo_vila`.
"""

from datakit.stage import Step
from datakit.stages.choose import ClipTop
from datakit.stages.fetch import Fetch
from datakit.stages.listing import Listing
from datakit.stages.pack import Pack

SOURCE = "NVlabs/VILA data_prepare/coyo/coyo_downloader.py"

STEPS = {
    "coyo": (
        Step(name="list", stage=Listing()),
        # 25 million by NVlabs/VILA issue 207, of the 746,972,269 rows by COYO's README; SOURCE: clip_sim > 0.6
        Step(name="top25m", stage=ClipTop(share=25_000_000 / 746_972_269, floor=0.60)),
        # SOURCE: size_limit = 336, int() of the longer side, JPEG quality 75. A third of the URLs is dead; 90 % failing
        # is a network down.
        Step(name="fetch", stage=Fetch(max_short_side_px=336, quality=75, rounding="down"), tolerates=0.9),
        Step(name="pack", stage=Pack()),
    )
}
