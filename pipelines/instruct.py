"""Any dataset whose pictures come in archives: all rows, pictures found by the archives' indexes, packed.

Differs from the guides: nothing is unpacked, and a record that can't be trained on is dropped with its reason
instead of stopping the training, or of being trained on with a black picture (docs/upstreams.md U2, U3, U20,
U58).
"""

from datakit.engine.stage import Step
from datakit.stages.listing import Listing
from datakit.stages.locate import Locate
from datakit.stages.pack import Pack

STEPS = {
    "*": (
        Step(name="list", stage=Listing()),
        Step(name="fetch", stage=Locate()),
        Step(name="pack", stage=Pack()),
    )
}
