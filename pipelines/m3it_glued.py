"""M3IT with instruction and input glued together, as VILA's script does it.

NVlabs/VILA data_prepare/sft/preprocess_m3it.py joins them without any sign between (docs/upstreams.md U63), which runs
the last word of one into the first of the other. The recipe `vila` puts a line break there; this is upstream's form.
"""

from datakit.stage import Step
from datakit.stages.extract import Extract
from datakit.stages.listing import Listing
from datakit.stages.pack import Pack

STEPS = {
    "m3it": (
        Step(name="list", stage=Listing(separator="")),
        Step(name="fetch", stage=Extract()),
        Step(name="pack", stage=Pack()),
    )
}
