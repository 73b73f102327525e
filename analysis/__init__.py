"""What the runs showed: run folders in; tables, figures and a report out. Never imports rlhf, torch or hydra."""
