"""`python tests/sweeps/driver.py -m ...`: main.py without the report, whose imports alone take seconds."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

if __name__ == "__main__":  # each child imports this file again
    import main
    import sweeps.experiment

    sweeps.experiment.write_report = lambda *_: None
    main.main()
