"""How many runs become one experiment: what a command line means, launchers, studies, and the display they share."""
