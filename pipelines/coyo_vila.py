"""COYO as VILA used it: the fifth of each shard whose caption fits its picture best (arXiv:2312.07533).

Differs from the authors' scripts: pictures stay JPEG (they store base64 in pickles), rows keep COYO's order (theirs
is that in which downloads end), ties are broken by key, a shard with fewer than a fifth above the floor gives what it
has (their script stops; docs/upstreams.md U37), the tail isn't dropped (U24), and certificates of https are checked
(U23).

Pictures have VILA's sizes to the pixel. They are shrunk by OpenCV's area filter, though, and theirs by Pillow's bicubic
one: on four photographs, both written as JPEG of quality 75, the SSIM on luma is 0.97 on average and 0.96 at least
(tests/datakit/test_vila_shrink.py computes it).
"""

from datakit.engine.stage import Step
from datakit.stages.clip_top import ClipTop
from datakit.stages.fetch import Fetch
from datakit.stages.listing import Listing
from datakit.stages.pack import Pack

SOURCE = "NVlabs/VILA data_prepare/coyo/coyo_downloader.py"

STEPS = {
    "coyo": (
        Step(name="list", stage=Listing()),
        Step(name="top20", stage=ClipTop(share=0.20, floor=0.60)),  # SOURCE: clip_sim > 0.6, head(int(0.2 n))
        # SOURCE: size_limit = 336, int() of the longer side, JPEG quality 75. A third of the URLs is dead; 90 % failing
        # is a network down.
        Step(name="fetch", stage=Fetch(max_short_side_px=336, quality=75, rounding="down"), tolerates=0.9),
        Step(name="pack", stage=Pack()),
    )
}
