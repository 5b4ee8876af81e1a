"""The Ray runtime. Only files in this package import ray."""

import logging

# In a notebook, to import Ray prints that it would like another package: nobody asked.
logging.getLogger("ray.widgets").setLevel(logging.WARNING)
