"""MMC4 documents that keep what is left of their pictures.

VILA's scripts drop a whole document for one dead picture (the steps of `vila`; docs/upstreams.md U76): with 85 % of the
pictures alive and four of them, every second document goes. Here only the picture goes: its row of the similarity
matrix is left out and the sentences are matched again; of a document without a matrix, the others stay where they are.
A document without any picture left is dropped.
"""

from datakit.stage import Step
from datakit.stages.fetch import Fetch
from datakit.stages.listing import Listing
from datakit.stages.pack import Pack

SOURCE = "NVlabs/VILA data_prepare/mmc4/mmc4_downloader.py"

STEPS = {
    "mmc4": (
        Step(name="list", stage=Listing()),
        # SOURCE: shorter side > 336 becomes 336, the other int() of it, JPEG of Pillow's quality 75. Documents with a
        # dead picture count: half of them are usual (mmc4 issue 14, and rot since); 90 % is a network down.
        Step(name="fetch", stage=Fetch(max_short_side_px=336, quality=75, rounding="down"), tolerates=0.9),
        Step(name="pack", stage=Pack(missing="drop_image")),
    )
}
