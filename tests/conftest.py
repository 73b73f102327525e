"""One thread for every test: two torch processes with the default number of threads starve each other."""

from __future__ import annotations

import os

for _name, _value in {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "GOMP_SPINCOUNT": "10000"}.items():
    os.environ.setdefault(_name, _value)  # before torch is imported; what tests start inherits it
