"""Which folders go into a wheel; all else that is to say of the package stands in setup.cfg.

setup.cfg can list packages or find them, and here it takes both: manifests/ and pipelines/ stand at the top of a
checkout, where nothing is found under the names that they have in a wheel.
"""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["datakit*", "trainer*"]), "datakit.manifests", "datakit.pipelines"])
