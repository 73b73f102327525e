"""One thread for every test, since two torch processes with the default number starve each other; usual signals."""

from __future__ import annotations

import os
import signal

for _name, _value in {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "GOMP_SPINCOUNT": "10000"}.items():
    os.environ.setdefault(_name, _value)  # before torch is imported; what tests start inherits it

# nohup, and shells that start something in the background, ignore these; drivers that tests interrupt would inherit it.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
