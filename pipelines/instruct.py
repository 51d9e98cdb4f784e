"""Any dataset whose pictures come in archives: all rows, pictures found by the archives' indexes, packed.

Differs from the guides: nothing is unpacked, and a record that can't be trained on is dropped with its reason
instead of stopping the training (upstream.md E18, E19; LLaVA issues 593, 601).
"""

from datakit.stage import Step
from datakit.stages.listing import Listing
from datakit.stages.locate import Locate
from datakit.stages.pack import Pack

STEPS = {
    "*": (
        Step(name="list", stage=Listing(), tolerates=0.05),
        Step(name="fetch", stage=Locate(), tolerates=0.05),
        Step(name="pack", stage=Pack(), tolerates=0.05),
    )
}
