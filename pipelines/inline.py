"""Any dataset whose pictures stand in its own rows, or as loose files in a folder: all rows, all pictures, packed.

It is what `datakit add` gives to Parquet files with pictures, to WebDataset tars and to JSON beside a folder; every
number is ours. Rows without a picture go the same way.
"""

from datakit.engine.stage import Step
from datakit.stages.extract import Extract
from datakit.stages.listing import Listing
from datakit.stages.pack import Pack

STEPS = {
    "*": (
        Step(name="list", stage=Listing()),
        Step(name="fetch", stage=Extract()),
        Step(name="pack", stage=Pack()),
    )
}
